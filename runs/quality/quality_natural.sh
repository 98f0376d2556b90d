#!/usr/bin/env bash
# What the default method loses on natural-7m beside the paper's and the baselines: eight kinds of text, three draws of the
# calibration text, held-out loss, equal realised sparsity and equal calibration tokens (the task's own text for all).
#
#     bash runs/quality/quality_natural.sh MODEL NATURAL [OUT]
#
# Interrupted, it goes on where it stopped (working files in out/quality). About two hours on two CPU cores; cut short:
#
#     KINDS="code wiki" METHODS=seap,flap SEEDS=1 ITEMS=8 TOKENS=2048 SPARSITY=0.5 WORK=/tmp/w bash runs/… /tmp/results
set -euo pipefail
model=$(realpath "$1") natural=$(realpath "$2")
cd "$(dirname "$0")/../.."
out=${3:-results/quality} work=${WORK:-out/quality}
python=${PYTHON:-.venv/bin/python}
specs=""
for kind in ${KINDS:-boolq code gsm8k piqa reviews science speeches wiki}; do specs+="${specs:+,}$kind=$natural/$kind"; done
mkdir -p "$work" "$out"

# float32: bfloat16 is several times slower on a CPU without it
"$python" -m seap compare "$model" --tasks "$specs" --dtype float32 --device cpu \
  --pack --seq-len 256 --num-texts 2000 --max-tokens "${TOKENS:-65536}" \
  --methods "${METHODS:-seap,seap-paper,seap-gen,flap,wanda-sp,magnitude,random}" --sparsity "${SPARSITY:-0.2,0.5,0.65}" \
  --metric "${METRIC:-loss}" --num-items "${ITEMS:-16}" --window 256 --continuation-context 32 --continuation 16 \
  --seeds "${SEEDS:-3}" --out "$work"
cp "$work/compare.json" "$out/${NAME:-quality_natural}.json"
"$python" runs/quality/added_loss.py "$out/${NAME:-quality_natural}.json"
