"""What it saves that rows which have ended leave the batch: seconds of writing answers by plain `generate` and by seap.

    python runs/speed/written.py MODEL --task NAME=PATH [--items 48] [--new-tokens 256] [--repeats 2] --out FILE

The same prompts of the task's training part in one batch, in the model's chat template where it has one, greedily, in
turn; the medians of the repeats, and how many answers are alike token by token. Run it on a quiet machine.
"""

import argparse
import time
from pathlib import Path
from statistics import median

from seap.environment import provenance
from seap.files import digest, write_json
from seap.models import continuing, loader
from seap.models.continuing import continuations
from seap.text.encode import prompt_ids
from seap.text.options import Reading
from seap.text.tasks import load_prompts
from seap.text.wording import in_free_form


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--task", required=True, metavar="NAME=PATH")
    parser.add_argument("--items", type=int, default=48)
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    a = parser.parse_args()
    model, tokenizer = loader.load_for_work(a.model, dtype="float32")
    items = map(in_free_form, load_prompts(a.task)[0][: a.items])
    prompts = [prompt_ids(tokenizer, item, Reading()) for item in items]
    ways = {"whole batch": a.new_tokens, "rows leave": continuing.PIECE}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    rows: dict[str, list[list[int]]] = {}
    for _ in range(a.repeats):
        for way, piece in ways.items():
            continuing.PIECE = piece  # one piece is one call of generate
            started = time.perf_counter()
            rows[way] = continuations(model, tokenizer, prompts, max_new_tokens=a.new_tokens, do_sample=False)
            seconds[way].append(time.perf_counter() - started)
            print(way, round(seconds[way][-1], 1), flush=True)
    whole, left = rows.values()
    lengths = [len(row) for row in left]
    about = {
        "kind": "written",
        "model": a.model,
        "task": a.task,
        "prompts": len(prompts),
        "data_hash": digest([list(prompt) for prompt in prompts]),
        "seconds": {way: median(taken) for way, taken in seconds.items()},
        "tokens": sum(lengths),
        "longest": max(lengths),
        "alike": sum(one == other for one, other in zip(whole, left, strict=True)),
    }
    write_json(a.out, about | provenance())


if __name__ == "__main__":
    main()
