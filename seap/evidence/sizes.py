"""Sizes in place of sparsities, for many networks: every one the same share of the dense model's bytes."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from seap.errors import UserError
from seap.selection.footprint import footprint_of, settled
from seap.selection.options import Pruning


def check_counted(pruning: Pruning, sizes: Sequence[float]) -> None:
    """Raise UserError for amounts that many networks can't have alike."""
    if pruning.target_size is not None or pruning.target_speed is not None:
        raise UserError(
            "several networks come at several sizes or sparsities; give sizes=(…) in bytes or sparsities=(…), and "
            "leave target_size and target_speed to seap prune"
        )
    if sizes and pruning.cost not in ("params", "bytes"):
        raise UserError(f"--target-size counts bytes by itself; leave out --cost {pruning.cost}")


def in_shares(plan: Any, model: Any, dtype: torch.dtype) -> Any:
    """A comparison or a sweep whose sizes are shares of the dense model's bytes, which its sparsities then are of.

    dtype: of the weights on disk. Raises UserError for a size that the dense model has already.
    """
    if not plan.sizes:
        return plan
    counted: Pruning = replace(plan.pruning, cost="bytes")
    whole = footprint_of(model, counted, dtype)
    found = tuple(settled(replace(counted, target_size=size), whole).sparsity for size in plan.sizes)
    return replace(plan, pruning=counted, sparsities=found)


def footprint_for(model: Any, pruning: Pruning) -> Any:
    """Of the dense model as it is saved, where something else than parameters is counted."""
    return None if pruning.cost == "params" else footprint_of(model, pruning, model.config.dtype or model.dtype)
