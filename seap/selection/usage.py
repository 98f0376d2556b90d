"""How much a task uses each expert, and which experts stay.

The score of an expert is REAP's (Lasby et al., 2025, arXiv 2510.13999): the mean, over the tokens that are routed to
it, of the router's weight times the norm of the expert's output. The weight is the one that the model uses; REAP's
code scales those of a token to a sum of 1, also where the model doesn't. Dropping an expert makes a model smaller but
no token cheaper, since the router then picks another one; cutting channels does both. So by default only experts that
the task hardly uses go whole, and the channels of the others make up the sparsity. Shapes: E experts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from seap.activations.moments import Moments
from seap.errors import UserError
from seap.models.arch import Arch
from seap.models.axes import EXPERT_CHANNELS, Axis
from seap.scoring.score import Scores, unit_scores
from seap.selection.budgets import is_protected
from seap.selection.mask import check_experts
from seap.selection.options import Pruning

HARDLY = 0.2  # of what the layer's experts add on average


@dataclass(frozen=True)
class Usage:
    """What a task makes of a layer's experts."""

    share: Tensor  # (E,): of the tokens, those that are routed to it
    added: Tensor  # (E,): router's weight times norm of the output, the mean over all tokens

    @classmethod
    def of(cls, mean: Tensor) -> "Usage":
        """From the mean (2E,) of the statistics under an axis's `usage_key`."""
        return cls(*mean.chunk(2))

    @property
    def reap(self) -> Tensor:
        """(E,): the mean over the tokens routed to it; 0 for an expert that saw none."""
        return torch.where(self.share > 0, self.added / self.share.clamp_min(1e-300), 0.0)


def keep_experts(
    arch: Arch, options: Pruning, scores: Scores, statistics: Mapping[str, Moments] | None = None
) -> tuple[Axis, ...]:
    """All axes of a model, those of experts with the ones that stay.

    scores rank them where nothing was measured: by the sum over their channels. Raises UserError for a number of
    experts that a layer's router can't do with, or that removes more than the sparsity.
    """
    free = [axis for axis in arch.axes if axis.usage_key and _may_lose_experts(arch, axis, options)]
    method = options.resolved()
    alike = method.allocate == "one-width" and options.experts == "auto"  # auto's number differs from layer to layer
    if options.experts == "keep" or alike or not free or method.convention != "true":
        return arch.axes
    if options.experts == "auto":
        chosen = _hardly_used(arch, free, options, statistics)
    else:
        chosen = {axis.key: _best(arch, axis, options.experts, scores, statistics) for axis in free}
    axes = tuple(axis.with_experts(chosen[axis.key]) if axis.key in chosen else axis for axis in arch.axes)
    _check_dropped(arch, axes, options)
    return axes


def _may_lose_experts(arch: Arch, axis: Axis, options: Pruning) -> bool:
    named = options.cut_axes is None or EXPERT_CHANNELS in options.cut_axes
    return named and not is_protected(axis.layer, len(arch.layers), options)


def _best(
    arch: Arch, axis: Axis, count: int, scores: Scores, statistics: Mapping[str, Moments] | None
) -> tuple[int, ...]:
    """So many experts of a layer, those with the highest scores; among equals the first ones."""
    check_experts(arch, axis, count)
    if statistics:
        ranked = Usage.of(statistics[axis.usage_key].mean).reap
    else:
        ranked = unit_scores(axis, scores[axis.key]).view(axis.experts, axis.units).sum(1)
    order = torch.sort(ranked, descending=True, stable=True).indices
    return tuple(sorted(order[:count].tolist()))


def _hardly_used(
    arch: Arch, axes: Sequence[Axis], options: Pruning, statistics: Mapping[str, Moments] | None
) -> dict[str, tuple[int, ...]]:
    """All experts but those that add less than a fifth of their layer's mean, the least first.

    As many as the router needs stay, and no more go than the sparsity asks for. Nothing goes where nothing is measured.
    """
    if not statistics:
        return {}
    ranked: list[tuple[float, int, Axis]] = []
    for axis in axes:
        added = Usage.of(statistics[axis.usage_key].mean).added
        relative = (added / added.mean().clamp_min(1e-300)).tolist()
        hardly = sorted((value, expert) for expert, value in enumerate(relative) if value < HARDLY)
        spare = axis.experts - arch.experts_of(axis).least
        ranked += [(value, expert, axis) for value, expert in hardly[:spare]]
    left = options.sparsity * arch.prunable_params
    gone: dict[str, set[int]] = {}
    for _, expert, axis in sorted(ranked, key=lambda one: one[:2]):
        left -= axis.units * axis.entry_params
        if left < 0:
            break
        gone.setdefault(axis.key, set()).add(expert)
    by_key = {axis.key: axis for axis in axes}
    return {key: tuple(e for e in range(by_key[key].experts) if e not in out) for key, out in gone.items()}


def _check_dropped(arch: Arch, axes: Sequence[Axis], options: Pruning) -> None:
    """Raise UserError when whole experts alone are more than the sparsity removes."""
    whole, left = (sum(axis.params for axis in some) for some in (arch.axes, axes))
    gone = (whole - left) / arch.prunable_params
    if gone > options.sparsity:
        raise UserError(
            f"--experts {options.experts} alone removes {gone:.4f} of the prunable parameters, more than --sparsity "
            f"{options.sparsity}; raise --sparsity, or keep more experts"
        )
