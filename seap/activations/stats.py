"""A task's statistics: the moments of every axis, and the token rows that they were measured on.

With co-moments, a fifth of the rows is also kept apart, as held-out text. Matrices that are large stay on disk, in a
temporary folder or in the statistics file, and come into memory one axis at a time.
"""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load, save
from torch import Tensor

from seap.activations.checks import ROW_TENSORS, check_rows, measured_axes
from seap.activations.moments import EXACT_SIZE, Moments
from seap.disk.rooms import unlock
from seap.disk.whole import lasting
from seap.errors import UserError
from seap.files import read_about, write_safetensors, write_tensors
from seap.models.axes import EXPERTS, NORMED
from seap.text.contrast import NO_CONTRAST, Contrast
from seap.text.rows import CountedRow, SeenRow, counted_of, places_of, seen_of

Rows = tuple[tuple[int, ...], ...]  # token ids, one text (or one packed sequence) a row


class Statistics(MutableMapping[str, Moments]):
    """Axis key, such as layers.3.channels → moments of its consumer's input; and the token rows measured.

    Under layers.3.experts: how often each expert is used, then how strongly (see `usage.py`), without co-moments. Under
    layers.3.channels.normed: the co-moments of an axis with a norm behind it (see `normed.py`), which has none itself.

    contrast: right and wrong choices of the same text, where it is of choices.

    on_disk: moments are written to a temporary folder when they are set and read when they are asked for (so a change
    to what was asked for is lost unless it is set again). The folder goes when the statistics do.
    """

    def __init__(
        self,
        moments: Mapping[str, Moments] | None = None,
        rows: Rows = (),
        *,
        on_disk: bool = False,
        contrast: Contrast = NO_CONTRAST,
    ) -> None:
        self.rows = rows
        self.contrast = contrast
        self.on_disk = on_disk
        self._folder: Path | None = None
        if on_disk:
            self._folder, handle = lasting("moments")
            weakref.finalize(self, _remove, self._folder, handle)
        self._kept: dict[str, Moments | Path] = {}
        for key, value in (moments or {}).items():
            self[key] = value

    @classmethod
    def of_file(cls, path: Path, keys: Iterable[str], rows: Rows, contrast: Contrast) -> Statistics:
        """Those of a statistics file, which stays where it is and is read axis by axis."""
        found = cls(rows=rows, contrast=contrast)
        found.on_disk = True
        found._kept = dict.fromkeys(keys, path)
        return found

    def __getitem__(self, key: str) -> Moments:
        kept = self._kept[key]
        if isinstance(kept, Moments):
            return kept
        with safe_open(kept, framework="pt") as file:
            found = _moments_from(set(file.keys()), file.get_tensor, key)
        if self._folder is None:  # what was written here was looked at then
            _check_values(kept, key, found)
        return found

    def num_blocks(self, key: str) -> int:
        """Of an axis's co-moments, without reading them."""
        kept = self._kept[key]
        if isinstance(kept, Moments):
            return kept.num_blocks
        with safe_open(kept, framework="pt") as file:
            shape = file.get_slice(f"{key}.co").get_shape()
        return 1 if len(shape) == 2 else int(shape[0])

    def __setitem__(self, key: str, moments: Moments) -> None:
        if self._folder is None:
            self._kept[key] = moments.cpu()
            return
        path = self._folder / f"{key}.safetensors"
        _check_values(path, key, moments)
        tensors = _tensors_of(key, moments)
        write_safetensors(path, tensors, {}, dtypes=dict.fromkeys(_wide(tensors), torch.float32))
        self._kept[key] = path

    def __delitem__(self, key: str) -> None:
        del self._kept[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def __contains__(self, key: object) -> bool:
        return key in self._kept  # without reading it

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def has_second_moments(self) -> bool:
        whose = (key for key in self if not key.endswith(f".{EXPERTS}") and f"{key}.{NORMED}" not in self)
        return all(self[key].co is not None for key in whose)


def _remove(folder: Path, handle: int | None) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    unlock(handle)


def merge(parts: Iterable[Statistics]) -> Statistics:
    """The statistics of all the parts' rows together. Leaves the parts as they are."""
    given = list(parts)
    rows = sum((part.rows for part in given), ())
    contrast = Contrast.joined([part.contrast for part in given])
    merged = Statistics(rows=rows, on_disk=any(part.on_disk for part in given), contrast=contrast)
    for part in given[1:]:
        if part.keys() != given[0].keys():
            strange = sorted(part.keys() ^ given[0].keys())[:4]
            raise UserError(f"statistics of different axes can't be merged: {strange}")
    for key in given[0] if given else ():
        total = given[0][key].cpu().copy()
        for part in given[1:]:
            total.add_(part[key].cpu())
        merged[key] = total
    return merged


def save_statistics(path: Path, statistics: Statistics, about: Mapping[str, Any]) -> None:
    tensors: dict[str, Tensor] = {}
    for key, moments in statistics.items():
        tensors |= _tensors_of(key, moments)
    if statistics.rows:
        tensors |= _tensors_of_rows("row", statistics.rows)
    if statistics.contrast:
        tensors |= _tensors_of_rows("right_row", statistics.contrast.right)
        tensors |= _tensors_of_rows("wrong_row", statistics.contrast.wrong)
    write_tensors(path, "stats", tensors, about)


def _tensors_of_rows(name: str, rows: Rows) -> dict[str, Tensor]:
    tensors = {
        f"{name}s": torch.tensor([token for row in rows for token in row], dtype=torch.int32),
        f"{name}_lengths": torch.tensor([len(row) for row in rows], dtype=torch.int32),
    }
    if any(counted_of(row) is not None for row in rows):
        marks = [counted_of(row) or (True,) * len(row) for row in rows]
        tensors[f"{name}_counted"] = torch.tensor([mark for row in marks for mark in row])
    if any(map(seen_of, rows)):
        places = [places_of(row) or (False,) * len(row) for row in rows]
        tensors[f"{name}_places"] = torch.tensor([place for row in places for place in row])
        each = [(i, part, value) for i, row in enumerate(rows) for part, value in seen_of(row).items()]
        tensors |= {f"{name}_seen.{i}.{part}": value.contiguous() for i, part, value in each}
    return tensors


def _rows_from(path: Path, file: Any, name: str) -> Rows:
    if f"{name}s" not in file.keys():  # noqa: SIM118
        return ()
    tokens, lengths = file.get_tensor(f"{name}s"), file.get_tensor(f"{name}_lengths")
    check_rows(path, tokens, lengths)
    rows: Rows = tuple(tuple(piece.tolist()) for piece in tokens.split(lengths.tolist()))
    if f"{name}_counted" in file.keys():  # noqa: SIM118
        marks = file.get_tensor(f"{name}_counted").split(lengths.tolist())
        rows = tuple(CountedRow(row, mark.tolist()) for row, mark in zip(rows, marks, strict=True))
    if f"{name}_places" in file.keys():  # noqa: SIM118
        places = file.get_tensor(f"{name}_places").split(lengths.tolist())
        found = zip(rows, places, _seen_from(file, name, len(rows)), strict=True)
        rows = tuple(SeenRow(row, counted_of(row) or (), at.tolist(), seen) if seen else row for row, at, seen in found)
    return rows


def _seen_from(file: Any, name: str, count: int) -> list[dict[str, Tensor]]:
    """Of each row, what its model reads beside its ids."""
    found: list[dict[str, Tensor]] = [{} for _ in range(count)]
    for key in file.keys():  # noqa: SIM118
        if key.startswith(f"{name}_seen."):
            _, number, part = key.split(".", 2)
            found[int(number)][part] = file.get_tensor(key)
    return found


def _wide(tensors: Mapping[str, Tensor]) -> list[str]:
    """Matrices whose products were float32, which they are stored in too."""
    return [name for name, value in tensors.items() if name.endswith(".co") and value.shape[-1] > EXACT_SIZE]


def _tensors_of(key: str, moments: Moments) -> dict[str, Tensor]:
    tensors = {f"{key}.count": torch.tensor(moments.count), f"{key}.mean": moments.mean, f"{key}.m2": moments.m2}
    if moments.co is not None:
        tensors[f"{key}.co"] = moments.co
    return tensors if moments.held is None else tensors | _tensors_of(f"held.{key}", moments.held)


def _moments_from(names: Collection[str], read: Callable[[str], Tensor], key: str) -> Moments:
    held = _moments_from(names, read, f"held.{key}") if f"held.{key}.count" in names else None
    co = read(f"{key}.co") if f"{key}.co" in names else None
    return Moments(int(read(f"{key}.count")), read(f"{key}.mean"), read(f"{key}.m2"), co, held)


def _check_values(path: Path, key: str, moments: Moments) -> None:
    """Raise UserError for moments that no activations have."""
    parts = [values for values in (moments.mean, moments.m2, moments.co) if values is not None]
    if moments.count < 0 or not all(bool(torch.isfinite(values.sum())) for values in parts) or moments.m2.min() < 0:
        raise UserError(f"{path}: {key} has numbers that no activations have; make it again, with seap calibrate")
    if moments.held is not None:
        _check_values(path, f"held.{key}", moments.held)


def to_bytes(moments: Moments) -> bytes:
    """For another process; no pickle."""
    return save({name: tensor.contiguous() for name, tensor in _tensors_of("axis", moments).items()})


def from_bytes(content: bytes) -> Moments:
    tensors = load(content)
    return _moments_from(tensors.keys(), tensors.__getitem__, "axis")


IN_MEMORY_BYTES = 1 << 30  # of a file's matrices; larger ones are read axis by axis


def load_statistics(path: Path) -> tuple[Statistics, dict[str, Any]]:
    """Read a statistics file and its metadata."""
    _, about = read_about(path, "stats")
    keys = measured_axes(path)
    with safe_open(path, framework="pt") as file:
        rows, right, wrong = (_rows_from(path, file, name) for name in ROW_TENSORS)
    found = Statistics.of_file(path, keys, rows, Contrast(right, wrong))
    if path.stat().st_size <= IN_MEMORY_BYTES:
        found = Statistics(dict(found.items()), rows, contrast=found.contrast)
    return found, about
