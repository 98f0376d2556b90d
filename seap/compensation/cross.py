"""Least squares between two streams: what a linear must become when its inputs or its targets are another model's.

Sums of products are all that is kept of the tokens. λ, and whether to change anything at all, is chosen on held-out
rows, by the error of the fit. Shapes: N tokens, D hidden size (outputs of a consumer), k kept inputs.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from seap.activations.ranks import Ranks, agreed, exchanged, gathered, summed
from seap.compensation.compensate import Repair, lowest
from seap.compensation.damped import solve_damped

DAMPING = (1e-3, 1e-2, 1e-1, 1.0)  # λ over the mean of the covariance's diagonal


@dataclass
class CrossMoments:
    """Sums of inputs h (k), targets t (D) and their products, centred when read; float64."""

    count: int = 0
    sums: list[Tensor] = field(default_factory=list)  # h, t, hhᵀ, thᵀ, t²

    def update_(self, h: Tensor, t: Tensor) -> None:
        h = h.float()
        t = t.to(h.device).float()
        parts = (h.double().sum(0), t.double().sum(0), h.t() @ h, t.t() @ h, t.double().square().sum())
        new = [part.double().cpu() for part in parts]
        self.sums = [a + b for a, b in zip(self.sums, new, strict=True)] if self.sums else new
        self.count += len(h)

    @property
    def means(self) -> tuple[Tensor, Tensor]:
        return self.sums[0] / self.count, self.sums[1] / self.count

    @property
    def centred(self) -> tuple[Tensor, Tensor]:
        """C_hh (k, k) and C_Th (D, k)."""
        h, t = self.means
        return self.sums[2] / self.count - torch.outer(h, h), self.sums[3] / self.count - torch.outer(t, h)

    def judging(self) -> Callable[[Tensor, Tensor], float]:
        """W, b → E‖t − W h − b‖²."""
        (h, t), (inner, cross) = self.means, self.centred
        spread = float(self.sums[4]) / self.count - float(t.square().sum())

        def error(weight: Tensor, bias: Tensor) -> float:
            explained = ((weight @ inner) * weight).sum() - 2 * (weight * cross).sum()
            return spread + float(explained) + float((t - weight @ h - bias).square().sum())

        return error

    def raw_error(self, weight: Tensor) -> float:
        """E‖t − W h‖², without means."""
        explained = ((weight @ self.sums[2]) * weight).sum() - 2 * (weight * self.sums[3]).sum()
        return float(self.sums[4] + explained) / self.count

    def __add__(self, other: "CrossMoments") -> "CrossMoments":
        if not other.count:
            return self
        sums = [a + b for a, b in zip(self.sums, other.sums, strict=True)]
        return CrossMoments(self.count + other.count, sums)


def over(moments: CrossMoments, ranks: Ranks) -> CrossMoments:
    """All ranks' sums together, on every one of them; a rank may have none."""
    if ranks.size == 1:
        return moments
    told = exchanged((moments.count, [part.shape for part in moments.sums]), ranks)
    shapes = next((shapes for _, shapes in told if shapes), [])
    parts = moments.sums or [torch.zeros(shape, dtype=torch.float64) for shape in shapes]
    return CrossMoments(sum(count for count, _ in told), [summed(part, ranks) for part in parts])


def best_damping(error: Callable[[float], float], ranks: Ranks) -> tuple[float, float]:
    """The damping of least error, and that error. Of ranks that have the same sums each tries some."""
    if ranks.size == 1:
        return lowest(DAMPING, error)
    found = gathered({f"{damping:g}": error(damping) for damping in ranks.deal(DAMPING)}, ranks)
    return lowest(DAMPING, lambda damping: found[f"{damping:g}"])


def refit(
    start: Repair,
    fit: CrossMoments,
    held: CrossMoments,
    weight: Tensor,
    ranks: Ranks = Ranks(),  # noqa: B008
) -> Repair | None:
    """The repair nearer to the targets, or None where none is better on held-out rows.

    weight: the kept columns (D, k) of the dense consumer, in place where the repair has none. The repair's bias here is
    the whole bias that the consumer gets on top of the dense one. ranks: that all have these sums, and get one answer.
    """
    old = weight if start.weight is None else start.weight

    def solving(moments: CrossMoments) -> Callable[[float], Repair]:
        (h, t), (inner, cross) = moments.means, moments.centred
        missing = cross - old @ inner

        def solved(damping: float) -> Repair:
            new = old + solve_damped(inner, missing, damping)
            return Repair(t - new @ h, new, f"sequential {damping:g}")

        return solved

    solved, judged = solving(fit), held.judging() if held.count else None

    def error(damping: float) -> float:
        tried = solved(damping)
        assert tried.weight is not None and judged is not None
        return judged(tried.weight, tried.bias)

    if judged is None:
        return agreed(lambda: solved(DAMPING[-1]), ranks)
    best, least = best_damping(error, ranks)
    return agreed(lambda: solving(fit + held)(best) if least < judged(old, start.bias) else None, ranks)


def corrected_inputs(
    fit: CrossMoments,
    held: CrossMoments,
    ranks: Ranks = Ranks(),  # noqa: B008
) -> Tensor | None:
    """M (D, D) so that M h is near t, h being what linears read in the pruned model and t in the dense one.

    M = I + (E[t hᵀ] − E[h hᵀ])(E[h hᵀ] + λI)⁻¹, without means, since most such linears have no bias to carry them. None
    where no λ is better than leaving h as it is on held-out rows, or where none are held out.
    """
    if not held.count:
        return None
    mapped = _mapping(fit)
    best, least = best_damping(lambda damping: held.raw_error(mapped(damping)), ranks)
    eye = torch.eye(fit.sums[2].shape[0], dtype=torch.float64)
    return agreed(lambda: _mapping(fit + held)(best) if least < held.raw_error(eye) else None, ranks)


def _mapping(moments: CrossMoments) -> Callable[[float], Tensor]:
    """damping → M."""
    inner, cross = moments.sums[2] / moments.count, moments.sums[3] / moments.count
    missing, eye = cross - inner, torch.eye(len(inner), dtype=torch.float64)
    return lambda damping: eye + solve_damped(inner, missing, damping)
