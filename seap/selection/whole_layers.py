"""Whole layers: which of them go, and how that is said in masks.

ShortGPT (Men et al., 2024, arXiv 2403.03853) removes the layers of least block influence at once, without mending
anything. Here the number of layers comes from the sparsity, a fraction of all prunable parameters as everywhere: the
fewest layers that remove at least that much. What was removed is said with what was asked.

A mask says so under `layers.3.block`, one bool; the layer's axes then keep nothing.
"""

from collections.abc import Collection, Mapping

import torch

from seap.errors import UserError
from seap.models.arch import Arch
from seap.models.axes import BLOCK, Masks
from seap.scoring.score import Scores
from seap.selection.budgets import Budgets, is_protected
from seap.selection.options import Pruning


def layer_budgets(arch: Arch, options: Pruning, scores: Scores) -> Budgets:
    """All units of every axis, or none where the layer goes: the lowest scores first, and among equals the first layer.

    A layer scores the sum over its axes. Raises UserError where even all layers but one are too little.
    """
    num_layers, target = len(arch.layers), options.sparsity * arch.prunable_params
    worth = {
        layer: sum(float(scores[axis.key].sum()) for axis in arch.layer_axes(layer)) for layer in range(num_layers)
    }
    free = [layer for layer in worth if not is_protected(layer, num_layers, options)]
    gone, removed = set[int](), 0
    for layer in sorted(free, key=lambda layer: worth[layer]):
        if removed >= target - 0.5 or len(gone) == num_layers - 1:
            break
        gone.add(layer)
        removed += arch.layer_params(layer)
    if removed < target - 0.5:
        first, last = options.protected(num_layers)
        protected = f"; {first} first and {last} last layers are protected" if first or last else ""
        raise UserError(
            f"sparsity {options.sparsity} can't be met by whole layers: at most {removed / arch.prunable_params:.3f} "
            f"can be removed, since one of {num_layers} layers must stay{protected}; lower --sparsity"
        )
    return {axis.key: 0 if axis.layer in gone else axis.units for axis in arch.axes}


def with_blocks(masks: Masks) -> Masks:
    """Masks with an entry for each layer of which no axis keeps anything."""
    layers = {key.rpartition(".")[0] for key in masks}
    kept = {key.rpartition(".")[0] for key, mask in masks.items() if mask.any()}
    return masks | {f"{layer}.{BLOCK}": torch.zeros(1, dtype=torch.bool) for layer in layers - kept}


def dropped_layers(masks: Mapping[str, torch.Tensor]) -> set[int]:
    """The layers that masks remove whole."""
    return {int(key.split(".")[1]) for key, mask in masks.items() if key.endswith(f".{BLOCK}") and not mask.any()}


def refuse_whole_layers(dropped: Collection[int] | bool, what: str) -> None:
    """Raise UserError where whole layers go. what: that holds all networks by the dense model's layers."""
    if dropped:
        raise UserError(
            f"{what} keeps every task's network by the layers of the dense model, so none can have fewer of them; "
            "choose units in place of --allocate whole-layers, or prune once per task, with seap prune"
        )
