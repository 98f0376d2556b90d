#!/usr/bin/env bash
# Speed on a CPU: prefill and decode of half-pruned random models against dense ones in the same run, calibration against a
# bare forward pass, and start-up. Run it on a quiet machine; about ten minutes on two cores.
#
#     bash runs/bench_cpu.sh [OUT]
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-results} python=${PYTHON:-.venv/bin/python} shapes=${SHAPES:-"llama:0.1b llama:0.5b"}
mkdir -p "$out"
bench() { # OUT, then the options
  "$python" -m seap.cli bench --sparsity 0.5 --device cpu --prompt-length 64 --new-tokens 16 --repeats "${REPEATS:-5}" \
    --out "$out/$1.json" "${@:2}"
}
for shape in $shapes; do
  name=bench_${shape//[:.]/_}
  bench "$name" --random-weights "$shape" --dtype float32 --batch 1 --batch 8
done
bench "${name}_bf16" --random-weights "$shape" --dtype bfloat16 --batch 1
bench "${name}_compile" --random-weights "$shape" --dtype float32 --batch 1 --mode eager --mode compile
first=${shapes%% *}
"$python" -m seap.cli bench --calibration builtin --dtype float32 --device cpu --out "$out/bench_calibration.json"
"$python" -m seap.cli bench --calibration "$first" --tokens "${TOKENS:-4096}" --dtype float32 --device cpu \
  --out "$out/bench_calibration_${first//[:.]/_}.json"
