"""Sizes in place of sparsities, for many networks: every one the same share of the dense model's bytes."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from seap.errors import UserError
from seap.models.sizes import dtype_on_disk
from seap.pruning.targets import foreseen
from seap.selection.footprint import Footprint, footprint_of, output_of, settled
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


def foreseen_for(model: Any, plan: Any) -> Footprint | None:
    """What the dense model takes with as few tokens as may stay, by which impossible sizes are seen at once."""
    return foreseen(footprint_for(model, plan.pruning), plan.vocabulary, model.config.vocab_size)


def footprint_for(model: Any, pruning: Pruning, smaller: Any = None) -> Footprint | None:
    """Of the dense model as it is saved, where something else than parameters is counted.

    smaller: the same model with fewer tokens, which is what is to be cut.
    """
    if pruning.cost == "params":
        return None
    dtype = dtype_on_disk(model)
    found = footprint_of(model, pruning, dtype)
    return found if smaller is None else found.with_output(output_of(smaller, pruning, dtype))
