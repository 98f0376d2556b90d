#!/usr/bin/env bash
# The paper's tables for Llama-2-13B. Needs the weights (meta-llama/Llama-2-13b-hf or a folder), a GPU, seap[hub,eval].
set -euo pipefail
cd "$(dirname "$0")/../.."
exec "${PYTHON:-.venv/bin/python}" runs/paper/paper.py "${1:-meta-llama/Llama-2-13b-hf}" --size 13b --dtype float16 \
  --out "results/paper/paper_llama2_13b.json" "${@:2}"
