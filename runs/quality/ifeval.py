"""What pruned chat models still do as they are told: IFEval through lm-evaluation-harness, dense and pruned.

    pip install "seap[eval]" "lm-eval[ifeval]"; python -m nltk.downloader punkt_tab
    python runs/quality/ifeval.py smollm2=SMOLLM2 qwen=QWEN --data IFEVAL --sparsities 0.2 --out FILE

IFEVAL is the 541 prompts as JSON lines, as google-research has them. Every second one calibrates: the dense model's own
answers to those prompts, in its chat template. The others are the test, in the template too. Rows are written one by
one, and a second run makes those that the file hasn't; `--take` adds rows of other files.
"""

import argparse
import contextlib
import json
import random
import tempfile
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import seap
from seap.environment import provenance
from seap.evaluation import harness
from seap.files import digest, write_json
from seap.models import loader
from seap.models.prepack import prepacked
from seap.text.items import Item, to_items
from seap.text.readers import Row as Source
from seap.text.readers import read_rows
from seap.writing.answering import answer
from seap.writing.options import Answering

KIND = "ifeval"
Row = dict[str, Any]


def halves(data: Path, seed: int) -> tuple[list[Row], list[Row]]:
    """Of the prompts in an order drawn by seed: those that calibrate, those that test."""
    rows = [row.values for row in read_rows([data])]
    drawn = random.Random(seed).sample(rows, len(rows))
    return drawn[::2], drawn[1::2]


def items_of(rows: list[Row]) -> list[Item]:
    sources = [Source(f"prompt {i}", {"prompt": row["prompt"]}) for i, row in enumerate(rows, start=1)]
    return to_items(sources, "IFEval", unanswered=True)


def writing(model: Any) -> contextlib.AbstractContextManager[Any]:
    """The model as it writes quickest, which changes outputs by rounding."""
    return prepacked(model) if model.device.type == "cpu" else contextlib.nullcontext(model)


def tested(model: Any, tokenizer: Any, rows: list[Row], a: argparse.Namespace) -> Row:
    """The harness's figures on these prompts."""
    with tempfile.TemporaryDirectory() as place:
        (folder := Path(place, "ifeval")).mkdir()
        lines = "\n".join(json.dumps(row) for row in rows)
        (folder / "train.jsonl").write_text(lines + "\n")  # the part that upstream's definition evaluates
        how: dict[str, Any] = {"data": Path(place), "chat": True, "batch_size": a.batch_size, "limit": a.limit}
        with writing(model):
            found = harness.evaluate(model, tokenizer, ["ifeval"], **how)
    told = {row["metric"]: row["value"] for row in found}
    return told | {f"{row['metric']}_stderr": row["stderr"] for row in found} | {"n": found[0]["n"]}


def rows_for(folder: str, missing: list[Row], a: argparse.Namespace) -> Any:
    """A row for each that is missing, as it is made."""
    model, tokenizer = loader.load_for_work(folder, dtype=a.dtype)
    given, tests = halves(a.data, a.seed)
    own: list[Row] = []
    if any(key["method"] != "dense" for key in missing):
        how = {"num": a.answers, "max_new_tokens": a.new_tokens, "batch_size": a.batch_size, "seed": a.seed}
        with writing(model):
            own = [one.row for one in answer(model, tokenizer, items_of(given), Answering(**how)).answers]
    for key in missing:
        pruned, about = deepcopy(model), Row()
        started = time.perf_counter()
        if key["method"] != "dense":
            text: dict[str, Any] = {"max_tokens": a.tokens, "num_texts": len(own), "seq_len": 512}
            asked = {"method": key["method"], "sparsity": key["sparsity"]}
            report = seap.prune(pruned, tokenizer, task={"chat": own}, progress=False, **asked, **text)
            about = {"realised_sparsity": report.realised_sparsity, "calibration_tokens": report.num_tokens}
            about |= {"calibration_texts": len(own), "damage": report.damage}
        about |= {"pruning_seconds": time.perf_counter() - started}
        yield key | about | tested(pruned, tokenizer, tests, a) | {"seconds": time.perf_counter() - started}


def keys_of(name: str, a: argparse.Namespace) -> list[Row]:
    pairs = [("dense", 0.0), *((method, sparsity) for method in a.methods for sparsity in a.sparsities)]
    keys = [{"model": name, "method": method, "sparsity": sparsity, "seed": a.seed} for method, sparsity in pairs]
    return [key for key in keys if not a.only or key["method"] in a.only]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="NAME=MODEL")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", default=["seap", "flap"])
    parser.add_argument("--only", nargs="+", default=[], metavar="METHOD", help="of these and dense")
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.2])
    parser.add_argument("--answers", type=int, default=270, help="that are wanted")
    parser.add_argument("--new-tokens", type=int, default=256, help="of an answer")
    parser.add_argument("--tokens", type=int, default=16384, help="that are calibrated on")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--limit", type=int, help="of the test's prompts")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--take", type=Path, nargs="+", default=[])
    parser.add_argument("--out", type=Path, default=Path("results/quality/ifeval.json"))
    a = parser.parse_args()
    rows = [row for file in (a.out, *a.take) if file.is_file() for row in json.loads(file.read_text())["rows"]]
    for name, folder in (pair.split("=", 1) for pair in a.models):
        missing = [key for key in keys_of(name, a) if not any(key.items() <= row.items() for row in rows)]
        for row in rows_for(folder, missing, a) if missing else ():
            rows.append(row)
            print(json.dumps(row), flush=True)
            about = {"kind": KIND, "data_hash": digest(halves(a.data, a.seed)), "new_tokens": a.new_tokens}
            write_json(a.out, about | {"rows": rows} | provenance())
    if not a.models:
        write_json(a.out, {"kind": KIND, "rows": rows} | provenance())


if __name__ == "__main__":
    main()
