"""The result files of a page, read and checked."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from seap.errors import UserError, missing_extra
from seap.page import schema
from seap.page.numbers import Row
from seap.schema import check as check_types
from seap.schema import read_json

KINDS = ("compare", "analyze", "bench", "sweep")
REQUIRED = {"compare": ("model", "rows"), "analyze": ("model",), "bench": ("rows",), "sweep": ("model", "rows")}
# What each record of a file's lists must have; other keys may be missing.
RECORDS = {
    ("compare", "rows"): ("method", "task", "target_sparsity", "seed", "loss"),
    ("compare", "overlap"): ("method", "sparsity", "axis", "tasks", "jaccard"),
    ("analyze", "overlap"): ("axis", "sparsity", "per_layer"),
    ("analyze", "stability"): ("task", "axis", "sparsity", "num_texts", "jaccard"),
    ("analyze", "enough"): ("task", "num_texts", "jaccard"),
    ("bench", "rows"): ("phase", "batch", "ratio"),
    ("sweep", "rows"): ("task", "realised_sparsity", "added_loss", "ppl", "bytes"),
}


@dataclass(frozen=True)
class Source:
    """One result file."""

    path: Path
    data: dict[str, Any]

    @property
    def kind(self) -> str:
        return str(self.data["kind"])


def check(results: Sequence[Path]) -> None:
    """Raise UserError unless every file is a result that `build` can show, and the extra is installed."""
    read(results)


def read(results: Sequence[Path]) -> list[Source]:
    """The files, each once; raises UserError where they can't be shown together or the extra isn't installed."""
    for package in ("jinja2", "matplotlib"):
        if find_spec(package) is None:
            raise missing_extra(package, "report", "seap report")
    if not results:
        raise UserError(f"no result file given; name at least one JSON file of kind {', '.join(KINDS)}")
    sources = [Source(path, _read_file(path)) for path in dict.fromkeys(results)]
    compared = [s for s in sources if s.kind == "compare"]
    for other in compared[1:]:
        if other.data["model"] != compared[0].data["model"]:
            raise UserError(
                f"{compared[0].path} is about {compared[0].data['model']}, {other.path} about {other.data['model']}; "
                "make one report per model"
            )
    _refuse_repeats(compared)
    return sources


def _read_file(path: Path) -> dict[str, Any]:
    accepted = f"accepted: JSON results of kind {', '.join(KINDS)}, whole as seap wrote them"
    if not path.exists():
        raise UserError(f"no such file: {path}; {accepted}")
    data = read_json(path, accepted)
    kind = data.get("kind") if isinstance(data, dict) else None
    if kind not in KINDS:
        raise UserError(f"{path} has kind {kind!r}; {accepted}")
    for key in REQUIRED[kind]:
        if key not in data:
            raise UserError(f"{path} ({kind}) has no {key!r}; {accepted}")
    for (of, name), keys in RECORDS.items():
        if of == kind:
            _check_records(path, name, data.get(name) or [], keys, accepted)
    check_types(data, schema.KINDS[kind], str(path), accepted)
    return dict(data)


def _check_records(path: Path, name: str, records: Any, keys: Sequence[str], accepted: str) -> None:
    for i, record in enumerate(records if isinstance(records, list) else [None]):
        missing = [k for k in keys if not isinstance(record, dict) or record.get(k) is None]
        if missing:
            raise UserError(f"{path}: {name}[{i}] has no {', '.join(missing)}; {accepted}")


def _identity(row: Row) -> tuple[Any, ...]:
    return tuple(row.get(k) for k in ("method", "task", "made_for", "control", "target_sparsity", "seed"))


def _refuse_repeats(compared: Sequence[Source]) -> None:
    """One row counted twice would look like more evidence. Dense rows may come in every file."""
    seen: dict[tuple[Any, ...], Path] = {}
    for source in compared:
        for row in source.data["rows"]:
            first = seen.setdefault(_identity(row), source.path)
            if first != source.path and row["method"] != "dense":
                what = f"{row['method']} on {row['task']} at {row['target_sparsity']:g}, seed {row['seed']}"
                raise UserError(f"{first} and {source.path} both hold {what}; leave one of them out")
