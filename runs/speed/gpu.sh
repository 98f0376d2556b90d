#!/usr/bin/env bash
# Speed on a GPU in parts of at most three minutes, the most telling first, each with a file of its own as it ends: so
# that whatever time there is on a borrowed card leaves results. An 80 GB GPU holds each part. 7b_50 takes a minute on an
# H200; a part of each kind was seen to run on a CPU:
#
#     bash runs/speed/gpu.sh [OUT]
#     PARTS="7b_50 nccl" bash runs/speed/gpu.sh
#     DEVICE=cpu SHAPE=llama:0.002b QUICK=1 bash runs/speed/gpu.sh /tmp/results
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${1:-results/speed} python=${PYTHON:-.venv/bin/python}
mkdir -p "$out"
failed=()
for part in ${PARTS:-$("$python" runs/speed/gpu.py --list)}; do
  if [ -e "$out/gpu_$part.json" ]; then echo "$part: there already"; continue; fi
  timeout "${LIMIT:-180}" "$python" runs/speed/gpu.py "$part" --out "$out" --device "${DEVICE:-cuda}" \
    ${SHAPE:+--shape "$SHAPE"} ${QUICK:+--quick} || failed+=("$part")
done
[ ${#failed[@]} -eq 0 ] || { echo "not finished: ${failed[*]}"; exit 1; }
