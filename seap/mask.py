"""Masks: which units of each axis stay. True keeps."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seap.arch import Arch, Axis
from seap.errors import UserError
from seap.files import read_tensors, write_tensors
from seap.score import Scores, unit_scores

Masks = dict[str, Tensor]  # axis key → bool (units,)


def choose_units(axes: Sequence[Axis], scores: Scores, budgets: Mapping[str, int]) -> Masks:
    """Keep the best-scored units of each axis, as many as its budget; among equals the first ones."""
    masks: Masks = {}
    for axis in axes:
        budget = budgets.get(axis.key, axis.units)
        order = torch.sort(unit_scores(axis, scores[axis.key]), descending=True, stable=True).indices
        masks[axis.key] = torch.zeros(axis.units, dtype=torch.bool)
        masks[axis.key][order[:budget]] = True
    return masks


def budgets_of(masks: Masks) -> dict[str, int]:
    return {key: int(mask.sum()) for key, mask in masks.items()}


def removed_params(axes: Sequence[Axis], masks: Masks) -> int:
    """Parameters that the masks take away."""
    return sum(int((~masks[axis.key]).sum()) * axis.unit_params for axis in axes)


def realised_sparsity(arch: Arch, masks: Masks) -> float:
    """Removed over all prunable parameters; protected layers and uncuttable heads count in the latter."""
    return removed_params(arch.axes, masks) / arch.prunable_params


def check_fits(arch: Arch, masks: Masks) -> None:
    """Raise UserError unless the masks are this model's: the same axes, the same numbers of units, none empty."""
    sizes = {axis.key: axis.units for axis in arch.axes}
    found = {key: mask.numel() for key, mask in masks.items()}
    for key in sorted(sizes.keys() | found.keys()):
        if sizes.get(key) != found.get(key):
            raise UserError(
                f"the mask doesn't fit the model: {key} has {found.get(key, 'no')} units in the mask, "
                f"{sizes.get(key, 'no')} in the model"
            )
    for key, mask in masks.items():
        if not mask.any():
            raise UserError(f"{key}: the mask keeps 0 of {mask.numel()} units; at least 1 must remain")


def compose(before: Masks, after: Masks) -> Masks:
    """Masks of the original model from those of a first and of a second pruning."""
    composed = {}
    for key, first in before.items():
        composed[key] = first.clone()
        composed[key][first] = after[key]
    return composed


def save_masks(path: Path, masks: Masks, about: Mapping[str, Any]) -> None:
    write_tensors(path, "mask", masks, about)


def load_masks(path: Path) -> tuple[Masks, dict[str, Any]]:
    return read_tensors(path, "mask")
