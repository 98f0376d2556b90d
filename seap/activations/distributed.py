"""Calibration on several processes: each takes its share of the rows, and the moments are added up at the end.

Under `torchrun` every process holds the model, and the processes talk once, at the end: counts and means are added up,
so that every rank can move its sums of squares to the common mean, and then those. The result is that of one process up
to float64 rounding, whatever the number of ranks.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from seap.activations.calibration import calibrate as measure
from seap.activations.layerwise import HELD_PERIOD
from seap.activations.moments import Moments, outer
from seap.activations.ranks import Ranks, exchanged, summed
from seap.activations.stats import Statistics
from seap.errors import UserError
from seap.text.corpus import Corpus
from seap.text.options import Calibration


def share(rows: Sequence[Any], ranks: Ranks) -> tuple[Any, ...]:
    """A process's part of the rows: in whole periods of held-out rows, so that the same ones are held out as of all."""
    return tuple(row for i, row in enumerate(rows) if i // HELD_PERIOD % ranks.size == ranks.rank)


def calibrate(model: Any, corpus: Corpus, options: Calibration, ranks: Ranks, *, progress: bool = True) -> Statistics:
    """The statistics of the whole corpus, on every rank. Raises UserError naming the rank that failed or is gone."""
    if ranks.size == 1:
        return measure(model, corpus, options, progress=progress)
    rows = share(corpus.rows, ranks)
    found, failed = None, ""
    try:
        own = replace(corpus, rows=rows) if rows else None
        found = measure(model, own, options, progress=progress and ranks.rank == 0) if own else None
    except UserError as error:
        failed = str(error)
    except Exception as error:
        failed = f"{type(error).__name__}: {error}"
    told: list[dict[str, Any]] = exchanged({"failed": failed, "like": _shapes(found)}, ranks)
    for rank, other in enumerate(told):
        if other["failed"]:
            raise UserError(f"rank {rank} of {ranks.size} failed: {other['failed']}")
    shapes = [other["like"] for other in told if other["like"]]  # of the ranks that had rows
    device = model.device if model.device.type == "cuda" else torch.device("cpu")
    on_disk = bool(found is not None and found.on_disk)
    total = Statistics(rows=corpus.rows, on_disk=on_disk, contrast=corpus.contrast)
    for key, (size, blocks, _) in shapes[0].items():
        mine = found[key] if found is not None else None
        total[key] = _added(mine, size, blocks, any(one[key][2] for one in shapes), device, ranks)
    return total


def _shapes(found: Statistics | None) -> dict[str, tuple[int, int, bool]]:
    """axis key → inputs, blocks of co-moments (0 without), whether rows are held out."""
    if found is None:
        return {}
    return {
        key: (moments.mean.numel(), moments.num_blocks if moments.co is not None else 0, moments.held is not None)
        for key, moments in found.items()
    }


def _added(mine: Moments | None, size: int, blocks: int, held: bool, device: torch.device, ranks: Ranks) -> Moments:
    """All ranks' moments together."""
    empty = Moments.zeros(size, second=blocks > 0, blocks=max(blocks, 1))
    total = _reduced(mine or empty, device, ranks)
    if held:
        total.held = _reduced((mine.held if mine is not None else None) or empty, device, ranks)
    return total


def _reduced(mine: Moments, device: torch.device, ranks: Ranks) -> Moments:
    """Chan, Golub and LeVeque (1979) for all ranks at once: sums of squares about the common mean add up."""

    def total(values: Tensor) -> Tensor:
        return summed(values.to(device), ranks).cpu()

    counted = total(torch.cat([mine.mean * mine.count, torch.tensor([float(mine.count)], dtype=torch.float64)]))
    count = round(float(counted[-1]))
    mean = counted[:-1] / max(count, 1)
    delta = mine.mean - mean
    m2 = total(mine.m2 + mine.count * delta.square())
    co = None
    if mine.co is not None:
        co = total(mine.co.double() + mine.count * outer(delta, mine.num_blocks))
    return Moments(count, mean, m2, co)
