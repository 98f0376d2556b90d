"""What a model's weights take on disk, counted before they are written."""

import json
from typing import Any

import torch
from torch import Tensor

LENGTH = 8  # bytes that say how long a header is, to a multiple of which it is filled up
ENTRY = 160  # bytes of a header that one more tensor takes, at most


def dtype_on_disk(model: Any) -> torch.dtype:
    """What a model was saved as, which is what a pruned one is saved as; its own where its config doesn't say."""
    found: torch.dtype = model.config.dtype or model.dtype
    return found


def saved_bytes(model: Any, dtype: torch.dtype | None = None) -> int:
    """Of the weights' files, at most: all of them in one dtype (by default the model's own), tied ones once."""
    tensors = _stored(model)
    return sum(value.numel() * _itemsize(value, dtype or model.dtype) for value in tensors.values()) + header_bytes(
        model
    )


def header_bytes(model: Any) -> int:
    """The header of the safetensors file that a model is saved as: what describes its tensors.

    Offsets are counted with the digits of the last one, so that it is some bytes too many rather than too few.
    """
    tensors = _stored(model)
    end = 8 * sum(value.numel() for value in tensors.values())
    entries = {key: {"dtype": "BF16", "shape": [*t.shape], "data_offsets": [end, end]} for key, t in tensors.items()}
    text = json.dumps({"__metadata__": {"format": "pt"}, **entries}, separators=(",", ":"))
    return LENGTH + -(-len(text) // LENGTH) * LENGTH


def _stored(model: Any) -> dict[str, Tensor]:
    """What is saved, each tensor once."""
    tensors, seen = model.state_dict(keep_vars=True), dict[int, str]()
    for name, value in tensors.items():
        seen.setdefault(id(value), name)
    return {name: value for name, value in tensors.items() if seen[id(value)] == name}


def _itemsize(value: Tensor, dtype: torch.dtype) -> int:
    return dtype.itemsize if value.is_floating_point() else value.element_size()
