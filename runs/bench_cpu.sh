#!/usr/bin/env bash
# Speed on a CPU: prefill and decode of half-pruned random models against dense ones in the same run, calibration against a
# bare forward pass, and start-up. Run it on a quiet machine; about ten minutes on two cores.
#
#     bash runs/bench_cpu.sh [OUT]
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-results} python=${PYTHON:-.venv/bin/python} shapes=${SHAPES:-"llama:0.1b llama:0.5b"}
mkdir -p "$out"
for shape in $shapes; do
  "$python" -m seap.cli bench --random-weights "$shape" --sparsity 0.5 --dtype float32 --device cpu \
    --batch 1 --batch 8 --prompt-length 64 --new-tokens 16 --repeats "${REPEATS:-5}" --out "$out/bench_${shape//[:.]/_}.json"
done
"$python" -m seap.cli bench --calibration builtin --dtype float32 --device cpu --out "$out/bench_calibration.json"
