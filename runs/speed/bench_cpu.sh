#!/usr/bin/env bash
# Speed on a CPU: prefill and decode of half-pruned random models against dense ones in the same run, as transformers runs
# them and with weights prepacked, and calibration against a bare forward pass. Run it on a quiet machine; about 20 minutes
# on two cores.
#
#     bash runs/speed/bench_cpu.sh [OUT]
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${1:-results/speed} python=${PYTHON:-.venv/bin/python}
small=${SMALL:-llama:0.1b} half=${HALF:-llama:0.5b} large=${LARGE:-llama-3.2-1b}
mkdir -p "$out"
bench() { # OUT, then the options
  "$python" -m seap bench --sparsity 0.5 --device cpu --prompt-length 64 --new-tokens 16 --repeats "${REPEATS:-5}" \
    --out "$out/$1.json" "${@:2}"
}
name() { echo "bench_${1//[:.-]/_}"; }
both=(--mode eager --mode prepacked)
bench "$(name "$small")" --random-weights "$small" --dtype float32 "${both[@]}" --batch 1 --batch 8 --batch 32
bench "$(name "$half")" --random-weights "$half" --dtype float32 "${both[@]}" --batch 1 --batch 8
bench "$(name "$half")_bf16" --random-weights "$half" --dtype bfloat16 "${both[@]}" --batch 1 --batch 8 --batch 32
bench "$(name "$half")_compile" --random-weights "$half" --dtype bfloat16 --mode compile --batch 1
bench "$(name "$large")_bf16" --random-weights "$large" --dtype bfloat16 "${both[@]}" --batch 1 --batch 8
"$python" -m seap bench --calibration builtin --dtype float32 --device cpu --out "$out/bench_calibration.json"
"$python" -m seap bench --calibration "$small" --tokens "${TOKENS:-4096}" --dtype float32 --device cpu \
  --out "$out/bench_calibration_${small//[:.]/_}.json"
