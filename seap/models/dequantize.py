"""Quantized weights taken back to floats as they are read, by the arithmetic of their files.

FP8: `weight` times `weight_scale_inv`, a number for each block, row or matrix. MXFP4 (as OpenAI publishes gpt-oss,
https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf): 32 numbers of 4 bits times a
power of two. compressed-tensors (https://github.com/vllm-project/compressed-tensors): (q - zero) · scale over groups,
rows or matrices, with q packed into 32-bit words or stored in a byte each. Shapes: O outputs, C inputs, E experts.
"""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from seap.errors import UserError
from seap.models.quantized import MXFP4, Quantization, weight_schemes

EIGHT = (torch.float8_e4m3fn, torch.float8_e5m2)
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # of three bits; the fourth is the sign
PARTS = ("scale", "scale_inv", "zero_point", "shape", "packed", "global_scale", "g_idx")
OF_ACTIVATIONS = (
    "activation_scale",
    "input_scale",
    "input_zero_point",
    "input_global_scale",
    "output_scale",
    "output_zero_point",
    "k_scale",
    "v_scale",
    "q_scale",
)


class Files:
    """The tensors of some safetensors files by name, read one by one."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self.places: dict[str, Any] = {}
        for path in paths:
            opened = safe_open(path, framework="pt")
            self.places |= dict.fromkeys(opened.keys(), opened)

    def __getitem__(self, name: str) -> Tensor:
        found: Tensor = self.places[name].get_tensor(name)
        return found

    def get(self, name: str) -> Tensor | None:
        return self[name] if name in self.places else None


def dequantized(paths: Iterable[Path], how: Quantization, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every weight under the name that it has in the unquantized model, floats in `dtype`.

    Raises UserError for a quantized weight whose scales aren't there, and for shapes that don't fit.
    """
    files, found = Files(paths), {}
    if how.method == MXFP4:
        return _mxfp4(files, dtype)
    block = how.entry.get("weight_block_size")
    blocks = (int(block[0]), int(block[1])) if isinstance(block, list | tuple) and len(block) == 2 else (0, 0)
    bits = [int(scheme["num_bits"]) for scheme in weight_schemes(how.entry)]
    for name in files.places:
        stem, _, last = name.rpartition("weight")
        if name.endswith("weight_packed"):
            base = name.removesuffix("_packed")
            found[base] = _packed(files, base, bits).to(dtype)
        elif last == "" and stem:
            found[name] = _scaled(files, name, blocks, dtype)
        elif not (last.startswith("_") and last[1:] in PARTS) and not name.endswith(OF_ACTIVATIONS):
            value = files[name]
            found[name] = value.to(dtype) if value.is_floating_point() else value
    return found


def _scaled(files: Files, name: str, blocks: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """A weight (O, C) stored in a byte each times its scales; one that isn't quantized as it is."""
    value = files[name]
    scale = files.get(f"{name}_scale_inv")
    scale = files.get(f"{name}_scale") if scale is None else scale
    if scale is None:
        if value.dtype in (*EIGHT, torch.int8, torch.uint8):
            raise UserError(f"{name} is quantized, and no scale of it is there; get the model again")
        return value.to(dtype) if value.is_floating_point() else value
    zero, integers = files.get(f"{name}_zero_point"), value.float()
    if zero is not None:
        integers = integers - spread(zero.float(), value.shape, blocks, name)
    return (integers * spread(floats(scale), value.shape, blocks, name)).to(dtype)


def floats(scale: Tensor) -> Tensor:
    """Scales as float32; bytes are exponents of two."""
    return (scale.float() - 127.0).exp2() if scale.dtype == torch.uint8 else scale.float()


def spread(scale: Tensor, shape: Iterable[int], blocks: tuple[int, int], name: str) -> Tensor:
    """Scales (), (O), (O, 1) or of a grid of blocks, one for each number of a weight of this shape.

    blocks: the size of a block where the last of a row or column is smaller; (0, 0) where all are alike.
    """
    *_, rows, columns = shape
    grid = scale.reshape(1, 1) if scale.numel() == 1 else scale.reshape(-1, 1) if scale.ndim == 1 else scale
    for dim, size, block in ((-2, rows, blocks[0]), (-1, columns, blocks[1])):
        number = grid.shape[dim]
        if not (block and math.ceil(size / block) == number):
            if size % number:
                raise UserError(f"{name}: {size} numbers don't divide into {number} scales; get the model again")
            block = size // number
        grid = grid.repeat_interleave(block, dim).narrow(dim, 0, size) if number > 1 else grid
    return grid


def _packed(files: Files, name: str, allowed: Iterable[int]) -> Tensor:
    """A weight of compressed-tensors whose numbers share words: integers of 2 to 8 bits, or floats of 4."""
    words, scale = files[f"{name}_packed"], files.get(f"{name}_scale")
    if scale is None:
        raise UserError(f"{name} is quantized, and no scale of it is there; get the model again")
    if words.dtype == torch.uint8:
        whole = files.get(f"{name}_global_scale")
        scales = floats(scale) if whole is None else floats(scale) / whole.float()
        values = e2m1(words)
        return values * spread(scales, values.shape, (0, 0), name)
    shape = [int(size) for size in files[f"{name}_shape"]]
    fitting = [bits for bits in allowed if math.ceil(shape[1] / (32 // bits)) == words.shape[1]]
    if not fitting:
        raise UserError(f"{name}: {words.shape[1]} words of a row don't hold {shape[1]} numbers; get the model again")
    bits = fitting[0]
    integers, zero = unpacked(words, bits, shape[1]).float(), files.get(f"{name}_zero_point")
    groups, order = scale.float(), files.get(f"{name}_g_idx")
    zeros = torch.zeros_like(groups)
    if zero is not None:
        zeros = unpacked(zero.t(), bits, shape[0]).t().float() if zero.dtype == torch.int32 else zero.float()
    if order is not None and (order >= 0).all():
        return (integers - zeros[:, order.long()]) * groups[:, order.long()]
    size = (0, math.ceil(shape[1] / groups.shape[1]) if groups.ndim > 1 else 0)
    return (integers - spread(zeros, shape, size, name)) * spread(groups, shape, size, name)


def unpacked(words: Tensor, bits: int, number: int) -> Tensor:
    """int32 (R, words) → the signed integers (R, number) in them, the first in the lowest bits."""
    shifts = torch.arange(32 // bits, dtype=torch.int32) * bits
    values = (words[..., None] >> shifts) & ((1 << bits) - 1)
    return values.flatten(-2)[..., :number] - (1 << bits - 1)


def e2m1(words: Tensor) -> Tensor:
    """uint8 (…, n) → float32 (…, 2n): two floats of 4 bits in each byte, the lower first."""
    values = torch.tensor([*E2M1, *(-value for value in E2M1)])
    return values[torch.stack([words & 15, words >> 4], -1).long()].flatten(-2)


def _mxfp4(files: Files, dtype: torch.dtype) -> dict[str, Tensor]:
    """gpt-oss: `X_blocks` (E, O, C / 32, 16) and `X_scales` (E, O, C / 32) → X (E, C, O), as transformers has it."""
    found = {}
    for name in files.places:
        base = name.removesuffix("_blocks")
        if base != name:
            scales = files.get(f"{base}_scales")
            if scales is None:
                raise UserError(f"{base} is quantized, and no scale of it is there; get the model again")
            values = e2m1(files[name]) * floats(scales)[..., None]
            found[base] = values.flatten(-2).transpose(-2, -1).to(dtype).contiguous()
        elif not name.endswith("_scales"):
            value = files[name]
            found[name] = value.to(dtype) if value.is_floating_point() else value
    return found
