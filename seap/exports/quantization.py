"""torchao: the decoder layers' linears in 8 or 4 bits, on top of pruning. Embeddings and the output layer stay.

8 bits have a scale for each row, and a file format (safetensors) that transformers loads. 4 bits have a scale and a
zero point for every 32 weights, fitted by half-quadratic quantization (https://mobiusml.github.io/hqq_blog/); torchao
0.18's form of them for CPUs can't be saved, so they are made once a model is loaded.
"""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import nn

from seap.errors import UserError, missing_extra
from seap.models import loader
from seap.models.arch import describe
from seap.models.families import refuse_experts, refuse_states
from seap.models.loader import check_not_quantized

Bits = Literal["int8", "int4"]

GROUP = 32  # weights of a row that share a scale in 4 bits
TILE = 16  # rows that PyTorch's 4-bit kernel for CPUs takes at a time


def torchao_package(purpose: str) -> Any:
    """torchao's quantization API. Raises UserError naming the extra where it isn't installed."""
    try:
        import torchao.quantization as package
    except ImportError as error:
        raise missing_extra("torchao", "torchao", purpose) from error
    return package


def quantize_(model: Any, weights: Bits) -> list[str]:
    """Give the linears of the decoder layers 8- or 4-bit weights, in place; returns what to know about it.

    int8: round(w / s), with one s for each row of (O, I). int4: one scale and zero point for 32 weights of a row, on
    CPUs; linears that these don't divide (I by 32, or O by 16) take int8, which is said: pruning with --round-to 32
    leaves none. Biases stay. Raises UserError where torchao is missing, the model is quantized already, 4 bits are
    asked for elsewhere than on a CPU, or there is no linear.
    """
    if weights not in ("int8", "int4"):
        raise UserError(f"weights {weights!r}: expected int8 or int4")
    package = torchao_package(f"quantize_(model, {weights!r})")
    check_not_quantized(model)
    refuse_experts(model.config, "seap.quantize_", "leave it in 16 bits: only its attention would be quantized")
    refuse_states(model.config, "seap.quantize_", "leave it in 16 bits")
    if weights == "int4" and model.device.type != "cpu":
        raise UserError("int4 is for CPUs here; on a GPU use torchao's own Int4WeightOnlyConfig")
    linears = dict(_linears(model))
    whole = {name for name, linear in linears.items() if weights == "int4" and fits_int4(linear)}
    for name, linear in linears.items():
        package.quantize_(linear, _int4() if name in whole else int8())
    return _about(linears, whole) if weights == "int4" else []


def _linears(model: Any) -> Iterator[tuple[str, nn.Linear]]:
    """The linears of the decoder layers by their names within the model. Raises UserError where there are none."""
    found = False
    for layer, block in enumerate(describe(model).layers):
        for name, module in block.named_modules():
            if isinstance(module, nn.Linear):
                found = True
                yield f"{layer}.{name}", module
    if not found:
        raise UserError(f"{type(model).__name__} has no linears that torchao knows; use --to openvino --weights int8")


def fits_int4(linear: nn.Linear) -> bool:
    """Whether PyTorch's 4-bit kernel for CPUs takes a weight (O, I)."""
    return linear.in_features % GROUP == 0 and linear.out_features % TILE == 0


def int8() -> Any:
    """torchao's configuration for 8-bit weights."""
    return torchao_package("int8").Int8WeightOnlyConfig(set_inductor_config=False)


def _int4() -> Any:
    try:
        from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
    except ImportError as error:
        raise UserError("this torchao has its 4-bit weights for CPUs, a prototype, elsewhere; 0.18 fits") from error
    return PrototypeInt4WeightOnlyConfig(
        group_size=GROUP, int4_choose_qparams_algorithm="hqq", set_inductor_config=False
    )


def _about(linears: dict[str, nn.Linear], whole: set[str]) -> list[str]:
    rest = len(linears) - len(whole)
    if not rest:
        return []
    return [
        f"{rest} of {len(linears)} linears take 8 bits, since {GROUP} inputs or {TILE} outputs don't divide their "
        f"widths: prune with --round-to {GROUP}"
    ]


def check_saved(weights: str) -> None:
    """Raise UserError for what torchao can't write to a file that runs on a CPU."""
    if weights == "float":
        raise UserError("--to torchao: say how many bits, with --weights int8")
    if weights == "int4":
        raise UserError(
            "--to torchao: its 4-bit weights for CPUs can't be saved; make them when you load the model, with "
            'seap.quantize_(model, "int4"), or use --to gguf or --to openvino --weights int4'
        )


def load_int8(name: str, *, trust_remote_code: bool = False) -> tuple[Any, Any]:
    """A checkpoint whose linears take 8 bits as they are loaded, so that transformers knows how to save them."""
    from transformers import TorchAoConfig

    options = TorchAoConfig(int8())
    return loader.load(name, device="cpu", trust_remote_code=trust_remote_code, quantization_config=options)


def rounded_values(model: Any) -> dict[str, torch.Tensor]:
    """What the weights of quantized linears stand for, by the names of their parameters."""
    return {
        name: parameter.dequantize().float()
        for name, parameter in model.named_parameters()
        if type(parameter.data) is not torch.Tensor
    }


def stored_bytes(tensor: torch.Tensor) -> int:
    """What a tensor takes in memory: of a quantized one its integers, scales and zero points."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return tensor.numel() * tensor.element_size()
    names, _ = tensor.__tensor_flatten__()
    return sum(stored_bytes(getattr(tensor, name)) for name in names)
