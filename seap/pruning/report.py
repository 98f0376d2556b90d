"""What a pruning did, in numbers, and what made it."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from seap.activations.calibration import fingerprint
from seap.activations.stats import Statistics
from seap.environment import command_line, versions
from seap.files import digest
from seap.methods import MEASURED
from seap.models.arch import describe, embedding_params
from seap.models.axes import Masks
from seap.selection.mask import budgets_of, realised_sparsity
from seap.selection.options import Pruning
from seap.text.corpus import Corpus
from seap.text.options import Calibration
from seap.vocabulary.options import Vocabulary


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a pruning did. Sparsities are fractions removed: of the prunable, of all, of all but embeddings."""

    model: str
    method: str
    tasks: tuple[str, ...]
    target_sparsity: float
    realised_sparsity: float
    total_sparsity: float
    non_embedding_sparsity: float
    params_before: int
    params_after: int
    layers: list[dict[str, int]]
    num_tokens: int
    seconds: float
    notes: tuple[str, ...]
    provenance: dict[str, Any]
    masks: Masks = field(repr=False)
    vocabulary: dict[str, Any] | None = None  # what went of it, where any did

    def to_dict(self) -> dict[str, Any]:
        """Flat, for JSON; without the masks."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "masks"}
        return values | values.pop("provenance")


@dataclass
class Run:
    """What a run was asked for, and what it measured on the way."""

    pruning: Pruning
    calibration: Calibration
    corpora: dict[str, Corpus] = field(default_factory=dict)
    statistics: dict[str, Statistics] = field(default_factory=dict)
    general: Statistics | None = None  # of the text that is mixed in
    vocabulary: Vocabulary = field(default_factory=Vocabulary)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Size:
    """Parameters of a model, tied ones once: all, and those of the embeddings."""

    params: int
    embeddings: int

    @classmethod
    def of(cls, model: Any) -> "Size":
        return cls(sum(p.numel() for p in model.parameters()), embedding_params(model))


@dataclass(frozen=True)
class Before:
    """A model's numbers before it is cut by masks."""

    size: Size
    fingerprint: str
    realised_sparsity: float
    layers: list[dict[str, int]]

    @classmethod
    def of(cls, model: Any, masks: Masks) -> "Before":
        return cls(Size.of(model), fingerprint(model), realised_sparsity(describe(model), masks), widths(model, masks))


def build_report(model: Any, before: Before, masks: Masks, run: Run, *, target: float, seconds: float) -> Report:
    """The report on a model that has been cut."""
    size, after = before.size, Size.of(model)
    skipped = {name: corpus.skipped for name, corpus in run.corpora.items() if corpus.skipped}
    left_out = [f"{name}: {number} texts shorter than two tokens were left out" for name, number in skipped.items()]
    left_out += [
        f"{corpus.name}: {corpus.uncounted} texts without a token that counts were left out"
        for corpus in run.corpora.values()
        if corpus.uncounted
    ]
    return Report(
        model=getattr(model.config, "_name_or_path", "") or "unnamed",
        method=run.pruning.method,
        tasks=tuple(run.statistics),
        target_sparsity=target,
        realised_sparsity=before.realised_sparsity,
        total_sparsity=1 - after.params / size.params,
        non_embedding_sparsity=1 - (after.params - after.embeddings) / (size.params - size.embeddings),
        params_before=size.params,
        params_after=after.params,
        layers=before.layers,
        num_tokens=sum(next(iter(part.values())).count for part in run.statistics.values()),
        seconds=seconds,
        notes=(*run.notes, *left_out),
        masks=masks,
        provenance=provenance(before.fingerprint, run) | _dequantized(model),
    )


def _dequantized(model: Any) -> dict[str, str]:
    """What file the model's weights were made from, where they were quantized in it."""
    read_from = getattr(model.config, "dequantized_from", None)
    return {} if read_from is None else {"dequantized_from": read_from}


def choices(options: Pruning) -> dict[str, Any]:
    """What each stage does in this run, whether chosen, the method's or the effort's."""
    method, spent = options.resolved(), asdict(options.spent)
    chosen = {name: getattr(method, name) for name in ("score", "allocate", "mask", "compensate", "convention")}
    if method.allocate == "iterative":
        return chosen | {"steps": spent["steps"]}
    if not options.needs_sensitivity and method.allocate not in MEASURED:
        return chosen
    return chosen | {name: spent[name] for name in spent if name not in ("searches", "refits", "steps")}


def provenance(identity: str, run: Run) -> dict[str, Any]:
    """What made the result: options as they were resolved, text, versions, command."""
    corpora = run.corpora.values()
    hashes = [corpus.data_hash for corpus in corpora]
    return {
        "options": asdict(run.pruning) | choices(run.pruning),
        "calibration": asdict(run.calibration),
        "corpora": {c.name: c.told for c in corpora},
        "fingerprint": identity,
        "key": digest([identity, asdict(run.pruning), asdict(run.calibration), hashes]),
        "versions": versions(),
        "command": command_line(),
    }


def widths(model: Any, masks: Masks) -> list[dict[str, int]]:
    """Units kept in each layer: `[{"kv_groups": 4, "channels": 352}, …]`."""
    arch = describe(model)
    layers: list[dict[str, int]] = [{} for _ in arch.layers]
    for key, count in budgets_of(arch.axes, masks).items():
        _, layer, name = key.split(".")
        layers[int(layer)][name] = count
    return layers
