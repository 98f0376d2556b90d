#!/usr/bin/env bash
# Speed on a GPU: prefill and decode of pruned random models of 7 B, 8 B and 13 B against dense ones in the same run, eager
# and compiled (CUDA graphs), at 20% and 50%, to stand beside the paper's figures (Llama-2-7B: ×1.17 and ×1.48); and what
# calibration costs. An 80 GB GPU holds each pair; about half an hour. Not run on one yet; tried on a CPU:
#
#     bash runs/speed/bench_gpu.sh [OUT]
#     DEVICE=cpu SHAPES=llama:0.002b REPEATS=1 TOKENS=512 bash runs/speed/bench_gpu.sh /tmp/results
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${1:-results/speed} python=${PYTHON:-.venv/bin/python} device=${DEVICE:-cuda}
mkdir -p "$out"
for shape in ${SHAPES:-llama-2-7b llama-3-8b llama-2-13b}; do
  name=${shape//[:.]/_}
  for sparsity in 0.2 0.5; do
    "$python" -m seap.cli bench --random-weights "$shape" --sparsity "$sparsity" --round-to "${ROUND_TO:-64}" \
      --dtype bfloat16 --device "$device" --mode eager --mode compile --batch 1 --batch 8 --prompt-length 128 \
      --new-tokens "${NEW_TOKENS:-32}" --repeats "${REPEATS:-7}" --out "$out/bench_gpu_${name}_${sparsity#0.}.json"
  done
  "$python" -m seap.cli bench --calibration "$shape" --tokens "${TOKENS:-32768}" --dtype bfloat16 \
    --device "$device" --out "$out/bench_gpu_calibration_${name}.json"
done
