#!/usr/bin/env bash
# The evidence on natural-7m: every method on eight kinds of text with controls, then on question tasks by loss, then how
# the kinds differ inside the model, and two pages of it.
#
#     bash runs/quality/evidence_natural.sh MODEL NATURAL TASKS [OUT]
#
# NATURAL holds a folder per kind of text, TASKS the question tasks; OUT is results/quality/ by default. Each compare names
# its networks and rows before it starts and, interrupted, goes on where it stopped (working files in out/evidence). On two
# CPU cores a row takes two to three seconds: about an hour in all. Cut short, to see that it runs:
#
#     KINDS="code wiki" METHODS=seap,flap SEEDS=1 ITEMS=8 TOKENS=2048 QUESTIONS=piqa WORK=/tmp/w bash runs/… /tmp/results
set -euo pipefail
model=$(realpath "$1") natural=$(realpath "$2") tasks=$(realpath "$3")
cd "$(dirname "$0")/../.."
out=${4:-results/quality} work=${WORK:-out/evidence} tokens=${TOKENS:-32768}
seap=("${PYTHON:-.venv/bin/python}" -m seap)
plain=(--dtype float32 --device cpu)  # bfloat16 is several times slower on a CPU without it
text=(--pack --seq-len 256 --num-texts 2000 --max-tokens "$tokens")

# `a b` → `a=FOLDER/a,b=FOLDER/b`; `name:folder` where the data lie under another name
specs() {
  local folder=$1 found=()
  for name in "${@:2}"; do found+=("${name%%:*}=$folder/${name##*:}"); done
  local IFS=,
  echo "${found[*]}"
}
read -ra kinds <<<"${KINDS:-boolq code gsm8k piqa reviews science speeches wiki}"
read -ra questions <<<"${QUESTIONS:-arc_challenge:ai2_arc arc_easy boolq gsm8k openbookqa:obqa piqa winogrande}"
mkdir -p "$work" "$out"

# with controls for one draw of the calibration text, then without them for more draws, by loss alone
natural_run() {
  "${seap[@]}" compare "$model" --tasks "$(specs "$natural" "${kinds[@]}")" "${plain[@]}" "${text[@]}" \
    --methods "${METHODS:-seap,seap-paper,seap-gen,flap,wanda-sp,magnitude,random,seap-reference}" \
    --sparsity "${SPARSITY:-0.2,0.5}" --general "wiki=$natural/wiki" --num-items "${ITEMS:-16}" --window 256 \
    --metric "${METRIC:-loss}" --continuation-context 32 --continuation 16 --out "$work/natural" "$@"
}
natural_run --seeds 1 --controls
cp "$work/natural/compare.json" "$out/evidence_controls.json"
natural_run --seeds "${SEEDS:-3}"
cp "$work/natural/compare.json" "$out/evidence_natural.json"

"${seap[@]}" compare "$model" --tasks "$(specs "$tasks" "${questions[@]}")" "${plain[@]}" \
  --num-texts 400 --seq-len 256 --max-tokens "$tokens" --methods seap,seap-paper,flap,wanda-sp --sparsity 0.2,0.5 \
  --metric loss --num-items $((${ITEMS:-16} * 4)) --window 256 --out "$work/questions"
cp "$work/questions/compare.json" "$out/evidence_questions.json"

"${seap[@]}" analyze "$model" --tasks "$(specs "$natural" "${kinds[@]}")" "${plain[@]}" "${text[@]}" \
  --out "$out/evidence_analyze.json"
"${seap[@]}" report "$out/evidence_controls.json" "$out/evidence_analyze.json" --out "$out/evidence_natural.html"
"${seap[@]}" report "$out/evidence_questions.json" --out "$out/evidence_questions.html"
