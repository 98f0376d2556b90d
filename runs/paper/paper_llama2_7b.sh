#!/usr/bin/env bash
# The paper's tables for Llama-2-7B. Needs the weights (meta-llama/Llama-2-7b-hf or a folder), a GPU, seap[hub,eval].
set -euo pipefail
cd "$(dirname "$0")/../.."
exec "${PYTHON:-.venv/bin/python}" runs/paper/paper.py "${1:-meta-llama/Llama-2-7b-hf}" --size 7b --dtype float16 \
  --out "results/paper/paper_llama2_7b.json" "${@:2}"
