"""Statistics from outside: their tensors' types and shapes before they are read, and their axes beside a model's.

Shapes: C inputs of a consumer, B blocks of n inputs, E experts.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from seap.errors import UserError
from seap.files import outlines
from seap.models.arch import Arch
from seap.models.axes import AXIS_NAMES, BLOCK, EXPERTS, NORMED, QUERY_HEADS

AXIS_KEY = re.compile(
    rf"layers\.\d{{1,5}}\.({'|'.join((*AXIS_NAMES, EXPERTS, QUERY_HEADS, BLOCK))}|({'|'.join(AXIS_NAMES)})\.{NORMED})"
)
ROW_TENSORS = ("row", "right_row", "wrong_row")  # token rows, and those of right and wrong choices
ROW_PARTS = ("s", "_lengths", "_counted", "_places")
SEEN_KEY = re.compile(r"row_seen\.(\d{1,9})\.[a-z_]{1,60}")  # of a row with images, by its number
FLOATS = ("F64", "F32")
Outlines = Mapping[str, tuple[str, tuple[int, ...]]]


def measured_axes(path: Path) -> list[str]:
    """The axes of a statistics file. Raises UserError unless each has its count, mean and M2 in shapes that agree."""
    found = outlines(path)
    rest = set(found) - {f"{name}{part}" for name in ROW_TENSORS for part in ROW_PARTS}
    rest = {name for name in rest if not SEEN_KEY.fullmatch(name)}
    keys = [name.removesuffix(".count") for name in found if name.endswith(".count") and not name.startswith("held.")]
    for key in keys:
        rest -= _check_axis(path, found, key, None)
        if f"held.{key}.count" in found:
            rest -= _check_axis(path, found, f"held.{key}", found[f"{key}.mean"][1])
    if not keys or rest:
        what = f"tensor {min(rest)!r} is of no axis" if rest else "it has no axes"
        raise UserError(f"{path}: {what}; make it again, with seap calibrate")
    for name in ROW_TENSORS:
        _check_row_tensors(path, found, name)
    return keys


def _check_row_tensors(path: Path, found: Outlines, row: str) -> None:
    both = {f"{row}s", f"{row}_lengths"}
    for name in both & found.keys():
        dtype, shape = found[name]
        if dtype not in ("I32", "I64") or len(shape) != 1 or not both <= found.keys():
            raise UserError(f"{path}: {name} has type {dtype} and shape {shape}; make it again, with seap calibrate")
    for marks in (f"{row}_counted", f"{row}_places"):
        if marks in found and found[marks] != ("BOOL", found.get(f"{row}s", ("", ()))[1]):
            raise UserError(
                f"{path}: {marks} isn't a mark for each token of {row}s; make it again, with seap calibrate"
            )
    _check_seen(path, found, row)


def _check_seen(path: Path, found: Outlines, row: str) -> None:
    """Raise UserError for what a model reads of images where there is no such row, or no place for it."""
    numbers = [int(match[1]) for name in found if (match := SEEN_KEY.fullmatch(name))] if row == "row" else []
    size = found.get(f"{row}_lengths", ("", (0,)))[1]
    if numbers and (max(numbers) >= (size or (0,))[0] or not {f"{row}_places", f"{row}_counted"} <= found.keys()):
        raise UserError(f"{path}: images of a row that isn't there; make it again, with seap calibrate")


def _check_axis(path: Path, found: Outlines, key: str, size: tuple[int, ...] | None) -> set[str]:
    """The names of an axis's tensors."""
    for part in ("mean", "m2"):
        dtype, shape = found.get(f"{key}.{part}", ("none", ()))
        size = shape if size is None else size
        if dtype not in FLOATS or len(shape) != 1 or shape != size or not shape[0]:
            raise UserError(f"{path}: {key}.{part} has type {dtype} and shape {shape}; make it again")
    assert size is not None
    dtype, shape = found[f"{key}.count"]
    if dtype != "I64" or shape not in ((), (1,)):
        raise UserError(f"{path}: {key}.count has type {dtype} and shape {shape}; make it again")
    names = {f"{key}.{part}" for part in ("count", "mean", "m2")}
    if f"{key}.co" not in found:
        return names
    dtype, shape = found[f"{key}.co"]
    matrix, blocks = shape == size * 2, len(shape) == 3 and shape[1] == shape[2] and shape[0] * shape[1] == size[0]
    if dtype not in FLOATS or not (matrix or blocks):
        raise UserError(f"{path}: {key}.co has type {dtype} and shape {shape}, for {size[0]} inputs; make it again")
    return names | {f"{key}.co"}


def check_axes(path: Path, keys: Iterable[str], sizes: Mapping[str, int], arch: Arch) -> None:
    """Raise UserError unless statistics have this model's axes, each with as many inputs."""
    given = {*keys}
    own = arch.measured(given)
    for key in sorted(given ^ own.keys()):
        raise UserError(f"{path}: {key} is {'missing' if key in own else 'no axis of the model'}; make it again")
    for key, size in sizes.items():
        if size != own[key]:
            raise UserError(f"{path}: {key} has {size} inputs, the model {own[key]}; make it again")


def axis_keyed(path: Path, names: Iterable[str]) -> None:
    """Raise UserError for a tensor that isn't called after an axis."""
    for name in names:
        if not AXIS_KEY.fullmatch(name):
            raise UserError(f"{path}: {name[:80]!r} is no axis, such as layers.0.channels; make it again")


def check_rows(path: Path, rows: Any, lengths: Any) -> None:
    """Raise UserError unless token rows are what their lengths say."""
    if bool((lengths < 0).any()) or int(lengths.sum()) != rows.numel() or (rows.numel() and int(rows.min()) < 0):
        raise UserError(f"{path}: its token rows and their lengths don't agree; make it again, with seap calibrate")
