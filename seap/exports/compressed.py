"""compressed-tensors: the decoder layers' linears as integers of 8 or 4 bits, packed into 32-bit words.

The format is that of https://github.com/vllm-project/compressed-tensors (`pack-quantized`, weights alone), which vLLM,
SGLang and transformers read. 8 bits have a scale for each row, 4 bits one for every 32 weights of it. No data is used:
a scale is the largest weight over the largest integer, times that of a few factors with which the rounding error is
least. Shapes: O outputs, C inputs.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from seap.errors import UserError
from seap.models.arch import Arch, describe

Bits = Literal["int8", "int4"]
GROUP = 32  # weights that share a scale in 4 bits
FACTORS = (1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.75)  # of the largest weight, beyond which weights are clipped


@dataclass(frozen=True)
class Rounded:
    """A weight in integers: q · scale, q (O, C) from -2^(bits - 1) on, scale (O, 1) or (O, C / 32)."""

    bits: int
    integers: Tensor
    scale: Tensor

    def floats(self) -> Tensor:
        """What it stands for, (O, C)."""
        return self.integers.float() * self.scale.float().repeat_interleave(
            self.integers.shape[1] // self.scale.shape[1], 1
        )

    def tensors(self) -> dict[str, Tensor]:
        """As the file has it, by what is put to the weight's name."""
        shape = torch.tensor(self.integers.shape, dtype=torch.int64)
        return {"_packed": packed(self.integers, self.bits), "_scale": self.scale, "_shape": shape}


def packed(integers: Tensor, bits: int) -> Tensor:
    """Integers (O, C) → int32 words (O, ⌈C · bits / 32⌉), the first in the lowest bits of the first word."""
    each = 32 // bits
    rows, columns = integers.shape
    values = torch.zeros(rows, -(-columns // each) * each, dtype=torch.int64)
    values[:, :columns] = integers.long() + (1 << bits - 1)
    words = (values.view(rows, -1, each) << (torch.arange(each) * bits)).sum(-1)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def rounded(weight: Tensor, bits: int) -> Rounded:
    """A weight (O, C) in so many bits; in 4 its C must be a multiple of 32. Scales have the weight's dtype."""
    rows, columns = weight.shape
    parts = weight.detach().float().view(rows, -1, GROUP if bits == 4 else columns)
    top = (1 << bits - 1) - 1
    whole = parts.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    best, least = whole / top, torch.full_like(whole, torch.inf)
    for factor in FACTORS:
        scale = (whole * factor / top).to(weight.dtype).float().clamp(min=torch.finfo(torch.float32).tiny)
        error = (_nearest(parts, scale, top) * scale - parts).square().sum(-1, keepdim=True)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    integers = _nearest(parts, best, top).to(torch.int8)
    return Rounded(bits, integers.view(rows, columns), best.squeeze(-1).to(weight.dtype))


def _nearest(parts: Tensor, scale: Tensor, top: int) -> Tensor:
    return (parts / scale).round().clamp(-top - 1, top)


def check_config(config: Any) -> None:
    """Raise UserError for a model none of whose linears such a file can hold."""
    from seap.models.families import find_family, refuse_experts, refuse_states

    refuse_experts(config, "--to compressed-tensors", "leave it in 16 bits, or use an engine's own quantizer")
    refuse_states(config, "--to compressed-tensors", "leave it in 16 bits, or use an engine's own quantizer")
    if find_family(config).transposed:
        raise UserError(
            f"--to compressed-tensors: {config.model_type} has no linears of the kind that readers know; use --to "
            "openvino --weights int8"
        )


def linears(arch: Arch) -> Iterator[tuple[str, nn.Linear]]:
    """The linears of the decoder layers by their names in the model."""
    for layer, block in enumerate(arch.layers):
        for name, module in block.named_modules():
            if isinstance(module, nn.Linear):
                yield f"{arch.family.layers}.{layer}.{name}", module


def compress(model: Any, weights: Bits) -> tuple[dict[str, Rounded], list[str]]:
    """The weights that become integers, by the names of their linears, and what to know about them."""
    chosen = {name: _bits_of(linear, weights) for name, linear in linears(describe(model))}
    found = {name: rounded(linear.weight, chosen[name]) for name, linear in linears(describe(model))}
    eight = sum(bits == 8 for bits in chosen.values())
    if weights == "int8" or not eight:
        return found, []
    said = f"{eight} of {len(chosen)} linears take 8 bits, since {GROUP} doesn't divide their inputs: prune with "
    return found, [said + f"--round-to {GROUP}"]


def _bits_of(linear: nn.Linear, weights: Bits) -> int:
    return 4 if weights == "int4" and linear.in_features % GROUP == 0 else 8


def stored(model: Any, found: Mapping[str, Rounded]) -> dict[str, Tensor]:
    """The model's tensors as they are written."""
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        base = name.removesuffix(".weight")
        if base in found and name != base:
            state |= {f"{name}{part}": value for part, value in found[base].tensors().items()}
        else:
            state[name] = tensor
    return state


def entry(model: Any, found: Mapping[str, Rounded]) -> dict[str, Any]:
    """What config.json says of it: a group of linears in 4 bits, and those in 8 by their names."""
    names = {bits: [name for name, one in found.items() if one.bits == bits] for bits in (4, 8)}
    every, groups = "Linear", {}
    if names[8] and names[4]:
        groups["group_1"] = _group([f"re:^{re.escape(name)}$" for name in names[8]], 8)
        groups["group_0"] = _group([every], 4)
    else:
        groups["group_0"] = _group([every], 4 if names[4] else 8)
    ignored = sorted(
        name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name not in found
    )
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": ignored,
        "kv_cache_scheme": None,
    }


def _group(targets: list[str], bits: int) -> dict[str, Any]:
    strategy = {"strategy": "group", "group_size": GROUP} if bits == 4 else {"strategy": "channel", "group_size": None}
    weights = {"num_bits": bits, "type": "int", "symmetric": True, "dynamic": False, "actorder": None, **strategy}
    return {"targets": targets, "weights": weights, "input_activations": None, "output_activations": None}
