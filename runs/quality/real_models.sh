#!/usr/bin/env bash
# Public models on tasks that people know, by choice and by what is written: rows, most telling first, then the table.
#
#     bash runs/quality/real_models.sh MODELS DATA OUT [MINUTES]
#
# MODELS holds smollm2-135m, qwen2.5-coder-0.5b and gemma-3-270m, DATA tasks/ and code/. Every row is a file in OUT: stop it
# and run it again as you like; after MINUTES no row begins. Programs that Qwen writes are run (docs/security.md).
set -euo pipefail
models=$(realpath "$1") data=$(realpath "$2") out=$(realpath -m "$3") minutes=${4:-100000}
cd "$(dirname "$0")/../.."
end=$((SECONDS + minutes * 60))
main=${METHODS:-seap,flap} others=${OTHERS:-wanda-sp,seap-paper,shortgpt,seap-gen,random}
size=(--items 400 --say-items 64 --windows 100)

rows() {
  local left=$(((end - SECONDS) / 60))
  if ((left < 1)); then return; fi
  "${PYTHON:-.venv/bin/python}" runs/quality/real_models.py --out "$out" --minutes "$left" "${size[@]}" "$@" || echo "some rows failed"
}
t=$data/tasks
smollm2=smollm2=$models/smollm2-135m qwen=qwen=$models/qwen2.5-coder-0.5b gemma=gemma=$models/gemma-3-270m
clear=("arc_easy=$t/arc_easy" "piqa=$t/piqa" "hellaswag=$t/hellaswag" "boolq=$t/boolq")
all=("${clear[@]}" "arc_challenge=$t/ai2_arc" "openbookqa=$t/obqa" "winogrande=$t/winogrande")
code=("mbpp=$data/code/mbpp.jsonl" "gsm8k=$t/gsm8k")
programs=(--also "humaneval=$data/code/humaneval.jsonl:mbpp" --run-generated-code)

rows --models "$smollm2" --tasks "${clear[@]}" --methods "$main" "$others"
rows --models "$qwen" --tasks "${code[@]}" "${programs[@]}" --methods "$main" "$others"
rows --models "$smollm2" --tasks "${all[@]}" --methods "$main" "$others"
rows --models "$gemma" --tasks "${all[@]}" --methods "$main" "$others"
rows --models "$smollm2" --tasks "${clear[@]}" --methods gisp --sparsities 0.2
rows --models "$smollm2" --tasks "${clear[@]}" --methods "$main" "$others" --seeds 2
"${PYTHON:-.venv/bin/python}" runs/quality/real_models.py --table --out "$out"
