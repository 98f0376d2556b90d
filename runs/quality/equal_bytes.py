"""With and without each new axis at equal bytes of the whole model: loss added per byte of unseen text.

    python runs/quality/equal_bytes.py MODEL TASK=PATH [TASK=PATH …] [--share 0.5] [--vocabulary auto] [--axes …]

Each network is pruned to the same `--target-size`, a share of the dense model's bytes on disk, saved, and measured on
the task's test text, which neither units nor tokens were chosen on. Axes, joined by +: `layers` (KV groups and channels
alone), `vocabulary` (with `auto` chosen together with the layers), `drop` (whole sub-blocks), `heads` (query heads
within groups). What the axes can't reach is a row with the refusal. A row is written as soon as it is there, and rows
that the file has aren't made again, so that an interrupted run goes on where it was; `--take` adds rows of other files.
With `--made` each network's masks are kept, of which runs/engines/equal_bytes_speed.py measures speeds.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import seap
from seap.environment import provenance
from seap.errors import UserError
from seap.evaluation import metrics
from seap.evaluation.evaluate import Exam, load_test, prepare
from seap.evaluation.options import Evaluation
from seap.files import write_json
from seap.models import loader
from seap.models.sizes import dtype_on_disk, saved_bytes
from seap.selection.mask import save_masks

KIND = "equal bytes"
KEYS = ("model", "task", "axes", "share", "vocabulary_asked", "effort", "max_tokens", "test_items")
LOADING: dict[str, Any] = {"dtype": "float32"}  # on a GPU where there is one
Row = dict[str, Any]


@dataclass(frozen=True)
class Heard:
    """What a model says of a test: nats and bytes of each text, by its place."""

    nats: Mapping[int, float]
    bytes: Mapping[int, int]

    @classmethod
    def of(cls, model: Any, tokenizer: Any, spec: str, options: Evaluation) -> "Heard":
        """Of all windows of the test's texts."""
        exam = prepare(load_test(spec, options), model, tokenizer, options, every_window=True)
        found = metrics.log_likelihoods(model, exam.windows)
        nats = {place: 0.0 for place in exam.owners}
        for place, (total, _) in zip(exam.owners, found, strict=True):
            nats[place] -= total
        return cls(nats, {place: scored_bytes(exam, place) for place in nats})

    def per_byte(self) -> metrics.Figure:
        return metrics.ratio_of([(nats, self.bytes[place]) for place, nats in self.nats.items()])

    def beyond(self, dense: "Heard") -> metrics.Figure:
        """What is added per byte to another model's, text by text; their tokens may differ."""
        return metrics.ratio_of([(nats - dense.nats[at], dense.bytes[at]) for at, nats in self.nats.items()])


def scored_bytes(exam: Exam, place: int) -> int:
    own = [window for window, owner in zip(exam.windows, exam.owners, strict=True) if owner == place]
    return replace(exam, windows=tuple(own)).scored[1]


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


def measure(key: Row, spec: str, given: argparse.Namespace, dense: Heard) -> Row:
    """A network of these axes: what it takes and loses beside the dense model, or why there is none."""
    started = time.perf_counter()
    model, tokenizer = loader.load_for_work(given.model, **LOADING)
    dtype = dtype_on_disk(model)
    most = given.share * saved_bytes(model, dtype)
    how = {"effort": given.effort, "max_tokens": given.tokens, "progress": False, "measure_damage": False}
    asked = options_of(key["axes"], given)
    try:
        report = seap.prune(model, tokenizer, task=spec, target_size=most, save_dtype=dtype, **how, **asked)
    except UserError as error:
        return {"bytes_asked": most, "refused": str(error)}
    made = time.perf_counter() - started
    own = Heard.of(model, tokenizer, spec, Evaluation(metric="loss", num_items=given.items))
    with tempfile.TemporaryDirectory() as folder:
        model.to(dtype).save_pretrained(folder)
        size = sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))
    assert size <= most, f"{size} bytes were written, {most} promised"
    cut = report.vocabulary or {}
    if given.made:
        given.made.mkdir(parents=True, exist_ok=True)
        about = {"row": key, "vocabulary": cut.get("tokens_after"), "fingerprint": report.provenance.get("fingerprint")}
        save_masks(given.made / f"{name_of(key)}.safetensors", report.masks, about)
    added, heard = own.beyond(dense), own.per_byte()
    return {
        "params_before": report.params_before,
        "params_after": report.params_after,
        "bytes_asked": most,
        "bytes": size,
        "realised_sparsity": report.realised_sparsity,
        "gone_whole": sum(layer.get(kind) == 0 for layer in report.layers for kind in ("kv_groups", "channels")),
        "tokens_of_vocabulary": cut.get("tokens_after"),
        "tokens_ordered_by": "expected use" if cut else None,  # beyond those of the text; by merges in older rows
        "vocabulary_nats_per_byte_held_out": cut.get("nats_per_byte"),
        "vocabulary_tried": cut.get("tried"),
        "nats_per_byte_dense": dense.per_byte().value,
        "nats_per_byte": heard.value,
        "nats_per_byte_stderr": heard.stderr,
        "nats_per_byte_added": added.value,
        "nats_per_byte_added_stderr": added.stderr,
        "texts": added.n,
        "calibration_tokens": report.num_tokens,
        "seconds": made,
    }


def key_of(spec: str, axes: str, given: argparse.Namespace) -> Row:
    """What tells a row from the others."""
    asked = options_of(axes, given).get("vocabulary")
    own = (Path(given.model).name, spec.partition("=")[0], axes, given.share, asked, given.effort)
    return dict(zip(KEYS, (*own, given.tokens, given.items), strict=True))


def name_of(key: Row) -> str:
    return "-".join(str(key[name]) for name in ("model", "task", "axes", "share", "effort"))


def rows_of(*files: Path) -> list[Row]:
    """Of all files that are there; of rows with one key the first."""
    found: dict[str, Row] = {}
    for file in files:
        for row in json.loads(file.read_text())["rows"] if file.is_file() else []:
            found.setdefault(str([row[name] for name in KEYS]), row)
    return list(found.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("tasks", nargs="*", metavar="TASK=PATH")
    parser.add_argument("--share", type=float, default=0.5, help="of the dense model's bytes")
    parser.add_argument("--axes", nargs="+", default=["layers", "heads", "drop", "vocabulary", "vocabulary+heads"])
    parser.add_argument("--vocabulary", default="auto")
    parser.add_argument("--effort", default="standard")
    parser.add_argument("--tokens", type=int, default=16384, help="of calibration text")
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--made", type=Path, help="a folder for the masks")
    parser.add_argument("--take", type=Path, nargs="+", default=[], help="files whose rows are taken over")
    parser.add_argument("--out", type=Path, default=Path("results/quality/equal_bytes.json"))
    given = parser.parse_args()
    rows = rows_of(given.out, *given.take)
    write_json(given.out, {"kind": KIND, "rows": rows} | provenance())
    for spec in given.tasks:
        wanted = [key_of(spec, axes, given) for axes in given.axes]
        missing = [key for key in wanted if not any(all(old.get(k) == key[k] for k in KEYS) for old in rows)]
        if not missing:
            continue
        settings = Evaluation(metric="loss", num_items=given.items)
        dense = Heard.of(*loader.load_for_work(given.model, **LOADING), spec, settings)
        for key in missing:
            where = {name: value for name, value in provenance().items() if name in ("commit", "machine", "versions")}
            row = key | measure(key, spec, given, dense) | {"made_on": where}
            rows = [*rows, row]
            write_json(given.out, {"kind": KIND, "rows": rows} | provenance())
            print(json.dumps({k: v for k, v in row.items() if k != "made_on"}, indent=2), flush=True)


if __name__ == "__main__":
    main()
