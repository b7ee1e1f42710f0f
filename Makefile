# The two commands: `make run` and `make test`. Everything else serves them.
PORT ?= 8080
DATA ?= .gantry
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DISTRIBUTIONS := libs/standard libs/contracts libs/runtime services/gateway services/blob services/index services/renderer services/workflow libs/suite
EDITABLE := $(foreach d,$(DISTRIBUTIONS),-e ./$(d))

.PHONY: run test lint proto requirements bench install docs clean

run: $(VENV)/run.ok  ## the whole suite on this machine
	@exec $(BIN)/gantry up --port $(PORT) --data $(DATA)

install: $(VENV)/dev.ok

$(VENV)/bin/python:
	@$(PYTHON) -m venv $(VENV)

$(VENV)/run.ok: $(VENV)/bin/python constraints.txt $(wildcard libs/*/pyproject.toml services/*/pyproject.toml)
	@echo "installing (once)"
	@$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt $(EDITABLE)
	@touch $@

$(VENV)/dev.ok: $(VENV)/run.ok requirements-dev.txt
	@$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -r requirements-dev.txt
	@touch $@

lint: $(VENV)/dev.ok  ## ruff, mypy, buf, generated code is fresh
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	cd proto && ../$(BIN)/buf lint
	rm -rf $(VENV)/contracts && mkdir -p $(VENV)/contracts
	PYTHON=../$(BIN)/python proto/generate.sh ../$(VENV)/contracts
	diff -r -x pyproject.toml -x __pycache__ -x '*.egg-info' $(VENV)/contracts/gantry libs/contracts/gantry

proto: $(VENV)/dev.ok  ## generate libs/contracts again
	PYTHON=../$(BIN)/python proto/generate.sh

test: $(VENV)/dev.ok  ## everything but the containers; real S3 and Elasticsearch where they can be had
	$(BIN)/python -m pytest tests --ignore tests/compose -n 3 --dist loadgroup

requirements:  ## which rows of tests/requirements.md the last run showed; writes docs/conformance.md
	@$(BIN)/python -m tests.support.requirements --write

$(VENV)/bench.ok: $(VENV)/run.ok benchmarks/requirements.txt
	@$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -r benchmarks/requirements.txt
	@touch $@

bench: $(VENV)/bench.ok  ## make bench PEER=orthanc SCENARIO=S4 for a comparison or a part; CHECKOUT=DIR: another checkout; DISTRIBUTED=1: both store sets
	$(BIN)/python benchmarks/run.py $(if $(PEER),--peer $(PEER)) $(if $(CHECKOUT),--checkout $(CHECKOUT)) $(if $(DISTRIBUTED),--distributed) $(if $(SCENARIO),--scenario $(SCENARIO)) $(if $(QUICK),--quick)

clean:
	rm -rf $(VENV) build

docs: $(VENV)/dev.ok  ## settings tables of docs/operations.md
	@$(BIN)/python -m tests.support.operations
