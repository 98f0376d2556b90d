"""Compensation: what the kept weights can do about the removed units, in closed form.

- `bias` (FLAP, An et al., 2024, eq. 8): the removed inputs of a consumer are replaced by their mean over the
  calibration tokens, b = W_d · E[h_d], added to the bias that the consumer may have.
- `ridge`: the removed inputs are predicted from the kept ones by least squares on centred second moments,
  W' = W_k + W_d · C_dk (C_kk + λI)⁻¹ and b = W · E[h] − W' · E[h_k] (the closed form of SliceGPT's and OBC's
  reconstructions; Frantar and Alistarh, 2022, eq. 3 for all removed inputs at once). λ is chosen on held-out rows.
- `nystrom` (MoDeGPT, arXiv 2408.09632, algorithm 1): the same on second moments about zero, without a bias, and with a
  λ that only keeps the matrix from being singular, in place of the paper's pseudo-inverse.

Shapes: C inputs of the consumer, k of them kept, O outputs. W_k and W_d are its columns of kept and removed inputs.
"""

import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from seap.activations.fitted import Fitted
from seap.activations.moments import ROWS, Moments
from seap.allocation import give_back
from seap.compensation.damped import solve_made
from seap.models.arch import Arch
from seap.models.axes import Axis, Masks
from seap.models.residency import as_computed
from seap.models.solving import Solver, solver_of

PIECE = 1 << 17  # numbers of a weight that are float64 at a time: 1 MB, which stays in the processor's cache
DAMPING = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # λ over the mean of the covariance's diagonal
UNTESTED_DAMPING = 1e-2  # where no row is held out to choose it on
NEARLY_ZERO = 1e-6  # where λ isn't to shrink anything
FEW_TOKENS = 32  # an expert that saw fewer isn't refitted
JUDGED = 256  # outputs of a consumer, at least, whose error a damping is chosen by


@dataclass(frozen=True)
class Repair:
    """What a consumer becomes: its bias grows by `bias` (O,); `weight` (O, k) takes the place of the kept columns.

    And, after a sequential refit, what the linears that write the axis become: W ← W · `inputs` (D, D).
    """

    bias: Tensor
    weight: Tensor | None = None
    about: str = "bias"
    inputs: Tensor | None = None

    def as_stored(self) -> "Repair":
        """With matrices in float32, which weights are written from."""
        weight, inputs = (None if part is None else part.float() for part in (self.weight, self.inputs))
        return replace(self, weight=weight, inputs=inputs)


Repairs = dict[str, Repair]  # axis key → float64; float32 where they are ready
Compensation = Callable[[Tensor, Moments, Tensor], Repair]  # weight (O, C), its inputs' moments, keep bool (C,)
Source = Mapping[str, Moments]  # axis key → moments, read one axis at a time


def fitting_key(axis: Axis, source: Container[str]) -> str:
    """Under which a source has an axis's second moments."""
    return axis.normed_key if axis.normed_key in source else axis.key


def fitting(axis: Axis, source: Source) -> Moments:
    """The moments that reconstruction goes by: about zero where the consumer has no bias to carry a mean."""
    moments = source[fitting_key(axis, source)]
    return moments.about_zero() if axis.usage_key else moments


def kept_inputs(axis: Axis, mask: Tensor) -> Tensor:
    """Bool (C,): the consumer's inputs that stay with the kept units, or with single query heads."""
    return mask.repeat_interleave(axis.num_inputs // mask.numel())


def map_inputs(weight: Tensor, inputs: Tensor) -> Tensor:
    """W · M, for a linear (O, D) whose input is to be mapped by M (D, D) first; in float32, in the weight's dtype."""
    return (weight.float() @ inputs.to(weight.device).float()).to(weight.dtype)


def mean_bias(weight: Tensor, moments: Moments, keep: Tensor) -> Repair:
    """FLAP's bias. weight (O, C) of any float dtype, which becomes float64 a few rows at a time; keep bool (C,)."""
    missing = moments.mean.masked_fill(keep, 0)
    rows = max(PIECE // weight.shape[1], 1)
    return Repair(torch.cat([part.double() @ missing for part in weight.split(rows)]))


def ridge(weight: Tensor, moments: Moments, keep: Tensor, damping: float) -> Repair:
    """Least squares on the kept inputs with this damping, within each block of the moments.

    weight (O, C), keep bool (C,).
    """
    weight = weight.double()
    parts, size = moments.split(), keep.numel() // moments.num_blocks
    columns = zip(weight.split(size, 1), parts, keep.split(size), strict=True)
    fitted = torch.cat([_ridge(part, own, kept, damping) for part, own, kept in columns], 1)
    return Repair(weight @ moments.mean - fitted @ moments.mean[keep], fitted, f"ridge {damping:g}")


def _ridge(weight: Tensor, moments: Moments, keep: Tensor, damping: float) -> Tensor:
    """The kept columns (O, k), fitted."""
    if keep.all() or not keep.any():
        return weight[:, keep]
    cross = weight[:, ~keep] @ moments.between(~keep, keep)
    return weight[:, keep] + solve_made(partial(moments.between, keep, keep), cross, damping)


def output_error(weight: Tensor, moments: Moments, keep: Tensor, repair: Repair) -> float:
    """E‖W h − W' h_k − b‖² over the rows of the moments: what is left of the error after a repair.

    Of moments in blocks, as if inputs of different blocks were uncorrelated.
    """
    off = weight.clone()
    off[:, keep] -= weight[:, keep] if repair.weight is None else repair.weight
    shift = off @ moments.mean - repair.bias
    parts = zip(off.split(keep.numel() // moments.num_blocks, 1), moments.split(), strict=True)
    return sum(_left_of(part, own) for part, own in parts) + float(shift.square().sum())


def _left_of(weight: Tensor, moments: Moments) -> float:
    """tr(W C Wᵀ) of W (O, C), some columns of C at a time."""
    inputs = torch.arange(weight.shape[1], device=weight.device)
    return sum(float(((weight @ moments.between(inputs, some)) * weight[:, some]).sum()) for some in inputs.split(ROWS))


def judged(outputs: int) -> slice:
    """Outputs, evenly spread over all, that stand for them where one damping is chosen for all of them."""
    return slice(None, None, max(outputs // JUDGED, 1))


def ridge_or_bias(weight: Tensor, moments: Moments, keep: Tensor) -> Repair:
    """Ridge with the damping that is best on held-out rows, refitted on all; bias where that is better on them."""
    weight = weight.double()
    if moments.held is None or moments.held.count == 0:
        return ridge(weight, moments, keep, UNTESTED_DAMPING)
    fit, held, some = Fitted.of(moments), moments.held, weight[judged(len(weight))]
    plain = output_error(some, held, keep, mean_bias(some, fit.without_matrix, keep))
    best, least = lowest(DAMPING, held_out_error(some, fit, held, keep))
    return ridge(weight, moments, keep, best) if least <= plain else mean_bias(weight, moments, keep)


def held_out_error(weight: Tensor, fit: Moments | Fitted, held: Moments, keep: Tensor) -> Callable[[float], float]:
    """damping → `output_error` on held-out moments of `ridge` on others: of what is kept alone, the rest once.

    With R = W_d C_dk (C_kk + λI)⁻¹ what ridge adds to the kept columns, and C' the held-out covariance,
    E‖W_d h_d − R h_k‖² = tr(W_d C'_dd W_dᵀ) − 2 tr(R C'_kd W_dᵀ) + tr(R C'_kk Rᵀ), and the shift of the means.
    """
    size = keep.numel() // fit.num_blocks
    fits: Sequence[Moments | Fitted] = fit.split()
    parts = zip(weight.split(size, 1), fits, held.split(), keep.split(size), strict=True)
    blocks = [_Kept.of(*part) for part in parts]
    drift = held.mean - fit.mean
    gone = weight[:, ~keep] @ drift[~keep]

    def error(damping: float) -> float:
        added = [block.added(damping) for block in blocks]
        shift = gone - torch.cat(added, 1) @ drift[keep]
        return sum(block.error(own) for block, own in zip(blocks, added, strict=True)) + float(shift.square().sum())

    return error


@dataclass(frozen=True)
class _Kept:
    """The second moments of a block's kept inputs, and what they share with what goes, on both kinds of rows."""

    inner: Callable[[], Tensor]  # C_kk (k, k), made where it is factored
    fitted_to: Tensor  # W_d C_dk (O, k)
    held_to: Tensor  # W_d C'_dk (O, k)
    held_inner: Tensor  # C'_kk (k, k)
    left: float  # tr(W_d C'_dd W_dᵀ)

    @classmethod
    def of(cls, weight: Tensor, fit: Moments | Fitted, held: Moments, keep: Tensor) -> "_Kept":
        gone = weight[:, ~keep]
        left = float(((gone @ held.between(~keep, ~keep)) * gone).sum())
        to, held_to = (gone @ moments.between(~keep, keep) for moments in (fit, held))
        return cls(partial(fit.between, keep, keep), to, held_to, held.between(keep, keep), left)

    def added(self, damping: float) -> Tensor:
        """R (O, k)."""
        return solve_made(self.inner, self.fitted_to, damping) if self.fitted_to.any() else self.fitted_to

    def error(self, added: Tensor) -> float:
        return self.left + float(((added @ self.held_inner) * added).sum() - 2 * (added * self.held_to).sum())


def lowest(values: Sequence[float], error: Callable[[float], float]) -> tuple[float, float]:
    """The value of least error, and that error, where errors fall and then rise: from the middle downhill."""
    found: dict[int, float] = {}

    def at(place: int) -> float:
        if place not in found:
            found[place] = error(values[place]) if 0 <= place < len(values) else math.inf
        return found[place]

    place = len(values) // 2
    step = -1 if at(place - 1) < at(place) else 1
    while at(place + step) < at(place):
        place += step
    return values[place], at(place)


def nystrom(weight: Tensor, moments: Moments, keep: Tensor) -> Repair:
    """W_k + W_d C_dk C_kk⁻¹, with C about zero. weight (O, C), keep bool (C,)."""
    fitted = ridge(weight.double(), moments.about_zero(), keep, NEARLY_ZERO)
    return replace(fitted, bias=torch.zeros_like(fitted.bias), about="nystrom")


def repair_experts(axis: Axis, weight: Tensor, source: Source, keep: Tensor, repair: Compensation) -> Repair:
    """Each expert's last linear refitted on the tokens that are routed to it, without a bias, which it doesn't have.

    An expert that saw too few tokens keeps its columns as they are. weight (O, C), keep bool (C,).
    """
    moments, fitted, columns = fitting(axis, source), 0, []
    usage = source[axis.usage_key]
    num_tokens = (usage.mean[: axis.experts] * usage.count).round().tolist()
    parts = zip(weight.double().split(axis.units, 1), moments.split(axis.experts), keep.split(axis.units), strict=True)
    for (part, own, kept), seen in zip(parts, num_tokens, strict=True):
        new = None
        if kept.any() and not kept.all() and seen >= FEW_TOKENS:
            empty = own.held is not None and not own.held.m2.any()
            new = repair(part, replace(own, held=None) if empty else own, kept).weight
        fitted += new is not None
        columns.append(part[:, kept] if new is None else new)
    bias = torch.zeros(len(weight), dtype=torch.float64, device=weight.device)
    return Repair(bias, torch.cat(columns, 1), f"{fitted} experts refitted")


COMPENSATIONS: dict[str, Compensation] = {"bias": mean_bias, "ridge": ridge_or_bias, "nystrom": nystrom}


def weight_of(arch: Arch, axis: Axis) -> Tensor:
    """The consumer's weight (O, C) in the dtype of the work, where it is."""
    weight: Tensor = as_computed(arch.model, arch.weight(axis.layer, axis.consumer).detach())
    return weight


def solved_repair(arch: Arch, axis: Axis, weight: Tensor, source: Source, keep: Tensor, repair: Compensation) -> Repair:
    """`repair_axis` where the layer's systems are solved; a repair that solves none is made on the CPU."""
    solver = Solver() if repair is mean_bias else solver_of(arch, axis.layer)
    return solver(repair_axis, axis, weight, source, keep, repair)


def repair_axes(arch: Arch, masks: Masks, source: Source, name: str, *, layer: int | None = None) -> Repairs:
    """The repair of every axis (of one layer) that loses units; axes left whole get none."""
    repairs: Repairs = {}
    for axis in arch.axes if layer is None else arch.layer_axes(layer):
        keep = kept_inputs(axis, axis.mask_of(masks))
        if name in COMPENSATIONS and not keep.all() and can_repair(axis, name, keep):
            weight = arch.weight(axis.layer, axis.consumer).detach()
            give_back()
            repairs[axis.key] = solved_repair(arch, axis, weight, source, keep, COMPENSATIONS[name])
    return repairs


def can_repair(axis: Axis, name: str, keep: Tensor) -> bool:
    """Whether anything can make up for what goes. keep: bool (C,).

    Experts have no bias to add to, so only their weights can. Where nothing stays and a norm stands behind, a bias
    would be made as large as all that was written.
    """
    return (name != "bias" or not axis.usage_key) and (not axis.is_normed or bool(keep.any()))


def repair_axis(axis: Axis, weight: Tensor, source: Source, keep: Tensor, repair: Compensation) -> Repair:
    """The repair of one axis. weight (O, C), keep bool (C,)."""
    if axis.usage_key:
        return repair_experts(axis, weight, source, keep, repair)
    return repair(weight, source[axis.key] if repair is mean_bias else fitting(axis, source), keep)
