"""Tensors by name that are made of a model and are too many for memory: each in a file of a folder that goes with them.

What lies there is mapped: it takes memory once it is looked at, until it is told to rest. Where there is little, and
where it lies on a GPU, a shelf is a plain dict.
"""

import contextlib
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from pathlib import Path

import torch
from torch import Tensor, nn

from seap.disk.rooms import unlock
from seap.disk.whole import lasting
from seap.errors import UserError
from seap.models.residency import let_go, page_out, streamed

LARGE = 1 << 30  # bytes of a streamed model's that stay in memory, unless it has a folder for what doesn't
MUCH = 1 << 27  # of one in memory, where the disk has room for more
ROOM = 1.05  # times the bytes: what a disk must have free


class Shelf(MutableMapping[str, Tensor]):
    """Tensors by name, in memory or (with a place) in files of a temporary folder there."""

    def __init__(self, place: Path | None = None, *, out: Callable[[Iterable[Tensor]], None] = page_out) -> None:
        """out: how what rests leaves memory."""
        self._out = out
        self._kept: dict[str, Tensor] = {}
        self._folder: Path | None = None
        if place is not None:
            self._folder, handle = lasting("tensors", place)
            self._remove = weakref.finalize(self, _remove, self._folder, handle)

    @property
    def on_disk(self) -> bool:
        return self._folder is not None

    def put(self, name: str, value: Tensor) -> Tensor:
        """Keep a tensor; returns it as it is kept."""
        if self._folder is None or not value.numel():
            self._kept[name] = value
            return value
        known = self._kept.get(name)
        if known is None or known.shape != value.shape or known.dtype != value.dtype:
            path = self._folder / name
            path.unlink(missing_ok=True)
            _make_room(path, value.nbytes)
            known = torch.from_file(str(path), shared=True, size=value.numel(), dtype=value.dtype).view(value.shape)
            self._kept[name] = known
        known.copy_(value)
        self._out([known])
        return known

    def rest(self, start: str = "") -> None:
        """Give back the memory of all whose name begins so; they are read again when they are looked at."""
        if self.on_disk:
            self._out(value for name, value in self._kept.items() if name.startswith(start))

    def close(self) -> None:
        """Forget all; the files go. Without it they go with the shelf."""
        self._kept.clear()
        if self.on_disk:
            self._remove()

    def __getitem__(self, name: str) -> Tensor:
        return self._kept[name]

    def __setitem__(self, name: str, value: Tensor) -> None:
        self.put(name, value)

    def __delitem__(self, name: str) -> None:
        del self._kept[name]
        if self._folder is not None:
            (self._folder / name).unlink(missing_ok=True)

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)


def _make_room(path: Path, num_bytes: int) -> None:
    """Take the disk's blocks for a file before it is mapped: a write to a map whose disk is full ends the process."""
    if not hasattr(os, "posix_fallocate"):  # not on macOS and Windows
        return
    with path.open("wb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, num_bytes)
        except OSError as error:
            raise UserError(
                f"no room for {num_bytes / 1e9:.3f} GB in {path.parent.parent} ({error.strerror}); name a larger disk "
                "(TMPDIR, or --offload-dir with --stream)"
            ) from error


def _remove(folder: Path, handle: int | None) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    unlock(handle)


def rest(source: Mapping[str, Tensor], start: str) -> None:
    """`Shelf.rest`, where what tensors come from is a shelf."""
    if isinstance(source, Shelf):
        source.rest(start)


def shelf_for(model: nn.Module, num_bytes: float, what: str, *, on_host: bool = False) -> Shelf:
    """A shelf for so much that is made of a model: on disk where that is much, or was asked for of a streamed one.

    on_host: that the CPU has it, wherever the model is; otherwise it is where the model is: on a GPU always in memory,
    on a CPU where the disk has no room.

    Raises UserError, which says what it is for, where the disk has no room for what is too much for memory.
    """
    plan = streamed(model)
    if plan is None:
        own = next(model.parameters(), None)
        on_cpu = on_host or own is None or own.device.type == "cpu"
        on_disk = on_cpu and leaves_memory(num_bytes, on_host=on_host)
    else:
        on_disk = plan.offload_dir is not None or num_bytes > LARGE
    if not on_disk:
        return Shelf()
    place = (plan and plan.offload_dir) or Path(tempfile.gettempdir())
    place.mkdir(parents=True, exist_ok=True)
    if not has_room(place, num_bytes):
        larger = "name a larger disk with --offload-dir"
        if plan is None:
            larger = "set TMPDIR to a larger disk, or use --moments block:1024"
        raise UserError(f"{what} need {num_bytes / 1e9:.1f} GB of disk in {place}, which has less; {larger}")
    return Shelf(place, out=let_go if plan is None else page_out)


def leaves_memory(num_bytes: float, *, on_host: bool = False) -> bool:
    """Whether so much that is made of a model in memory lies in the temporary folder. on_host: as of `shelf_for`."""
    must = on_host and num_bytes > LARGE
    return must or (num_bytes > MUCH and has_room(Path(tempfile.gettempdir()), num_bytes))


def has_room(place: Path, num_bytes: float) -> bool:
    """Whether a disk has so much free, and a little more."""
    return shutil.disk_usage(place).free >= ROOM * num_bytes


@contextlib.contextmanager
def offloading(model: nn.Module) -> Iterator[Callable[[int, Tensor], Tensor]]:
    """(index, hidden states) → the same, in a file where the model's plan has a folder for that; gone afterwards."""
    shelf = shelf_for(model, 0, "hidden states")
    try:
        yield lambda index, hidden: shelf.put(str(index), hidden)
    finally:
        shelf.close()
