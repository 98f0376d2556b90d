"""What is cut, how much of it, and how. Imports no torch, so that --help is quick.

Field docstrings become the help texts of the command line.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from seap.methods import (
    CHOICES,
    CLOSED_FORMS,
    EFFORTS,
    MEASURED,
    METHODS,
    NEEDS_ACTIVATIONS,
    RECONSTRUCTING,
    RUNNING,
    Allocate,
    AxisName,
    Compensate,
    Convention,
    CurvesFrom,
    Drop,
    Effort,
    EffortName,
    Heads,
    MaskOf,
    Method,
    Score,
)
from seap.selection.checks import check_choices
from seap.selection.targets import Cost, implied_cost
from seap.shares import FIRST, Share, share, size_in_bytes, speed_up


def _rounding(_: Any, tokens: Sequence[Any]) -> int:
    """`auto` on the command line is 0."""
    value = tokens[0].value
    if value != "auto" and not value.isdecimal():
        raise ValueError("must be a number of channels, such as 64, or auto")
    return 0 if value == "auto" else int(value)


@dataclass(frozen=True, kw_only=True)
class Amount:
    """How much is cut, and by which method."""

    sparsity: Annotated[Share, FIRST] = 0.5
    """Share of all q, k, v, o, gate, up and down parameters to remove, from 0 to below 1: 0.5 or 50%."""
    target_size: Annotated[float | str | None, FIRST] = None
    """In place of a sparsity: most bytes of the weights that are saved, embedding and output layer too, as 200MB."""
    target_speed: Annotated[float | str | None, FIRST] = None
    """In place of a sparsity: how many times as fast as the dense model a token is to be written here, as 1.8x."""
    method: Annotated[str, Parameter(help=f"{', '.join(METHODS)}."), FIRST] = "seap"


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What is cut and how, beside the method and how much: `Pruning` has these and checks them."""

    score: Score | None = None
    """How units are ranked."""
    allocate: Allocate | None = None
    """How the sparsity is spread over the layers. one-width: the same widths in all of them, as stock classes want;
    global: one list of all units by score; iterative: the same in --steps, with new gradients after each;
    whole-layers: layers go as they are, so that what is left is a stock checkpoint with fewer of them."""
    mask: MaskOf | None = None
    """One task's mask, a general one of several tasks (scores normalised, or raw as published), or of pooled text."""
    compensate: Compensate | None = None
    """What makes up for the removed units."""
    sequential: Annotated[bool | None, Parameter(negative="--no-sequential")] = None
    """Refit what is left, layer after layer, on the pruned model's own activations (not with --compensate none)."""
    sparsity_convention: Convention | None = None
    """true: a fraction of all prunable parameters. seap-reference: SEAP's code, where less is really removed."""
    weights: dict[str, float] | None = None
    """Weights of the tasks in a general mask, as --weights.gsm8k 3; 1 where not named."""
    axes: tuple[AxisName, ...] | None = None
    """What to cut: kv_groups, channels, expert_channels (with whole experts); by default all that method and family
    allow."""
    experts: int | Literal["auto", "keep"] = "auto"
    """How many experts every layer of a mixture of experts keeps, by how strongly the task uses them. auto drops those
    that add less than a fifth of what their layer's experts add on average; keep drops none. Their channels are cut in
    any case, to one width in a layer, for what is left of the sparsity. With --allocate one-width auto drops none."""
    worst_task: bool = False
    """Choose the tasks' weights on held-out text so that the task that loses most loses least, in a general mask."""
    mix: float | Literal["auto"] = 0.0
    """General text beside the task's, as a multiple of the task's tokens; auto chooses it on held-out text."""
    logistic_k: float = 1.0
    """Steepness of the logistic layer sparsity; the published command line has 0.8."""
    logistic_x0: float = 0.3
    """Relative depth of its middle."""
    protect_first: int | None = None
    """First layers left whole, by default those that the method spares. They count in the sparsity all the same."""
    protect_last: int | None = None
    """Last layers left whole, by default those that the method spares."""
    min_kv_groups: int = 1
    """KV groups that every layer keeps."""
    min_channels: int = 32
    """MLP channels that every layer keeps."""
    drop: Drop = "none"
    """What may also go whole where that costs least, with its norm and its KV cache: a layer's attention, its MLP, or
    both (with --allocate damage or search). The mean of what it wrote stays, unless --compensate none."""
    heads: Heads = "groups"
    """How attention is cut: KV groups with all their query heads; or query: groups, and query heads in those that stay,
    equally many of each group of a layer (with --allocate damage or search)."""
    effort: Annotated[EffortName, FIRST] = "standard"
    """What is spent on the choice of units and widths: quick (closed forms, no refit), standard, thorough. Options in
    detail that are left out come from it, and so do the search and the refit of methods that have them."""
    curves: CurvesFrom | None = None
    """How the damage of an axis at a width is known: closed, from moments alone; measured, by a forward pass."""
    cost: Cost = "params"
    """What --sparsity is a share of: the layers' parameters; or, of the whole model with its vocabulary, the bytes that
    are saved, the memory of weights and KV cache, or the milliseconds of a token as measured here."""
    context: int = 1024
    """Tokens in the KV cache that --cost memory and milliseconds are of."""
    batch: int = 1
    """Sequences at a time that they are of."""
    fisher_tokens: int | None = None
    """Calibration tokens on which the loss's sensitivity is measured (--score obs-fisher, or curves in closed form),
    forward and back."""
    probe_tokens: int | None = None
    """Held-out calibration tokens that damage is measured on (--allocate damage or search)."""
    search_evaluations: int | None = None
    """Trials of --allocate search, each a forward pass over the probe tokens."""
    descents: int | None = None
    """Steps of --allocate search down the slopes that widths have where all axes are cut, each a pass forward and back.
    """
    solve_device: str = "auto"
    """Where systems in float64 are solved: auto (the model's GPU if it solves them no slower than the CPU), cpu, cuda:1
    …; what doesn't fit in its memory is solved on the CPU."""
    steps: int | None = None
    """Steps of --allocate iterative (GISP), each forward and back over the whole text; the paper's has 112 for 7 B."""
    round_to: Annotated[int, Parameter(converter=_rounding), FIRST] = 1
    """Keep a multiple of so many MLP channels in every layer: 64 or 128 for GPUs, 256 for GGUF K-quants; auto measures
    what pays on the device at hand (0 in Python)."""


@dataclass(frozen=True, kw_only=True)
class Pruning(Choices, Amount):
    """What is cut, how much of it, and how. Options left out come from --method."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "sparsity", share("--sparsity", self.sparsity))
        if self.target_size is not None:
            object.__setattr__(self, "target_size", size_in_bytes("--target-size", self.target_size))
        if self.target_speed is not None:
            object.__setattr__(self, "target_speed", speed_up("--target-speed", self.target_speed))
        object.__setattr__(self, "cost", implied_cost(self.target_size, self.target_speed, self.cost))
        check_choices(self)

    def resolved(self) -> Method:
        """The method with this run's own choices in place of the preset's."""
        preset = METHODS[self.method]
        own = {name: getattr(self, name) for name in (*CHOICES, "sequential")}
        chosen = {name: value for name, value in own.items() if value is not None}
        if "sparsity_convention" in chosen:
            chosen["convention"] = chosen.pop("sparsity_convention")
        effort = EFFORTS[self.effort]
        if preset.allocate == "search" and not effort.searches:
            preset = replace(preset, allocate="damage")
        preset = replace(preset, sequential=preset.sequential and effort.refits)
        method = replace(preset, **chosen)
        return replace(method, sequential=method.sequential and method.compensate != "none")

    @property
    def spent(self) -> Effort:
        """The effort with this run's own choices in place of the dial's."""
        names = ("curves", "search_evaluations", "probe_tokens", "fisher_tokens", "steps", "descents")
        own = {name: getattr(self, name) for name in names}
        return replace(EFFORTS[self.effort], **{name: value for name, value in own.items() if value is not None})

    @property
    def deciding(self) -> dict[str, Any]:
        """The options that decide the result: all but where it is computed."""
        return {name: value for name, value in asdict(self).items() if name != "solve_device"}

    @property
    def cut_axes(self) -> tuple[str, ...] | None:
        """Names of the axes that are cut, this run's or the method's; all that the family allows with None."""
        return METHODS[self.method].axes if self.axes is None else self.axes

    def protected(self, num_layers: int) -> tuple[int, int]:
        """How many first and last layers are left whole."""
        spared = [int(part if part >= 1 else part * num_layers) for part in METHODS[self.method].spared]
        first, last = self.protect_first, self.protect_last
        return spared[0] if first is None else first, spared[1] if last is None else last

    @property
    def closed_curves(self) -> bool:
        """Whether damage comes from moments."""
        return self.resolved().allocate in MEASURED and self.spent.curves == "closed"

    @property
    def needs_sensitivity(self) -> bool:
        return self.resolved().score == "obs-fisher" or self.closed_curves

    @property
    def needs_scores_of_activations(self) -> bool:
        return self.resolved().score in NEEDS_ACTIVATIONS

    @property
    def needs_rows(self) -> bool:
        """Whether a stage runs the model on the calibration text once more."""
        method = self.resolved()
        runs = method.allocate in MEASURED or method.sequential or method.behind or method.score in RUNNING
        return runs or self.needs_sensitivity

    @property
    def needs_text(self) -> bool:
        """Whether these choices look at activations at all."""
        method = self.resolved()
        return self.needs_scores_of_activations or method.compensate != "none" or method.allocate in MEASURED

    @property
    def needs_second_moments(self) -> bool:
        method = self.resolved()
        return method.score in RECONSTRUCTING or method.compensate in CLOSED_FORMS or self.closed_curves

    def unused(self) -> list[str]:
        """Options set away from their default that have no effect on this run."""
        method, changed = self.resolved(), {f.name for f in fields(self) if getattr(self, f.name) != f.default}
        notes = []
        if method.allocate != "logistic":
            notes += [f"--{name.replace('_', '-')}" for name in ("logistic_k", "logistic_x0") if name in changed]
        if method.mask not in ("general", "general-raw") or method.score in RUNNING:  # of all rows, each once
            notes += [f"--{name.replace('_', '-')}" for name in ("weights", "worst_task") if name in changed]
        if not self.needs_sensitivity and "fisher_tokens" in changed:
            notes.append("--fisher-tokens")
        if not self.needs_second_moments and "solve_device" in changed:
            notes.append("--solve-device")
        if method.allocate == "whole-layers":
            limits = ("min_kv_groups", "min_channels", "round_to", "experts")
            notes += [f"--{name.replace('_', '-')}" for name in limits if name in changed]
        if method.allocate not in MEASURED:
            notes += [f"--{name.replace('_', '-')}" for name in ("probe_tokens", "curves") if name in changed]
        dialled = self.needs_sensitivity or METHODS[self.method].sequential or method.allocate == "iterative"
        if "effort" in changed and not dialled:
            notes.append("--effort")
        if method.allocate != "iterative" and "steps" in changed:
            notes.append("--steps")
        if method.allocate != "search":
            notes += [f"--{name.replace('_', '-')}" for name in ("search_evaluations", "descents") if name in changed]
        if self.cost not in ("memory", "milliseconds"):
            notes += [f"--{name}" for name in ("context", "batch") if name in changed]
        if self.sequential and method.compensate == "none":
            notes.append("--sequential without compensation")
        return notes
