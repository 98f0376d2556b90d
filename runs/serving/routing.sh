#!/bin/sh
# How good a router is, and what routing costs in the end: on the built-in model's tasks, and on eight kinds of real text
# (MODEL and DATA: natural-7m and the folder of its kinds). Writes routing_builtin.json and routing_natural.json in
# results/serving.
#
#     sh runs/serving/routing.sh MODEL DATA
set -eu
MODEL=$1 DATA=$2
ROOM=$(mktemp -d)
trap 'rm -r "$ROOM"' EXIT
PACK="--method seap-paper --score obs --compensate ridge --sparsity 0.4 --dtype float32"

own() { # own NAME MODEL TASKS PACK-OPTIONS: pack, fit, measure
    mkdir "$ROOM/$1"
    # shellcheck disable=SC2046,SC2086
    seap pack "$2" $(printf -- '--task %s ' $(echo "$3" | tr ',' ' ')) --out "$ROOM/$1/tasks" $PACK $4
    seap route fit "$2" --tasks "$3" --out "$ROOM/$1/router.safetensors" --dtype float32 --json > "$ROOM/$1/fit.json"
    seap route eval "$2" --tasks "$3" --router "$ROOM/$1/router.safetensors" --masks "$ROOM/$1/tasks" --dtype float32 \
        --max-new-tokens 24 --num-items 100 --out "$ROOM/$1/end.json"
    python -c "import json, sys; a, b, out = sys.argv[1:]; \
json.dump({'router': json.load(open(a)), 'end_to_end': json.load(open(b))}, open(out, 'w'), indent=1)" \
        "$ROOM/$1/fit.json" "$ROOM/$1/end.json" "results/serving/routing_$1.json"
}

BUILTIN=arithmetic,brackets,calendar,facts,list_sorting,numerals,sentiment,string_reversal,word_problems
own builtin builtin "$BUILTIN" "--max-tokens 2000"
KINDS=$(for kind in "$DATA"/*/; do kind=${kind%/}; printf '%s=%s,' "${kind##*/}" "$kind"; done)
own natural "$MODEL" "${KINDS%,}" "--max-tokens 16384"
