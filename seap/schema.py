"""What artefacts of ours must say: their metadata, checked by types before anything of it is used.

msgspec checks; what is read stays the plain dict that it was, with entries that no schema names.
"""

import json
import math
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from seap.errors import UserError

AGAIN = "make it again"
T = TypeVar("T")

Count = Annotated[int, Meta(ge=0, le=1 << 53)]
Number = Annotated[float, Meta(ge=-1e300, le=1e300)]
Share = Annotated[float, Meta(ge=0, le=1)]
MaybeNumber = Number | None
MaybeText = str | None


class Identity(Struct, kw_only=True):
    """Which model an artefact is of (`calibration.identity`). What a command needs, it asks for (`needed`)."""

    model: str | None = None
    fingerprint: str | None = None
    structure: str | None = None
    samples: list[Number] | None = None
    key: str | None = None


class Stats(Identity, kw_only=True):
    task: str
    num_rows: Count | None = None
    num_tokens: Count | None = None
    second_moments: bool | None = None
    parts: list[str] | None = None
    data_hash: str | None = None
    moments: str | None = None
    dtype: str | None = None
    source: str | None = None


class Mask(Identity, kw_only=True):
    tasks: list[str] | None = None
    method: str | None = None
    options: dict[str, Any] | None = None
    num_tokens: Count | None = None
    realised_sparsity: Share | None = None
    sparsity: Number | None = None
    pruned_before: dict[str, Any] | None = None
    task: str | None = None
    own_share: Number | None = None


class Router(Identity, kw_only=True):
    tasks: list[str]
    depth: Annotated[int, Meta(ge=0, le=1 << 20)]
    threshold: float
    limit: float | None  # null where there is none
    max_prompt_tokens: Annotated[int, Meta(ge=1, le=1 << 40)]
    report: dict[str, Any] | None = None
    held_distance: Number | None = None

    def __post_init__(self) -> None:
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise ValueError("`tasks` must be names, each once")
        if math.isnan(self.threshold) or math.isnan(self.limit or 0.0):
            raise ValueError("`threshold` and `limit` must be numbers")


class Step(Struct):
    sparsity: Number
    estimate: Number
    upper: Number
    confidence: Number
    kept: bool


class Promised(Struct):
    n: Count
    estimate: Number


class Promise(Struct):
    kind: str
    words: str
    confidence: Number
    steps: list[Step]
    tasks: dict[str, Promised]


class Corpus(Struct):
    source: str = ""


class Cut(Struct):
    """What went of the vocabulary."""

    tokens_before: Count
    tokens_after: Count
    params_before: Count
    params_after: Count
    tokenizer: str
    asked: Count | str
    tolerance: MaybeNumber = None
    covered: MaybeNumber = None
    nats_per_byte: dict[str, Number] = {}


class Target(Struct, kw_only=True):
    """What was asked of a whole model in bytes, memory or milliseconds, and what was met."""

    asked: str
    cost: str
    before: Number
    most: Number
    after: Number
    context: Count | None = None
    batch: Count | None = None


class Chosen(Struct):
    score: str
    allocate: str
    mask: str
    compensate: str


class Damage(Struct):
    """What the cut did to the loss of a little text."""

    loss_before: Number
    loss_after: Number
    kl: Number
    tokens: Count
    text: str


class Earlier(Struct, kw_only=True):
    """Of a model that had been pruned already."""

    model: MaybeText = None
    tasks: list[str] | None = None
    method: MaybeText = None
    base: MaybeText = None
    base_params: Count | None = None
    removed_of_base: MaybeNumber = None


class Provenance(Struct, kw_only=True):
    """seap.json of a pruned checkpoint."""

    model: str
    method: str
    tasks: list[str]
    layers: list[dict[str, Count]]
    options: Chosen
    target_sparsity: Number
    realised_sparsity: Number
    total_sparsity: Number
    non_embedding_sparsity: Number
    params_before: Count
    params_after: Count
    num_tokens: Count
    seconds: Number
    versions: dict[str, str | None]
    corpora: dict[str, Corpus] = {}
    promise: Promise | None = None
    vocabulary: Cut | None = None
    target: Target | None = None
    damage: Damage | None = None
    pruned_before: Earlier | None = None
    command: str = ""
    exported: str | None = None
    notes: list[str] = []


class Row(Struct, kw_only=True):
    """Of a comparison: a network tested on a task."""

    method: str
    task: str
    target_sparsity: Number
    seed: Count
    loss: Number
    made_for: MaybeText = None
    control: MaybeText = None
    realised_sparsity: MaybeNumber = None
    total_sparsity: MaybeNumber = None
    loss_stderr: MaybeNumber = None
    loss_n: MaybeNumber = None
    ppl: MaybeNumber = None
    acc: MaybeNumber = None
    acc_stderr: MaybeNumber = None
    acc_norm: MaybeNumber = None
    acc_norm_stderr: MaybeNumber = None
    acc_metric: MaybeText = None
    n: MaybeNumber = None
    kl: MaybeNumber = None
    kl_stderr: MaybeNumber = None
    agreement: MaybeNumber = None
    agreement_stderr: MaybeNumber = None
    calibration_tokens: MaybeNumber = None
    params_after: MaybeNumber = None
    steps: MaybeNumber = None
    data_hash: MaybeText = None
    test_hash: MaybeText = None
    layers: list[dict[str, MaybeNumber]] | None = None


class EvaluatedRow(Struct, kw_only=True):
    task: str = ""
    loss: MaybeNumber = None
    loss_stderr: MaybeNumber = None
    ppl: MaybeNumber = None
    acc: MaybeNumber = None
    acc_stderr: MaybeNumber = None
    agreement: MaybeNumber = None
    n: MaybeNumber = None
    added_loss: MaybeNumber = None
    dense: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.loss is not None and (self.loss_stderr is None or self.ppl is None or not self.task):
            raise ValueError("a row with `loss` needs `task`, `loss_stderr` and `ppl`")
        if self.acc is not None and (self.acc_stderr is None or self.n is None):
            raise ValueError("a row with `acc` needs `acc_stderr` and `n`")


class Evaluated(Struct):
    """What `seap eval --json` prints."""

    model: str
    rows: list[EvaluatedRow]


METADATA: dict[str, type[Struct]] = {"stats": Stats, "mask": Mask, "network": Mask, "router": Router}


def check(value: Any, kind: type[Any], what: str, todo: str = AGAIN) -> None:
    """Raise UserError `WHAT: … at `$.tasks[0]`; TODO` unless a value of JSON is of this type."""
    try:
        msgspec.convert(value, kind, strict=True)
    except (msgspec.ValidationError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise UserError(f"{what} is damaged, or another version's: {first(error)}; {todo}") from error
    if (place := not_finite(value)) is not None:
        raise UserError(f"{what} is damaged: {place} is no number; {todo}")


def converted(value: Any, kind: type[T], what: str, todo: str = AGAIN) -> T:
    """A value of JSON as a dataclass or the like, whose own checks count too."""
    try:
        return msgspec.convert(value, kind, strict=True)
    except (msgspec.ValidationError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise UserError(f"{what} are damaged, or another version's: {first(error)}; {todo}") from error


def first(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def not_finite(value: Any, place: str = "$") -> str | None:
    """Where a NaN stands. Infinity is said by routers, whose limit may be none."""
    if isinstance(value, float):
        return place if math.isnan(value) else None
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return next((found for key, part in parts if (found := not_finite(part, f"{place}[{key!r}]"))), None)


def parsed(text: str | bytes, what: str, todo: str = AGAIN) -> Any:
    """A value of JSON."""
    try:
        found = json.loads(text)
        raw = (text if isinstance(text, bytes) else text.encode(errors="replace")).lower()
        if b"\\ud" in raw or b"\\u0000" in raw:
            _check_characters(found)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{what} can't be read as JSON ({first(error)}); {todo}") from error
    return found


def _check_characters(value: Any) -> None:
    """Raise ValueError for half of a surrogate pair and for NUL, which no path and no page may hold."""
    text = json.dumps(value, ensure_ascii=False)
    text.encode()
    if "\\u0000" in text:
        raise ValueError("a string with the character NUL")


def read_json(path: Path, todo: str = AGAIN) -> Any:
    """The JSON of a file. Raises UserError where it can't be read."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror or error}; {todo}") from error
    return parsed(content, str(path), todo)


def about_of_file(path: Path, metadata: str, kinds: Any, formats: str) -> tuple[str, dict[str, Any]]:
    """The kind and the checked metadata of one of our safetensors files."""
    found = parsed(metadata, f"{path}: its metadata")
    if (
        not isinstance(found, dict)
        or not isinstance(found.get("kind"), str)
        or not isinstance(found.get("about"), dict)
    ):
        raise UserError(f"{path}: its metadata has no `kind` and `about`; {AGAIN}")
    kind, about = found["kind"], found["about"]
    if kind not in METADATA:
        raise UserError(f"{path} holds {kind!r}; this seap knows {', '.join(METADATA)}")
    if kinds is not None and kind != kinds:
        raise UserError(f"{path} holds {kind}, expected {kinds}")
    if found.get("format") != formats:
        raise UserError(f"{path} has format {found.get('format')!r}, this seap reads {formats}; make the file again")
    return kind, about


def check_about(path: Path, kind: str, about: dict[str, Any]) -> None:
    """Raise UserError unless the metadata of a file is what its kind says."""
    check(about, METADATA[kind], f"{path}: its metadata")


def needed(path: Path, about: Any, *names: str) -> None:
    """Raise UserError where metadata that may lack these entries does."""
    missing = [name for name in names if about.get(name) is None]
    if missing:
        raise UserError(f"{path}: its metadata has no {', '.join(missing)}; make it again")
