"""Least squares between two streams: what a linear must become when its inputs or its targets are another model's.

Sums of products are all that is kept of the tokens. λ, and whether to change anything at all, is chosen on held-out
rows, by the error of the fit at some outputs (`compensate.judged`). Shapes: N tokens, D hidden size (outputs of a
consumer), k kept inputs.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from seap.activations.ranks import Ranks, agreed, exchanged, gathered, summed
from seap.compensation.compensate import Repair, judged, lowest
from seap.compensation.damped import solve_damped
from seap.models.solving import Solver

DAMPING = (1e-3, 1e-2, 1e-1, 1.0)  # λ over the mean of the covariance's diagonal
ALL = slice(None)  # outputs


@dataclass
class CrossMoments:
    """Sums of inputs h (k), targets t (D) and their products, where systems are solved; centred when read, in float64.

    Products of h are float32, as they are made.
    """

    count: int = 0
    sums: list[Tensor] = field(default_factory=list)  # h, t, hhᵀ, thᵀ, t² of each output
    solver: Solver = field(default_factory=Solver)
    has_means: bool = True  # otherwise all is about zero, and no bias is fitted

    def update_(self, h: Tensor, t: Tensor) -> None:
        h = h.float()
        t = t.to(h.device).float()
        sums = [part.sum(0, dtype=torch.float64).mul_(self.has_means) for part in (h, t)]
        new = [*sums, h.t() @ h, t.t() @ h, t.double().square().sum(0)]
        self.sums = self.solver(_added, self.sums, new, stays=True)
        self.count += len(h)

    @property
    def means(self) -> tuple[Tensor, Tensor]:
        return self.sums[0] / self.count, self.sums[1] / self.count

    @property
    def centred(self) -> tuple[Tensor, Tensor]:
        """C_hh (k, k) and C_Th (D, k)."""
        h, t = self.means
        inner, cross = self.about_zero
        return inner.addr_(h, h, alpha=-1), cross.addr_(t, h, alpha=-1)  # in place: a wide axis's take half a GB

    @property
    def about_zero(self) -> tuple[Tensor, Tensor]:
        """E[h hᵀ] (k, k) and E[t hᵀ] (D, k)."""
        inner, cross = (self.sums[i].to(torch.float64, copy=True).div_(self.count) for i in (2, 3))
        return inner, cross

    def judging(self) -> "Judging":
        (h, t), (inner, cross) = self.means, self.centred
        return Judging(h, t, inner, cross, float(self.sums[4].sum()) / self.count - float(t.square().sum()))

    def raw_error(self, weight: Tensor) -> float:
        """E‖t − W h‖², without means."""
        inner, cross = self.about_zero
        explained = ((weight @ inner) * weight).sum() - 2 * (weight * cross).sum()
        return float(self.sums[4].sum()) / self.count + float(explained)

    def at(self, outputs: slice) -> "CrossMoments":
        """The same of some of the targets."""
        h, t, inner, cross, squares = self.sums
        return replace(self, sums=[h, t[outputs], inner, cross[outputs], squares[outputs]])

    def __add__(self, other: "CrossMoments") -> "CrossMoments":
        if not other.count:
            return self
        sums = [a + b for a, b in zip(self.sums, other.sums, strict=True)]
        return replace(self, count=self.count + other.count, sums=sums)


def _added(sums: list[Tensor], new: list[Tensor]) -> list[Tensor]:
    return [a.add_(b) for a, b in zip(sums, new, strict=True)] if sums else new


@dataclass(frozen=True)
class Judging:
    """E‖t − W h − b‖² of any W, b: centred moments of held-out rows."""

    h: Tensor  # (k,)
    t: Tensor  # (D,)
    inner: Tensor  # C_hh (k, k)
    cross: Tensor  # C_Th (D, k)
    spread: float

    def __call__(self, weight: Tensor, bias: Tensor) -> float:
        explained = ((weight @ self.inner) * weight).sum() - 2 * (weight * self.cross).sum()
        return self.spread + float(explained) + float((self.t - weight @ self.h - bias).square().sum())


@dataclass(frozen=True)
class Fitting:
    """What is missing of targets at a weight that is there, and what it is fitted on."""

    h: Tensor  # (k,)
    t: Tensor  # (D,)
    inner: Tensor  # C_hh (k, k)
    missing: Tensor  # C_Th − W₀ C_hh (D, k)
    old: Tensor  # W₀ (D, k)

    @classmethod
    def of(cls, moments: CrossMoments, old: Tensor) -> "Fitting":
        (h, t), (inner, cross) = moments.means, moments.centred
        return cls(h, t, inner, cross - old @ inner, old)

    def at(self, damping: float) -> Repair:
        new = self.old + solve_damped(self.inner, self.missing, damping)
        return Repair(self.t - new @ self.h, new, f"sequential {damping:g}")

    def error(self, damping: float, judge: Judging) -> float:
        tried = self.at(damping)
        assert tried.weight is not None
        return judge(tried.weight, tried.bias)


@dataclass(frozen=True)
class Mapping:
    """M = I + (E[t hᵀ] − E[h hᵀ])(E[h hᵀ] + λI)⁻¹ of any λ."""

    inner: Tensor  # E[h hᵀ] (D, D)
    missing: Tensor  # rows of E[t hᵀ] − E[h hᵀ] (D, D)
    same: Tensor  # these rows of I

    @classmethod
    def of(cls, moments: CrossMoments, outputs: slice = ALL) -> "Mapping":
        inner, cross = moments.at(outputs).about_zero
        same = torch.eye(len(inner), dtype=inner.dtype, device=inner.device)[outputs]
        return cls(inner, cross - inner[outputs], same)

    def at(self, damping: float) -> Tensor:
        return self.same + solve_damped(self.inner, self.missing, damping)

    def error(self, damping: float, judge: CrossMoments) -> float:
        return judge.raw_error(self.at(damping))


def over(moments: CrossMoments, ranks: Ranks) -> CrossMoments:
    """All ranks' sums together, on every one of them; a rank may have none."""
    if ranks.size == 1:
        return moments
    told = exchanged((moments.count, [(part.shape, part.dtype) for part in moments.sums]), ranks)
    like = next((kinds for _, kinds in told if kinds), [])
    own = [part.cpu() for part in moments.sums]  # a rank whose GPU is full has them there
    parts = own or [torch.zeros(shape, dtype=dtype) for shape, dtype in like]
    return replace(moments, count=sum(count for count, _ in told), sums=[summed(part, ranks) for part in parts])


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
    solver, old = fit.solver, (weight if start.weight is None else start.weight).double()
    if not held.count:
        return agreed(lambda: solver(_fitted, fit, held, old, DAMPING[-1]), ranks)
    best = _best_fit(start, fit, held, old, ranks)
    return agreed(lambda: None if best is None else solver(_fitted, fit, held, old, best), ranks)


def _best_fit(start: Repair, fit: CrossMoments, held: CrossMoments, old: Tensor, ranks: Ranks) -> float | None:
    """The damping of least error on held-out rows, None where that of what is there is less; by some outputs."""
    solver, some = fit.solver, judged(len(old))
    fitted = solver(Fitting.of, fit.at(some), old[some], stays=True)
    judge = solver(CrossMoments.judging, held.at(some), stays=True)
    best, least = best_damping(lambda damping: solver(Fitting.error, fitted, damping, judge), ranks)
    return best if least < solver(Judging.__call__, judge, old[some], start.bias[some]) else None


def _fitted(fit: CrossMoments, held: CrossMoments, old: Tensor, damping: float) -> Repair:
    return Fitting.of(fit + held, old).at(damping)


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
    best = _best_map(fit, held, ranks)
    return agreed(lambda: None if best is None else fit.solver(_mapped, fit, held, best), ranks)


def _best_map(fit: CrossMoments, held: CrossMoments, ranks: Ranks) -> float | None:
    """The damping of least error on held-out rows, None where that of leaving h as it is is less; by some outputs."""
    solver, some = fit.solver, judged(len(fit.sums[2]))
    mapped, judge = solver(Mapping.of, fit, some, stays=True), held.at(some)
    best, least = best_damping(lambda damping: solver(Mapping.error, mapped, damping, judge), ranks)
    return best if least < solver(CrossMoments.raw_error, judge, mapped.same) else None


def _mapped(fit: CrossMoments, held: CrossMoments, damping: float) -> Tensor:
    return Mapping.of(fit + held).at(damping)
