"""With and without each new axis at equal bytes of the whole model: loss added per byte of unseen text, and speed.

    python runs/quality/equal_bytes.py MODEL TASK=PATH [TASK=PATH …] [--share 0.5] [--vocabulary auto] [--axes …]

Each network is pruned to the same `--target-size`, a share of the dense model's bytes on disk, saved, and measured on
the task's test text, which neither units nor tokens were chosen on. Axes, joined by +: `layers` (KV groups and channels
alone), `vocabulary` (with `auto` chosen together with the layers), `drop` (whole sub-blocks), `heads` (query heads
within groups). A row is written as soon as it is there, and rows that the file has aren't made again, so that an
interrupted run goes on where it was.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import seap
from seap.bench.speed import compare_speed
from seap.environment import provenance
from seap.errors import UserError
from seap.evaluation import metrics
from seap.evaluation.evaluate import load_test, per_byte, prepare
from seap.evaluation.options import Evaluation
from seap.files import write_json
from seap.models import loader
from seap.models.sizes import dtype_on_disk, saved_bytes

KEYS = ("model", "task", "axes", "share", "vocabulary_asked", "effort", "max_tokens", "test_items")
LOADING: dict[str, Any] = {"dtype": "float32"}  # on a GPU where there is one
Row = dict[str, Any]


def nats_per_byte(model: Any, tokenizer: Any, spec: str, options: Evaluation) -> dict[str, float]:
    """Of all windows of the test's texts."""
    exam = prepare(load_test(spec, options), model, tokenizer, options, every_window=True)
    return per_byte(metrics.loss(model, exam.windows), exam)


def options_of(axes: str, given: argparse.Namespace) -> dict[str, Any]:
    """What `seap.prune` takes for these axes."""
    found: dict[str, Any] = {}
    for axis in axes.split("+"):
        if axis == "vocabulary":
            found["vocabulary"] = given.vocabulary if given.vocabulary == "auto" else int(given.vocabulary)
        elif axis == "drop":
            found["drop"] = "both"
        elif axis == "heads":
            found["heads"] = "query"
        elif axis != "layers":
            raise UserError(f"--axes {axes}: must be layers, vocabulary, drop, heads, or several of them joined by +")
    return found


def measure(name: str, spec: str, axes: str, given: argparse.Namespace, dense: Mapping[str, Any]) -> Row:
    """A network of these axes: what it takes, loses, and how fast it writes beside the dense model."""
    started = time.process_time()
    whole, _ = loader.load_for_work(name, **LOADING)
    model, tokenizer = loader.load_for_work(name, **LOADING)
    dtype = dtype_on_disk(model)
    how = {"effort": given.effort, "max_tokens": given.tokens, "progress": False, "measure_damage": False}
    most = given.share * saved_bytes(model, dtype)
    asked = options_of(axes, given)
    report = seap.prune(model, tokenizer, task=spec, target_size=most, save_dtype=dtype, **how, **asked)
    made = time.process_time() - started
    settings = Evaluation(metric="loss", num_items=given.items)
    own = nats_per_byte(model, tokenizer, spec, settings)
    speed = compare_speed({"dense": whole, "pruned": model}, mode="auto", phases=("decode",), repeats=given.repeats)
    with tempfile.TemporaryDirectory() as folder:
        model.to(dtype).save_pretrained(folder)
        size = sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))
    assert size <= most, f"{size} bytes were written, {most} promised"
    rates = {which: found["tokens_per_s"] for which, found in speed["decode"].items()}
    cut = report.vocabulary or {}
    return {
        "params_before": report.params_before,
        "params_after": report.params_after,
        "bytes_asked": most,
        "bytes": size,
        "realised_sparsity": report.realised_sparsity,
        "gone_whole": sum(layer.get(kind) == 0 for layer in report.layers for kind in ("kv_groups", "channels")),
        "tokens_of_vocabulary": cut.get("tokens_after"),
        "vocabulary_nats_per_byte_held_out": cut.get("nats_per_byte"),
        "vocabulary_tried": cut.get("tried"),
        "nats_per_byte_dense": dense["nats_per_byte"],
        "nats_per_byte": own["nats_per_byte"],
        "nats_per_byte_added": own["nats_per_byte"] - dense["nats_per_byte"],
        "nats_per_byte_stderr": own["nats_per_byte_stderr"],
        "decode_tokens_per_s": rates["pruned"],
        "decode_tokens_per_s_dense": rates["dense"],
        "decode_ratio": speed["decode"]["pruned"]["ratio"],
        "calibration_tokens": report.num_tokens,
        "load_average": os.getloadavg()[0],
        "processor_seconds": made,
        "seconds": report.seconds,
    }


def key_of(spec: str, axes: str, given: argparse.Namespace) -> Row:
    """What tells a row from the others."""
    asked = options_of(axes, given).get("vocabulary")
    own = (Path(given.model).name, spec.partition("=")[0], axes, given.share, asked, given.effort)
    return dict(zip(KEYS, (*own, given.tokens, given.items), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("tasks", nargs="+", metavar="TASK=PATH")
    parser.add_argument("--share", type=float, default=0.5, help="of the dense model's bytes")
    parser.add_argument("--axes", nargs="+", default=["layers", "heads", "drop", "vocabulary", "vocabulary+heads"])
    parser.add_argument("--vocabulary", default="auto")
    parser.add_argument("--effort", default="quick")
    parser.add_argument("--tokens", type=int, default=8192, help="of calibration text")
    parser.add_argument("--items", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("results/quality/equal_bytes.json"))
    given = parser.parse_args()
    rows = json.loads(given.out.read_text())["rows"] if given.out.is_file() else []
    for spec in given.tasks:
        wanted = [key_of(spec, axes, given) for axes in given.axes]
        missing = [key for key in wanted if not any(all(old.get(k) == key[k] for k in KEYS) for old in rows)]
        if not missing:
            continue
        settings = Evaluation(metric="loss", num_items=given.items)
        dense = nats_per_byte(*loader.load_for_work(given.model, **LOADING), spec, settings)
        for key in missing:
            row = key | measure(given.model, spec, key["axes"], given, dense)
            rows = [*rows, row]
            write_json(given.out, {"kind": "equal bytes", "rows": rows} | provenance())
            print(json.dumps(row, indent=2), flush=True)


if __name__ == "__main__":
    main()
