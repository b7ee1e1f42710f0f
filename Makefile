# The two commands: `make run` and `make test`. Everything else serves them.
#
# Tests: `make unit` while you write, `make test` before you commit, `make test-all` and `make test-long` are what .ci/run runs. Which test
# belongs to which of them stands in tests/README.md.
PORT ?= 8080
DATA ?= .gantry
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DISTRIBUTIONS := libs/standard libs/contracts libs/runtime services/gateway services/blob services/index services/renderer services/workflow libs/suite
EDITABLE := $(foreach d,$(DISTRIBUTIONS),-e ./$(d))

PYTEST := $(BIN)/python -m pytest
ALL_TESTS := tests --ignore tests/compose
# Without compiled files each worker rewrites and compiles all tests again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run unit test test-all test-long lint proto requirements bench install docs clean

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

unit: $(VENV)/dev.ok  ## the unit tests, without S3 and Elasticsearch: two minutes on two cores
	GANTRY_TEST_REAL_SERVERS=no $(PYTEST) tests/unit -m "not thorough and not long" -n 2

test: $(VENV)/dev.ok  ## what a change can break, against real servers
	$(PYTEST) $(ALL_TESTS) -m "not thorough and not long" -n 3

test-all: $(VENV)/dev.ok  ## all tests but the long ones: every sample file, every black-box test on both sets of stores
	$(PYTEST) $(ALL_TESTS) -m "not long" -n 3 --requirements new

test-long: $(VENV)/dev.ok  ## kill cycles, a large instance, JavaScript clients; one at a time
	$(PYTEST) $(ALL_TESTS) -m long -s --requirements add

requirements:  ## which rows of tests/requirements.md `make test-all` and `make test-long` showed; writes docs/conformance.md
	@$(BIN)/python -m tests.support.requirements --write

$(VENV)/bench.ok: $(VENV)/run.ok benchmarks/requirements.txt
	@$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -r benchmarks/requirements.txt
	@touch $@

bench: $(VENV)/bench.ok  ## make bench PEER=orthanc SCENARIO=S4 for a comparison or a part; CHECKOUT=DIR: another checkout; DISTRIBUTED=1: both store sets
	$(BIN)/python benchmarks/run.py $(if $(PEER),--peer $(PEER)) $(if $(CHECKOUT),--checkout $(CHECKOUT)) $(if $(DISTRIBUTED),--distributed) $(if $(SCENARIO),--scenario $(SCENARIO)) $(if $(QUICK),--quick)

clean:
	rm -rf $(VENV) build

docs: $(VENV)/dev.ok  ## tables of docs/operations.md and docs/conformance.md
	@$(BIN)/python -m tests.support.operations
	@$(BIN)/python -m tests.support.conformance
