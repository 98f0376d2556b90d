"""Processes that work on one run together, as `torchrun` starts them: which one this is, and what they tell each other.

All of them run the same stages; each has its part of the text (`deal`), sums are added up (`summed`), and what must be
the same everywhere, though each could work it out alone, is what rank 0 says (`agreed`). Alone, all of it is free.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from seap.errors import UserError, first_line

PATIENCE = timedelta(hours=12)  # for ranks that are slower; one that is gone is noticed at once
MEETING = timedelta(minutes=10)  # for ranks that haven't come yet

T = TypeVar("T")


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

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    def owns(self, index: int) -> bool:
        """Whether the thing of this number is this rank's."""
        return index % self.size == self.rank

    def deal(self, things: Sequence[T]) -> list[T]:
        """This rank's part of what all have alike."""
        return [thing for index, thing in enumerate(things) if self.owns(index)]


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
    with _in_touch(ranks):
        dist.init_process_group(backend, timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def _in_touch(ranks: Ranks) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise UserError(
            f"rank {ranks.rank} of {ranks.size} lost touch with another rank, which is gone or out of reach "
            f"({first_line(error)}); the one that stopped first says why"
        ) from error


def agreed(find: Callable[[], T], ranks: Ranks) -> T:
    """What rank 0 finds; the others don't look."""
    if ranks.size == 1:
        return find()
    told: list[Any] = [find() if ranks.is_first else None]
    with _in_touch(ranks):
        dist.broadcast_object_list(told, src=0)
    found: T = told[0]
    return found


def exchanged(value: T, ranks: Ranks) -> list[T]:
    """Every rank's value, in the order of the ranks."""
    told: list[Any] = [value] * ranks.size
    if ranks.size > 1:
        with _in_touch(ranks):
            dist.all_gather_object(told, value)
    return told


def gathered(found: Mapping[str, T], ranks: Ranks) -> dict[str, T]:
    """What the ranks found of their parts, put together."""
    together: dict[str, T] = {}
    for part in exchanged(dict(found), ranks):
        together |= part
    return together


def summed(values: Tensor, ranks: Ranks) -> Tensor:
    """The sum over the ranks, on every one of them."""
    if ranks.size > 1:
        values = values.contiguous()
        with _in_touch(ranks):
            dist.all_reduce(values)
    return values
