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

from seap.damped import solve_damped
from seap.moments import Moments

DAMPING = 1e-3  # over the mean of the covariance's diagonal
ROUNDS = 48  # a round removes at most one 48th of what is left, at least one unit


@dataclass(frozen=True)
class Removal:
    """Units in the order of their removal, and the output error that each adds."""

    order: Tensor  # int64 (U,)
    added: Tensor  # float64 (U,)

    def scores(self) -> Tensor:
        """(U,): the added error, raised where a later unit added less, so that sorting by it gives the order."""
        raised = torch.cummax(self.added, 0).values
        steps = 1 + 1e-9 * torch.arange(1, len(raised) + 1, dtype=torch.float64)
        scores = torch.empty_like(raised)
        scores[self.order] = raised.clamp_min(1e-300) * steps
        return scores


def removal(weight: Tensor, moments: Moments, unit_inputs: int, *, rounds: int = ROUNDS) -> Removal:
    """Remove all units of an axis one after the other. weight (O, C) float64."""
    inverse = solve_damped(moments.covariance, torch.eye(weight.shape[1], dtype=torch.float64), DAMPING)
    left = torch.arange(weight.shape[1] // unit_inputs)
    order, added = [], []
    while len(left):
        costs = removal_costs(weight, inverse, unit_inputs)
        chosen = torch.topk(costs, max(len(left) // rounds, 1), largest=False, sorted=True).indices
        order.append(left[chosen])
        added.append(costs[chosen])
        weight, inverse = _without(weight, inverse, chosen, unit_inputs)
        left = left[_others(chosen, len(left))]
    return Removal(torch.cat(order), torch.cat(added))


def removal_costs(weight: Tensor, inverse: Tensor, unit_inputs: int) -> Tensor:
    """(U,): trace(W_g (G_gg)⁻¹ W_gᵀ) of every unit. weight (O, C), inverse (C, C)."""
    if unit_inputs == 1:
        return weight.square().sum(0) / inverse.diagonal()
    outputs, units = weight.shape[0], weight.shape[1] // unit_inputs
    blocks = inverse.view(units, unit_inputs, units, unit_inputs).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    columns = weight.view(outputs, units, unit_inputs).permute(1, 2, 0)  # (U, s, O)
    return (columns * torch.linalg.solve(blocks, columns)).sum((1, 2))


def _others(chosen: Tensor, units: int) -> Tensor:
    stays = torch.ones(units, dtype=torch.bool)
    stays[chosen] = False
    return stays


def _without(weight: Tensor, inverse: Tensor, chosen: Tensor, unit_inputs: int) -> tuple[Tensor, Tensor]:
    """Weight and inverse of the inputs that are left, refitted: W − W_g G_gg⁻¹ G_g and G − G_·g G_gg⁻¹ G_g·."""
    stays = _others(chosen, weight.shape[1] // unit_inputs).repeat_interleave(unit_inputs)
    taken = inverse[~stays]
    step = torch.linalg.solve(taken[:, ~stays], taken[:, stays])
    refitted = weight[:, stays] - weight[:, ~stays] @ step
    rest = inverse[stays][:, stays] - taken[:, stays].t() @ step
    return refitted, (rest + rest.t()) / 2
