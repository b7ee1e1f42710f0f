#!/usr/bin/env bash
# Generates libs/contracts from proto/ (make proto). Needs the development requirements in the virtual environment.
set -euo pipefail
cd "$(dirname "$0")"
python=${PYTHON:-../.venv/bin/python}
out=${1:-../libs/contracts}
bin=$(dirname "$python")
PATH="$(cd "$bin" && pwd):$PATH" "$python" -m grpc_tools.protoc -I . --python_out="$out" --grpc_python_out="$out" --mypy_out=quiet:"$out" --mypy_grpc_out=quiet:"$out" \
  $(find gantry -name '*.proto' | sort)
find "$out/gantry" -mindepth 1 -type d -exec touch {}/__init__.py \;
touch "$out/gantry/py.typed"
