"""Whether weights are fit to work with: the files as they were written, and no number in them NaN or infinite."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from seap.disk.digests import check_digests
from seap.errors import UserError
from seap.models.residency import page_out

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def digests_of(folder: Path) -> dict[str, str]:
    """The digests of the weight files that a folder's seap.json has; none where there is no such file."""
    try:
        told = json.loads((folder / "seap.json").read_text())["digests"]
        return {str(name): str(value) for name, value in told.items() if Path(name).name == name}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def check_as_written(folder: Path) -> None:
    """Raise UserError for a weight file that isn't what seap wrote, by its digest in seap.json."""
    check_digests(folder, digests_of(folder))


def check_finite(model: nn.Module, name: str, *, in_files: bool = False) -> None:
    """Raise UserError, naming the weight, for one that holds NaN or an infinity; quantized ones are passed over.

    in_files: the weights' pages are given back one by one, since the model doesn't fit in memory.
    """
    for key, value in model.named_parameters():
        if type(value) is nn.Parameter:
            _check(name, key, value.detach())
        if in_files:
            page_out([value])


def check_finite_files(folder: Path, name: str) -> None:
    """As `check_finite`, for weights that are made into something else as they are loaded."""
    for key, value in _stored(folder):
        _check(name, key, value)


def _stored(folder: Path) -> Iterator[tuple[str, Tensor]]:
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                yield key, file.get_tensor(key)


def _check(name: str, key: str, value: Tensor) -> None:
    if value.dtype not in FLOATS or value.is_meta or not value.numel():
        return
    ends: Any = torch.aminmax(value)  # NaN if any number is, and much faster than looking at each
    if not torch.isfinite(torch.stack(list(ends))).all():
        raise UserError(f"the model {name!r} is damaged: {key} holds NaN or infinite numbers; get it again")
