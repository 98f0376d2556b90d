"""What a pruning did, in numbers, and what made it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch

from seap.activations.stats import Statistics
from seap.environment import made_by, versions
from seap.files import digest
from seap.methods import MEASURED
from seap.models.arch import describe, embedding_params
from seap.models.axes import Masks
from seap.models.loader import name_of
from seap.pruning.provenance import Origin, base_card, origin_of, pruned_before
from seap.selection.footprint import Footprint
from seap.selection.mask import ShownMasks, budgets_of, realised_sparsity
from seap.selection.options import Pruning
from seap.selection.targets import target_words
from seap.shown import html_facts, text_table
from seap.text.corpus import Corpus
from seap.text.options import Calibration
from seap.vocabulary.options import Vocabulary


@dataclass(frozen=True, kw_only=True, repr=False)
class Report:
    """What a pruning did. Sparsities are fractions removed: of the prunable, of all, of all but embeddings.

    damage: see `damage.py`; None where no text was at hand. It prints as a short table.
    """

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
    damage: dict[str, Any] | None = None
    masks: Masks = field(repr=False)
    vocabulary: dict[str, Any] | None = None  # what went of it, where any did
    target: dict[str, Any] | None = None  # what was asked and met, where it was bytes, memory or milliseconds
    origin: Origin | None = field(default=None, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Flat, for JSON; without the masks."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("masks", "origin")}
        return values | values.pop("provenance")

    def __repr__(self) -> str:
        return text_table(title_of(self.to_dict()), summary(self.to_dict()))

    def plot_widths(self) -> Any:
        """What each layer keeps, as a Matplotlib figure (seap[report])."""
        from seap.pruning.plots import plot_widths

        return plot_widths(self.masks)

    def _repr_html_(self) -> str:
        return html_facts(title_of(self.to_dict()), summary(self.to_dict()))


def title_of(told: Mapping[str, Any]) -> str:
    return f"{told['model']}, pruned for {', '.join(told['tasks']) or 'no task (weights alone)'}"


def summary(told: Mapping[str, Any]) -> dict[str, str]:
    """A report, as `to_dict` has it, in a few lines."""
    chosen = ", ".join(told["options"][name] for name in ("score", "allocate", "mask", "compensate"))
    target = told.get("target")
    of = f", asked {told['target_sparsity']}" if not target else ""
    found = {
        "model": told["model"],
        "method": f"{told['method']} ({chosen})",
        "tasks": ", ".join(told["tasks"]) or "none: weights alone",
        "sparsity": f"{told['realised_sparsity']:.4f} of the prunable parameters{of}",
        "all parameters": f"{told['params_before']:,} → {told['params_after']:,}, {told['total_sparsity']:.1%} fewer "
        f"({told['non_embedding_sparsity']:.1%} without embeddings)",
    }
    if target:
        found["target"] = target_words(target)
    if before := told.get("pruned_before"):
        found["pruned before"] = before_words(before)
    if told.get("vocabulary"):
        found["vocabulary"] = vocabulary_told(told["vocabulary"])
    if told.get("damage"):
        found["damage"] = damage_words(told["damage"])
    found["measured on"] = f"{told['num_tokens']:,} tokens"
    return found | {"took": f"{told['seconds']:.1f} s"}


def vocabulary_told(cut: Mapping[str, Any]) -> str:
    """`49,152 → 9,472 tokens, 22,855,680 of 28,311,552 parameters fewer, …`"""
    gone = cut["params_before"] - cut["params_after"]
    text = f"{cut['tokens_before']:,} → {cut['tokens_after']:,} tokens, {gone:,} of {cut['params_before']:,} parameters"
    text += " fewer"
    if cut.get("covered") is not None:
        text += f"; {cut['covered']:.1%} of the tokens of held-out text stay"
    if cut.get("nats_per_byte"):
        worst = max(cut["nats_per_byte"].values())
        text += f", which costs it {worst:+.4f} nats per byte"
        text += f" (at most {cut['tolerance']:g} asked)" if cut.get("tolerance") is not None else _weighed(cut)
    return text


def _weighed(cut: Mapping[str, Any]) -> str:
    """What a vocabulary that was chosen together with the layers was weighed against."""
    met = [one for one in cut.get("tried") or [] if "sum" in one]
    own = [one for one in met if one["tokens"] == cut["tokens_after"]]
    if not own:
        return ""
    others = f"; the whole vocabulary would leave {met[-1]['sum']:.4f}" if met[-1] is not own[0] else ""
    return (
        f", chosen with the layers, which by a first look lose {own[0]['layers_nats_per_byte']:.4f} beside it "
        f"({own[0]['sum']:.4f} in all, the least of {len(met)} sizes{others})"
    )


def damage_words(damage: Mapping[str, Any]) -> str:
    """`loss 2.100 → 2.190 (+0.090), KL to the dense model 0.120 nats per token, on 1,024 tokens of held-out text`"""
    before, after = damage["loss_before"], damage["loss_after"]
    return (
        f"loss {before:.3f} → {after:.3f} ({after - before:+.3f}), KL to the dense model {damage['kl']:.3f} nats per "
        f"token, on {damage['tokens']:,} tokens of {damage['text']}"
    )


def before_words(before: Mapping[str, Any]) -> str:
    """Of a model that had been pruned already: what it was at first, and what is gone of that."""
    tasks = ", ".join(before.get("tasks") or []) or "no task"
    words = f"for {tasks}, by {before.get('method')}"
    if before.get("removed_of_base") is not None:
        words += (
            f"; of {before['base']}'s {before['base_params']:,} parameters {before['removed_of_base']:.1%} are gone"
        )
    return words


@dataclass
class Run:
    """What a run was asked for, and what it measured on the way."""

    pruning: Pruning
    calibration: Calibration
    corpora: dict[str, Corpus] = field(default_factory=dict)
    statistics: dict[str, Statistics] = field(default_factory=dict)
    general: Statistics | None = None  # of the text that is mixed in
    vocabulary: Vocabulary = field(default_factory=Vocabulary)
    footprint: Footprint | None = None  # of the model before its layers are cut, where it isn't parameters that count
    saved_as: torch.dtype = torch.float32  # the weights on disk
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
    origin: Origin
    realised_sparsity: float
    layers: list[dict[str, int]]

    @classmethod
    def of(cls, model: Any, masks: Masks) -> "Before":
        return cls(Size.of(model), origin_of(model), realised_sparsity(describe(model), masks), widths(model, masks))

    @property
    def fingerprint(self) -> str:
        return str(self.origin.identity["fingerprint"])


def build_report(
    model: Any,
    before: Before,
    masks: Masks,
    run: Run,
    *,
    target: float,
    seconds: float,
    damage: dict[str, Any] | None = None,
    aimed: dict[str, Any] | None = None,
) -> Report:
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
        model=name_of(model) or "unnamed",
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
        masks=ShownMasks(masks),
        origin=before.origin,
        damage=damage,
        target=aimed,
        provenance=provenance(before.fingerprint, run)
        | _dequantized(model)
        | pruned_before(before.origin, masks, after.params)
        | base_card(model),
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
        "key": digest([identity, run.pruning.deciding, asdict(run.calibration), hashes]),
        "versions": versions(),
        **made_by(),
    }


def widths(model: Any, masks: Masks) -> list[dict[str, int]]:
    """Units kept in each layer: `[{"kv_groups": 4, "channels": 352}, …]`."""
    arch = describe(model)
    layers: list[dict[str, int]] = [{} for _ in arch.layers]
    for key, count in budgets_of(arch.axes, masks).items():
        _, layer, name = key.split(".")
        layers[int(layer)][name] = count
    return layers
