"""Optimal brain surgeon: units are removed in the order in which the least error is left *after* compensation.

With G = (C + λI)⁻¹ of the inputs' covariance, removing the inputs g of a unit and refitting all others costs
trace(W_g (G_gg)⁻¹ W_gᵀ) in output error (Hassibi and Stork, 1993; structured as in Kurtic et al., ZipLM, 2023, eq. 4):
for a channel ‖W_i‖² / G_ii. After each removal W and G are those of what is left, so that of two units that say the
same one stays. Where there are many units several go in one round.
Shapes: C inputs of the consumer, O outputs, U units of s inputs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from seap.activations.moments import Moments
from seap.compensation.damped import ROWS, factor_of, inverse_of

DAMPING = 1e-3  # over the mean of the covariance's diagonal
ROUNDS = 48  # a round removes at most one 48th of what is left, at least one unit
FEW_UNITS = 1000  # above them rounds are half as many


@dataclass(frozen=True)
class Removal:
    """Units in the order of their removal, and the output error that each adds."""

    order: Tensor  # int64 (U,)
    added: Tensor  # float64 (U,)

    def scores(self) -> Tensor:
        """(U,): the added error, raised where a later unit added less, so that sorting by it gives the order."""
        raised = torch.cummax(self.added, 0).values
        steps = 1 + 1e-9 * torch.arange(1, len(raised) + 1, dtype=torch.float64, device=raised.device)
        scores = torch.empty_like(raised)
        scores[self.order] = raised.clamp_min(1e-300) * steps
        return scores


def removal(weight: Tensor, moments: Moments, unit_inputs: int, *, rounds: int | None = None) -> Removal:
    """Remove all units of an axis one after the other. weight (O, C) float64."""
    units, place = weight.shape[1] // unit_inputs, weight.device
    if not moments.m2.any():  # an expert that no token was routed to
        return Removal(torch.arange(units, device=place), torch.zeros(units, dtype=torch.float64, device=place))
    inverse = inverse_of(factor_of(lambda: moments.covariance, DAMPING))
    weight = weight.clone()
    rounds = rounds or (ROUNDS if units <= FEW_UNITS else ROUNDS // 2)
    left, there = torch.arange(units, device=place), torch.ones(units, dtype=torch.bool, device=place)
    order, added = [], []
    while there.any():
        costs = removal_costs(weight, inverse, unit_inputs).masked_fill(~there, torch.inf)
        chosen = torch.topk(costs, max(int(there.sum()) // rounds, 1), largest=False, sorted=True).indices
        order.append(left[chosen])
        added.append(costs[chosen])
        _remove_(weight, inverse, chosen, unit_inputs)
        there[chosen] = False
        if there.sum() < 0.7 * len(there):  # what is gone is dropped now and then, since copies cost more than sums
            stays = there.repeat_interleave(unit_inputs)
            weight, inverse = weight[:, stays], _left(inverse, stays)
            left, there = left[there], there[there]
    return Removal(torch.cat(order), torch.cat(added))


def removal_costs(weight: Tensor, inverse: Tensor, unit_inputs: int) -> Tensor:
    """(U,): trace(W_g (G_gg)⁻¹ W_gᵀ) of every unit. weight (O, C), inverse (C, C)."""
    if unit_inputs == 1:
        return weight.square().sum(0) / inverse.diagonal()
    costs = weight.new_empty(weight.shape[1] // unit_inputs)
    for unit, columns in enumerate(weight.split(unit_inputs, 1)):  # one by one: MKL's LU of a batch may hang
        inputs = slice(unit * unit_inputs, (unit + 1) * unit_inputs)
        costs[unit] = (columns * torch.linalg.solve(inverse[inputs, inputs], columns.t()).t()).sum()
    return costs


def _left(matrix: Tensor, stays: Tensor) -> Tensor:
    """Rows and columns (C, C) of a contiguous matrix that stay, in its own memory: a wide axis's takes half a GB."""
    kept = stays.nonzero().flatten()
    left = matrix.view(-1)[: len(kept) ** 2].view(len(kept), len(kept))
    for start in range(0, len(kept), ROWS):  # what is written has been read: no row moves down
        left[start : start + ROWS] = matrix[kept[start : start + ROWS]][:, kept]
    return left


def _remove_(weight: Tensor, inverse: Tensor, chosen: Tensor, unit_inputs: int) -> None:
    """Refit what is left: W − W_g G_gg⁻¹ G_g and G − G_·g G_gg⁻¹ G_g·. What goes becomes 0, and 1 on G's diagonal."""
    gone = (chosen[:, None] * unit_inputs + torch.arange(unit_inputs, device=chosen.device)).flatten()
    step = torch.linalg.solve(inverse[gone][:, gone], inverse[gone])
    weight.addmm_(weight[:, gone], step, alpha=-1)
    inverse.addmm_(inverse[:, gone], step, alpha=-1)
    weight[:, gone], inverse[gone], inverse[:, gone] = 0, 0, 0
    inverse[gone, gone] = 1
