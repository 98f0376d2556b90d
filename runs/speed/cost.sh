#!/usr/bin/env bash
# What `seap prune --plan` says against what runs take, on natural-7m, SmolLM2-135M, Qwen2.5-Coder-0.5B and the shape of
# Llama-3.2-1B, and what it costs you: models of 0.1 to 70 B, computed. Run it on a quiet machine: a minute, five, twenty
# and fifty on two cores.
#
#     NATURAL=DIR SMOLLM2=DIR QWEN=DIR ONE_B=DIR TASKS=DIR bash runs/speed/cost.sh [OUT]
#
# NATURAL is a small model and TASKS a folder with gsm8k and arc_easy; ONE_B is made, of random weights, where it isn't
# there. What isn't given is left out.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${1:-results/speed} python=${PYTHON:-.venv/bin/python}
mkdir -p "$out"
run() { # OUT MODEL TASK MORE
  [ -n "$2" ] || { echo "$1: no model given, left out"; return 0; }
  "$python" runs/speed/cost.py "$2" --task "$3" --more="$4" --out "$out/cost_$1.json"
}
"$python" runs/speed/cost.py --computed ${SHAPES:+--shapes $SHAPES} --out "$out/cost_computed.json"
run natural_7m_flap "${NATURAL:-}" "gsm8k=${TASKS:-}/gsm8k" "--method flap"
run natural_7m "${NATURAL:-}" "gsm8k=${TASKS:-}/gsm8k" ""
run smollm2_flap "${SMOLLM2:-}" "arc_easy=${TASKS:-}/arc_easy" "--method flap"
run smollm2 "${SMOLLM2:-}" "arc_easy=${TASKS:-}/arc_easy" ""
run qwen2_5_coder_flap "${QWEN:-}" "arc_easy=${TASKS:-}/arc_easy" "--method flap"
run qwen2_5_coder "${QWEN:-}" "arc_easy=${TASKS:-}/arc_easy" ""
if [ -n "${ONE_B:-}" ]; then
  [ -d "$ONE_B" ] || "$python" runs/speed/random_folder.py llama-3.2-1b "$ONE_B"
fi
run llama_3_2_1b "${ONE_B:-}" "words=${ONE_B:-}/words.txt" ""
[ "$out" != results/speed ] || "$python" runs/pages/cost_page.py  # the tables of docs/cost.md
