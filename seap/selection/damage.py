"""Measured damage: what cutting one axis alone to a few widths does to the model's output on held-out text.

Damage is KL(dense ‖ cut) per token in nats, the kept weights compensated as they will be. The layers before the cut are
not run again. Between the measured widths the root of the damage is interpolated (PCHIP, which stays monotone): output
error grows with the root of KL. Shapes: B rows, T tokens, V vocabulary, C inputs and O outputs of a consumer.
"""

import contextlib
import random
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax
from tqdm import tqdm

from seap.activations.layerwise import Walk, few_logits, finished, resume, split_rows, vocabulary_size
from seap.activations.ranks import Ranks, summed
from seap.compensation.compensate import Repair, map_inputs
from seap.models.arch import Arch
from seap.models.axes import CHANNELS, KV_GROUPS, Axis
from seap.models.modes import evaluation
from seap.models.residency import at_the_end, resident, streamed
from seap.models.shelf import Shelf, shelf_for
from seap.text.rows import cut_to, num_counted

KEPT_SHARES = (0.75, 0.5, 0.3, 0.15)  # of the channels, beside the least that must stay
CACHED_BYTES = 1 << 30  # dense log-probabilities kept in memory between probes; beyond it they are computed anew


@dataclass(frozen=True)
class Curve:
    """Damage of one axis at measured widths, ascending; the last is the whole axis, at 0 with all query heads."""

    widths: tuple[int, ...]
    damage: tuple[float, ...]

    def at(self, widths: Sequence[int]) -> list[float]:
        """Damage at other widths, by interpolation."""
        from scipy.interpolate import PchipInterpolator

        if len(self.widths) == 1:
            return [self.damage[0] for _ in widths]
        roots = torch.tensor(self.damage, dtype=torch.float64).clamp_min(0).sqrt().tolist()
        for i in range(len(roots) - 2, -1, -1):
            roots[i] = max(roots[i], roots[i + 1])  # less width is never better but by noise
        return [max(float(v), 0.0) ** 2 for v in PchipInterpolator(self.widths, roots)(list(widths))]

    def times(self, factor: float) -> "Curve":
        """The same curve, so many times as high."""
        return Curve(self.widths, tuple(factor * value for value in self.damage))


class Cost(Protocol):
    """What an axis costs at widths, in nats per token: a curve, or a slope where all axes are cut."""

    def at(self, widths: Sequence[int]) -> list[float]: ...


Curves = dict[str, Curve]  # curve key → curve
Costs = Mapping[str, Cost]
Cut = tuple[Tensor, Repair | None]  # kept inputs (C,), repair
RepairTo = Callable[[Axis, int], Cut]  # axis, width → what it becomes


@contextlib.contextmanager
def simulated(arch: Arch, axis: Axis, keep: Tensor, repair: Repair | None, *, whole: bool = False) -> Iterator[None]:
    """An axis cut without surgery: channels are left out, and the consumer of heads reads 0 from those that go.

    keep: bool (C,). whole: channels that go are computed all the same, so that one sees what they would say.
    """
    if axis.usage_key:
        experts = arch.experts_of(axis)
        with experts.replaced(experts.cut(keep, None if repair is None else repair.weight)):
            yield
        return
    narrow = axis.name == CHANNELS and not arch.family.transposed and not whole  # transposed ones know their size
    old = arch.weight(axis.layer, axis.consumer)
    keep = keep.to(old.device)
    kept = old[:, keep] if repair is None or repair.weight is None else repair.weight.to(old)
    if not narrow:
        kept = torch.zeros_like(old).index_copy_(1, keep.nonzero().flatten(), kept)
    inputs = None if repair is None else repair.inputs
    with contextlib.ExitStack() as stack:
        bias = None if repair is None else repair.bias
        stack.enter_context(_replaced(arch, axis.layer, axis.consumer, kept, shift=bias))
        for part in [part for part in axis.slices if not part.consumer and not part.values]:
            rows = part.indices(keep) if narrow else None
            if rows is None and inputs is None:
                continue
            weight = arch.weight(axis.layer, part.module)
            weight = weight if rows is None else weight[rows]
            weight = weight if inputs is None else map_inputs(weight, inputs)
            stack.enter_context(_replaced(arch, axis.layer, part.module, weight, rows=rows))
        yield


@contextlib.contextmanager
def simulated_all(
    arch: Arch, axes: Sequence[Axis], keep: Mapping[str, Tensor], repairs: Mapping[str, Repair]
) -> Iterator[None]:
    """Several axes cut at once."""
    with contextlib.ExitStack() as stack:
        for axis in axes:
            stack.enter_context(simulated(arch, axis, keep[axis.key], repairs.get(axis.key)))
        yield


@contextlib.contextmanager
def _replaced(
    arch: Arch, layer: int, module: str, new: Tensor, *, shift: Tensor | None = None, rows: Tensor | None = None
) -> Iterator[None]:
    """A linear with another weight (O, C) for a while, and its bias shifted, or only some rows of it there."""
    linear = arch.linear(layer, module)
    weight, bias = linear.weight, linear.bias
    linear.weight = nn.Parameter(new.t().contiguous() if arch.family.transposed else new, requires_grad=False)
    if shift is not None:
        shift = shift.to(new)
        linear.bias = nn.Parameter(shift if bias is None else bias + shift, requires_grad=False)
    if rows is not None and bias is not None:
        linear.bias = nn.Parameter(bias[rows], requires_grad=False)
    try:
        yield
    finally:
        linear.weight, linear.bias = weight, bias


@dataclass
class Judge:
    """Measures KL from the dense model on held-out rows; the dense model's states are kept.

    Of several ranks each has a part of the rows, and all find the same.
    """

    arch: Arch
    walk: Walk
    states: list[list[Tensor]] = field(default_factory=list)  # per layer (and after the last), per batch
    ranks: Ranks = field(default_factory=Ranks)
    shelf: Shelf = field(default_factory=Shelf)  # where the states are
    remembers: bool = True  # what the dense model says, which is asked for in every trial
    dense: Shelf | None = None  # where that is

    @classmethod
    def on(
        cls,
        arch: Arch,
        rows: Sequence[Sequence[int]],
        *,
        batch_tokens: int,
        ranks: Ranks = Ranks(),  # noqa: B008
        remembers: bool = True,
    ) -> "Judge":
        """Run the dense model once over the rows, in batches of few logits."""
        batch_tokens = few_logits(vocabulary_size(arch), batch_tokens)
        with evaluation(arch.model):
            walk = Walk.start(arch, rows, batch_tokens=batch_tokens, ranks=ranks)
            shelf = shelf_for(arch.model, walk.state_bytes * (len(arch.layers) + 1), "hidden states")
            return cls(arch, walk, walk.states(shelf), ranks=ranks, shelf=shelf, remembers=remembers)

    def expected(self, index: int) -> Tensor:
        """The dense model's log-probabilities (B, T, V) of a batch, to `rest` when they are looked at."""
        name = f"{index}."
        if self.dense is not None and name in self.dense:
            return self.dense[name]
        found = log_softmax(finished(self.arch, self.walk.batches[index], self.states[-1][index]).float(), -1)
        if not self.remembers:
            return found
        if self.dense is None:
            tokens = sum(batch.ids.numel() for batch in self.walk.batches)
            each = found.nbytes // found[..., 0].numel()
            self.dense = shelf_for(self.arch.model, each * tokens, "what the dense model says")
        if self.dense.on_disk or sum(t.nbytes for t in self.dense.values()) + found.nbytes < CACHED_BYTES:
            return self.dense.put(name, found)
        return found

    def rest(self, index: int) -> None:
        """Give back the memory of what the dense model says of a batch, where it is on disk."""
        if self.dense is not None:
            self.dense.rest(f"{index}.")

    def divergence(self, first_layer: int = 0) -> float:
        """KL(dense ‖ model as it is now) per token, when no layer before `first_layer` has changed."""
        assert streamed(self.arch.model) is None, "of a streamed model see `divergence_with`"
        states = self.states[first_layer]
        return self._per_token(
            resume(self.arch, batch, first_layer, states[index]) for index, batch in enumerate(self.walk.batches)
        )

    def divergence_with(self, axes: Sequence[Axis], cut_to: Callable[[Axis], Cut]) -> float:
        """KL(dense ‖ model with these axes cut) per token, without surgery, one layer cut at a time."""
        first = min((axis.layer for axis in axes), default=len(self.arch.layers))
        walk, hidden = self.walk, list(self.states[first])
        for layer in range(first, len(self.arch.layers)):
            cuts = [(axis, *cut_to(axis)) for axis in axes if axis.layer == layer]
            with resident(self.arch, layer), contextlib.ExitStack() as stack:
                for axis, keep, repair in cuts:
                    stack.enter_context(simulated(self.arch, axis, keep, repair))
                hidden = [walk.run(layer, index, states) for index, states in enumerate(hidden)]
        with at_the_end(self.arch):
            return self._per_token(finished(self.arch, walk.batches[i], states) for i, states in enumerate(hidden))

    def _per_token(self, logits: Iterable[Tensor]) -> float:
        """The mean KL of what is found for each batch, over the ranks."""
        found = sum(float(self._summed(index, own)) for index, own in enumerate(logits))
        total, count = summed(torch.tensor([found, self.num_tokens], dtype=torch.float64), self.ranks).tolist()
        return float(total / count)

    @property
    def num_tokens(self) -> int:
        """Of this rank's rows."""
        return sum(int(batch.said.sum()) for batch in self.walk.batches)

    def _summed(self, index: int, logits: Tensor) -> Tensor:
        """KL of logits (B, T, V) of a batch, summed over the tokens that count."""
        expected = self.expected(index).to(logits.device)
        less = log_softmax(logits.float(), -1).sub_(expected).mul_(expected.exp()).sum(-1)  # large: one copy is enough
        self.rest(index)
        return -(less.double() * self.walk.batches[index].said.to(less.device)).sum()


def probe_rows(rows: Sequence[Sequence[int]], num_tokens: int, seed: int) -> list[Sequence[int]]:
    """Held-out rows, drawn by seed and cut to so many tokens; where none is held out, from all rows."""
    return drawn_rows(split_rows(rows)[1] or list(rows), num_tokens, seed)


def drawn_rows(rows: Sequence[Sequence[int]], num_tokens: int, seed: int) -> list[Sequence[int]]:
    """Rows drawn by seed and cut to so many tokens."""
    taken: list[Sequence[int]] = []
    for row in random.Random(seed).sample(rows, len(rows)):
        left = num_tokens - sum(map(num_counted, taken))
        if left < 2:
            break
        taken.append(cut_to(row, left))
    return taken


def whole_curve(axis: Axis, widths: Sequence[int], damage: Sequence[float]) -> Curve:
    """The curve of an axis from its damage at widths below the whole, which costs nothing with all query heads."""
    if axis.curve_key != axis.key:
        return Curve(tuple(widths), tuple(damage))
    return Curve((*widths, axis.units), (*damage, 0.0))


def probe_widths(axis: Axis, least: int, step: int, *, may_go: bool = False) -> list[int]:
    """Widths to measure, below the whole: every number of KV groups up to 8, a few shares of the channels; and 0.

    With fewer query heads, of which all groups aren't the whole, every number of groups.
    """
    none = [0] if may_go else []
    if axis.curve_key != axis.key:
        return list(range(least, axis.units + 1))
    if axis.name == KV_GROUPS and axis.units <= 8:
        return [*none, *range(least, axis.units)]
    shares = {max(round(axis.units * share / step) * step, least) for share in KEPT_SHARES}
    return [*none, *sorted(width for width in shares | {least} if width < axis.units)]


def measure_curves(
    judge: Judge,
    axes: Sequence[Axis],
    least: Mapping[str, int],
    step: int,
    repair_to: RepairTo,
    *,
    may_go: Collection[str] = (),
    progress: bool,
) -> Curves:
    """The damage curve of every axis, each cut alone. step: channels are rounded to a multiple of it.

    may_go: keys of the axes that may lose all their units; their curves begin at 0.
    """
    widths = {a.curve_key: probe_widths(a, least[a.key], step, may_go=a.curve_key in may_go) for a in axes}
    bar = tqdm(total=sum(map(len, widths.values())), desc="damage", unit="probe", disable=not progress, leave=False)
    curves: Curves = {}
    with evaluation(judge.arch.model):
        for axis in axes:
            found = []
            for width in widths[axis.curve_key]:
                with simulated(judge.arch, axis, *repair_to(axis, width)):
                    found.append(judge.divergence(axis.layer))
                bar.update()
            curves[axis.curve_key] = whole_curve(axis, widths[axis.curve_key], found)
    bar.close()
    return curves
