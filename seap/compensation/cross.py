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
from seap.compensation.damped import ROWS, solve_made
from seap.models.solving import Solver

DAMPING = (1e-3, 1e-2, 1e-1, 1.0)  # λ over the mean of the covariance's diagonal
ALL = slice(None)  # outputs


@dataclass
class CrossMoments:
    """Sums of inputs h (k), targets t (D) and their products, where systems are solved; centred when read, in float64.

    Products of h are float32, as they are made. A wide axis's hhᵀ takes half a GB in float64: what needs the whole of
    it makes a copy of its own (`inner`), and products with it are made in parts (`times_inner`).
    """

    count: int = 0
    sums: list[Tensor] = field(default_factory=list)  # h, t, hhᵀ, thᵀ, t² of each output
    solver: Solver = field(default_factory=Solver)
    has_means: bool = True  # otherwise all is about zero, and no bias is fitted

    def update_(self, h: Tensor, t: Tensor) -> None:
        h = h.float()
        t = t.to(h.device).float()
        self.sums = self.solver(_added, self.sums, h, t, self.has_means, stays=True)
        self.count += len(h)

    @property
    def means(self) -> tuple[Tensor, Tensor]:
        return self.sums[0] / self.count, self.sums[1] / self.count

    @property
    def cross(self) -> Tensor:
        """C_Th (D, k)."""
        h, t = self.means
        return self.sums[3].to(torch.float64, copy=True).div_(self.count).addr_(t, h, alpha=-1)

    def inner(self) -> Tensor:
        """C_hh (k, k)."""
        h, _ = self.means
        return self.sums[2].to(torch.float64, copy=True).div_(self.count).addr_(h, h, alpha=-1)

    def times_inner(self, weight: Tensor) -> Tensor:
        """W C_hh (O, k) of W (O, k)."""
        h, _ = self.means
        parts = [weight @ columns.double() for columns in self.sums[2].split(ROWS, 1)]
        return torch.cat(parts, 1).div_(self.count).addr_(weight @ h, h, alpha=-1)

    def about_zero(self) -> "CrossMoments":
        """As if both means were 0."""
        return replace(self, sums=[torch.zeros_like(self.sums[0]), torch.zeros_like(self.sums[1]), *self.sums[2:]])

    def error(self, weight: Tensor, bias: Tensor) -> float:
        """E‖t − W h − b‖². weight: (D, k). bias: (D,)."""
        h, t = self.means
        spread = float(self.sums[4].sum()) / self.count - float(t.square().sum())
        explained = (self.times_inner(weight) * weight).sum() - 2 * (weight * self.cross).sum()
        return spread + float(explained) + float((t - weight @ h - bias).square().sum())

    def raw_error(self, weight: Tensor) -> float:
        """E‖t − W h‖², without means."""
        return self.about_zero().error(weight, weight.new_zeros(len(weight)))

    def at(self, outputs: slice) -> "CrossMoments":
        """The same of some of the targets."""
        h, t, inner, cross, squares = self.sums
        return replace(self, sums=[h, t[outputs], inner, cross[outputs], squares[outputs]])

    def take_(self, other: "CrossMoments") -> "CrossMoments":
        """Its rows too; it has none left."""
        if other.count:
            self.sums = [a.add_(b.to(a.device)) for a, b in zip(self.sums, other.sums, strict=True)]
            self.count += other.count
            other.sums, other.count = [], 0
        return self


def _added(sums: list[Tensor], h: Tensor, t: Tensor, has_means: bool) -> list[Tensor]:
    """With a batch's more; in place, once all that takes memory is made."""
    small = [*(part.sum(0, dtype=torch.float64).mul_(has_means) for part in (h, t)), t.double().square().sum(0)]
    if not sums:
        return [*small[:2], h.t() @ h, t.t() @ h, small[2]]
    sums[2].addmm_(h.t(), h)
    sums[3].addmm_(t.t(), h)
    for place, part in zip((0, 1, 4), small, strict=True):
        sums[place] += part
    return sums


@dataclass(frozen=True)
class Fitting:
    """What is missing of targets at a weight that is there, and what it is fitted on."""

    moments: CrossMoments
    missing: Tensor  # C_Th − W₀ C_hh (D, k)
    old: Tensor  # W₀ (D, k)

    @classmethod
    def of(cls, moments: CrossMoments, old: Tensor) -> "Fitting":
        return cls(moments, moments.cross.sub_(moments.times_inner(old)), old)

    def at(self, damping: float) -> Repair:
        h, t = self.moments.means
        new = self.old + solve_made(self.moments.inner, self.missing, damping)
        return Repair(t - new @ h, new, f"sequential {damping:g}")

    def error(self, damping: float, held: CrossMoments) -> float:
        """Of the fit on held-out rows."""
        tried = self.at(damping)
        assert tried.weight is not None
        return held.error(tried.weight, tried.bias)


@dataclass(frozen=True)
class Mapping:
    """M = I + (E[t hᵀ] − E[h hᵀ])(E[h hᵀ] + λI)⁻¹ of any λ."""

    moments: CrossMoments  # about zero
    missing: Tensor  # rows of E[t hᵀ] − E[h hᵀ] (D, D)
    same: Tensor  # these rows of I

    @classmethod
    def of(cls, moments: CrossMoments, outputs: slice = ALL) -> "Mapping":
        moments = moments.at(outputs).about_zero()
        inner = moments.sums[2]
        same = torch.eye(len(inner), dtype=torch.float64, device=inner.device)[outputs]
        return cls(moments, moments.cross.sub_(inner[outputs].double().div_(moments.count)), same)

    def at(self, damping: float) -> Tensor:
        return self.same + solve_made(self.moments.inner, self.missing, damping)

    def error(self, damping: float, held: CrossMoments) -> float:
        return held.raw_error(self.at(damping))


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
    Ends the sums: in the end all rows are fitted, and those held out go to the others.
    """
    solver, old = fit.solver, (weight if start.weight is None else start.weight).double()
    if not held.count:
        return agreed(lambda: solver(_fitted, fit, old, DAMPING[-1]), ranks)
    best = _best_fit(start, fit, held, old, ranks)
    return agreed(lambda: None if best is None else solver(_fitted, fit.take_(held), old, best), ranks)


def _best_fit(start: Repair, fit: CrossMoments, held: CrossMoments, old: Tensor, ranks: Ranks) -> float | None:
    """The damping of least error on held-out rows, None where that of what is there is less; by some outputs."""
    solver, some = fit.solver, judged(len(old))
    fitted = solver(Fitting.of, fit.at(some), old[some], stays=True)
    judge = held.at(some)
    best, least = best_damping(lambda damping: solver(Fitting.error, fitted, damping, judge), ranks)
    return best if least < solver(CrossMoments.error, judge, old[some], start.bias[some]) else None


def _fitted(moments: CrossMoments, old: Tensor, damping: float) -> Repair:
    return Fitting.of(moments, old).at(damping)


def corrected_inputs(
    fit: CrossMoments,
    held: CrossMoments,
    ranks: Ranks = Ranks(),  # noqa: B008
) -> Tensor | None:
    """M (D, D) so that M h is near t, h being what linears read in the pruned model and t in the dense one.

    M = I + (E[t hᵀ] − E[h hᵀ])(E[h hᵀ] + λI)⁻¹, without means, since most such linears have no bias to carry them. None
    where no λ is better than leaving h as it is on held-out rows, or where none are held out. Ends the sums.
    """
    if not held.count:
        return None
    best = _best_map(fit, held, ranks)
    return agreed(lambda: None if best is None else fit.solver(_mapped, fit.take_(held), best), ranks)


def _best_map(fit: CrossMoments, held: CrossMoments, ranks: Ranks) -> float | None:
    """The damping of least error on held-out rows, None where that of leaving h as it is is less; by some outputs."""
    solver, some = fit.solver, judged(len(fit.sums[2]))
    mapped, judge = solver(Mapping.of, fit, some, stays=True), held.at(some)
    best, least = best_damping(lambda damping: solver(Mapping.error, mapped, damping, judge), ranks)
    return best if least < solver(CrossMoments.raw_error, judge, mapped.same) else None


def _mapped(moments: CrossMoments, damping: float) -> Tensor:
    return Mapping.of(moments).at(damping)
