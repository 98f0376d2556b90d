"""Calibration on several processes: each takes its share of the rows, and the moments are added up at the end.

Under `torchrun` every process holds the model, and the processes talk once, at the end: counts and means are added up,
so that every rank can move its sums of squares to the common mean, and then those. The result is that of one process up
to float64 rounding, whatever the number of ranks.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from seap.activations.calibration import calibrate as measure
from seap.activations.layerwise import HELD_PERIOD
from seap.activations.moments import Moments, outer
from seap.activations.stats import Statistics
from seap.errors import UserError, first_line
from seap.text.corpus import Corpus
from seap.text.options import Calibration

PATIENCE = timedelta(hours=12)  # for ranks that are slower; one that is gone is noticed at once


@dataclass(frozen=True)
class Ranks:
    """Which process this is, and of how many."""

    rank: int = 0
    size: int = 1

    @classmethod
    def here(cls) -> "Ranks":
        """As `torchrun` says; alone without it. Raises UserError for numbers that make no sense."""
        try:
            return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
        except ValueError as error:
            raise UserError(f"RANK and WORLD_SIZE must be numbers, as torchrun sets them: {error}") from error

    @classmethod
    def of(cls, text: str) -> "Ranks":
        """`0/4` → the first of four. Raises UserError for anything else."""
        part, _, size = text.partition("/")
        if not (part.isdecimal() and size.isdecimal() and int(part) < int(size)):
            raise UserError(f"--shard {text}: must be I/N with I from 0 to N-1, such as 0/4")
        return cls(int(part), int(size))


def share(rows: Sequence[Any], ranks: Ranks) -> tuple[Any, ...]:
    """A process's part of the rows: in whole periods of held-out rows, so that the same ones are held out as of all."""
    return tuple(row for i, row in enumerate(rows) if i // HELD_PERIOD % ranks.size == ranks.rank)


def local_device(device: str) -> str:
    """`auto` under torchrun on a machine with GPUs is this process's own GPU."""
    place = os.environ.get("LOCAL_RANK")
    return f"cuda:{place}" if device == "auto" and place is not None and torch.cuda.is_available() else device


@contextlib.contextmanager
def joined(ranks: Ranks) -> Iterator[None]:
    """In touch with the other processes while the block runs; nothing for one alone."""
    if ranks.size == 1 or dist.is_initialized():
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


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
    told = _exchange({"failed": failed, "like": _shapes(found)}, ranks)
    for rank, other in enumerate(told):
        if other["failed"]:
            raise UserError(f"rank {rank} of {ranks.size} failed: {other['failed']}")
    shapes = [other["like"] for other in told if other["like"]]  # of the ranks that had rows
    device = model.device if model.device.type == "cuda" else torch.device("cpu")
    total = Statistics(rows=corpus.rows, on_disk=bool(found is not None and found.on_disk))
    for key, (size, blocks, _) in shapes[0].items():
        mine = found[key] if found is not None else None
        total[key] = _added(mine, size, blocks, any(one[key][2] for one in shapes), device)
    return total


def agreed(value: Any, ranks: Ranks) -> Any:
    """What rank 0 says."""
    if ranks.size == 1:
        return value
    told = [value]
    dist.broadcast_object_list(told, src=0)
    return told[0]


def _exchange(value: dict[str, Any], ranks: Ranks) -> list[dict[str, Any]]:
    told: list[Any] = [None] * ranks.size
    try:
        dist.all_gather_object(told, value)
    except RuntimeError as error:
        raise UserError(
            f"rank {ranks.rank} of {ranks.size} lost touch with another rank, which is gone or out of reach "
            f"({first_line(error)}); torchrun says which one stopped first"
        ) from error
    return told


def _shapes(found: Statistics | None) -> dict[str, tuple[int, int, bool]]:
    """axis key → inputs, blocks of co-moments (0 without), whether rows are held out."""
    if found is None:
        return {}
    return {
        key: (moments.mean.numel(), moments.num_blocks if moments.co is not None else 0, moments.held is not None)
        for key, moments in found.items()
    }


def _added(mine: Moments | None, size: int, blocks: int, held: bool, device: torch.device) -> Moments:
    """All ranks' moments together."""
    empty = Moments.zeros(size, second=blocks > 0, blocks=max(blocks, 1))
    total = _reduced(mine or empty, device)
    if held:
        total.held = _reduced((mine.held if mine is not None else None) or empty, device)
    return total


def _reduced(mine: Moments, device: torch.device) -> Moments:
    """Chan, Golub and LeVeque (1979) for all ranks at once: sums of squares about the common mean add up."""
    counted = torch.cat([mine.mean * mine.count, torch.tensor([float(mine.count)], dtype=torch.float64)]).to(device)
    dist.all_reduce(counted)
    count = round(float(counted[-1]))
    mean = (counted[:-1] / max(count, 1)).cpu()
    delta = mine.mean - mean
    m2 = _sum(mine.m2 + mine.count * delta.square(), device)
    co = None
    if mine.co is not None:
        co = _sum(mine.co.double() + mine.count * outer(delta, mine.num_blocks), device)
    return Moments(count, mean, m2, co)


def _sum(values: Tensor, device: torch.device) -> Tensor:
    placed = values.to(device)
    dist.all_reduce(placed)
    return placed.cpu()
