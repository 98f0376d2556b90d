"""Linears of a model on a CPU, laid out for decoding: prepacked for oneDNN, with one product for what reads the same.

Decode reads every weight for a few rows. PyTorch's own float32 product goes to MKL, which on AMD reads half as fast as
memory gives, and slower still from two rows on; a product of oneDNN reads its weights in the order in which they lie.
Linears that write one axis (q, k and v; gate and up) read the same, so that one product serves them all: what a call
costs beside the bytes weighs the more the narrower the model is. Shapes: C inputs, O outputs, N rows.
"""

import contextlib
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from seap.errors import UserError
from seap.models.arch import describe

MIN_BYTES = 1 << 20  # of a product's weights: below, they stay in the cache, and the call is what costs
DTYPES = (torch.float32, torch.bfloat16)


Pays = Callable[[Tensor], bool]  # whether a weight (O, C) is better laid out


def prepack_(model: Any, *, pays: Pays = lambda weight: True) -> Any:
    """Lay a CPU model's linears out for decoding, in place and for good: it can't be trained, cut or saved afterwards.

    pays: which weights, by default all (`seap.models.layouts.Layouts().pays` measures). Takes no memory but while a
    linear is laid out. Outputs change by no more than rounding. Returns the model. Raises UserError for a model that
    isn't on a CPU, or not in float32 or bfloat16, or where PyTorch comes without oneDNN.
    """
    _prepack_(model, pays)
    return model


@contextlib.contextmanager
def prepacked(model: Any, *, pays: Pays = lambda weight: True) -> Iterator[Any]:
    """The model laid out for decoding, and as it was afterwards, bit for bit."""
    products = _prepack_(model, pays)
    try:
        yield model
    finally:
        for product in products:
            product.undo_()


def check_prepack(model: Any) -> None:
    """Raise UserError for a model whose weights can't be laid out."""
    device, dtype = model.device, model.dtype
    if device.type != "cpu":
        raise UserError(f"weights are prepacked for CPUs, and the model is on {device}; leave it out there")
    if dtype not in DTYPES:
        raise UserError(
            f"weights are prepacked in float32 or bfloat16, and the model's are {dtype}; choose one of the two"
        )
    if not _supported(dtype):
        raise UserError(f"weights are prepacked by oneDNN on x86 CPUs, and here it can't do {dtype}; leave it out here")


def _supported(dtype: torch.dtype) -> bool:
    """Whether this machine and this PyTorch can."""
    if not torch.backends.mkldnn.is_available() or platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


@torch.no_grad()
def _prepack_(model: Any, pays: Pays) -> "list[Product]":
    check_prepack(model)
    embedding = model.get_input_embeddings().weight
    products = []
    for linears in _groups(model):
        plain = any(linear.weight is embedding for linear in linears)  # the embedding needs it as it is
        outputs = sum(linear.weight.shape[0] for linear in linears)
        like = linears[0].weight.new_empty(outputs, linears[0].in_features)
        if like.nbytes >= MIN_BYTES and pays(like):
            products.append(Product.of(linears, packed=not plain))
    return products


def _groups(model: Any) -> Iterator[list[nn.Linear]]:
    """Every linear of the model once, together with those that read the same."""
    arch = describe(model)
    seen = {id(linear) for layer in range(len(arch.layers)) for linear in arch.mixing(layer)}  # may be used by parts
    for axis in arch.axes:
        alike = not axis.usage_key and axis.producers_read_alike
        found = [] if not alike else [arch.linear(axis.layer, path) for path in axis.producers]
        if len(found) > 1 and all(_is_plain(linear) for linear in found):
            seen |= {id(linear) for linear in found}
            yield found
    for module in model.modules():
        if _is_plain(module) and id(module) not in seen:
            yield [module]


def _is_plain(module: nn.Module) -> bool:
    """Whether a module is a linear and nothing else: not quantized, not replaced, without hooks on its forward."""
    return type(module) is nn.Linear and "forward" not in vars(module) and module.weight.dtype in DTYPES


def product_of(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor] | None:
    """The forward of a linear (O, C) with its weight laid out, a copy; None where that can't be, or isn't worth it."""
    if weight.device.type != "cpu" or weight.nbytes < MIN_BYTES or not _supported(weight.dtype):
        return None
    laid_out = _laid_out(weight.detach())
    return lambda rows: _product(rows, laid_out, bias)


def _laid_out(weight: Tensor) -> Tensor:
    found: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
    return found


def _product(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return found


@dataclass
class Product:
    """One product (N, C) → (N, O) for some linears that read the same; O are the outputs of all, one after another."""

    linears: list[nn.Linear]
    weight: Tensor  # (O, C), laid out by oneDNN where packed
    bias: Tensor | None
    packed: bool
    read: Tensor | None = None  # what the product at hand is of
    parts: dict[int, Tensor] = field(default_factory=dict)  # of it, for the linears that haven't asked yet

    @classmethod
    def of(cls, linears: list[nn.Linear], *, packed: bool) -> "Product":
        """packed: their weights are freed; without, there is one linear, and it keeps its own."""
        weights = [linear.weight.detach() for linear in linears]
        joined = torch.cat(weights) if len(weights) > 1 else weights[0].contiguous()
        made = cls(linears, _laid_out(joined) if packed else joined, _joined_bias(linears), packed)
        for index, linear in enumerate(linears):
            vars(linear)["forward"] = made.forward if len(linears) == 1 else partial(made.part, index)
            if packed:
                linear.weight = nn.Parameter(linear.weight.to("meta"), requires_grad=linear.weight.requires_grad)
        return made

    def forward(self, rows: Tensor) -> Tensor:
        return _product(rows, self.weight, self.bias)

    def part(self, index: int, rows: Tensor) -> Tensor:
        """What one of the linears gives; the first that asks computes all, and the last lets go of them."""
        if rows is not self.read or index not in self.parts:
            sizes = [linear.out_features for linear in self.linears]
            self.read, self.parts = rows, dict(enumerate(self.forward(rows).split(sizes, -1)))
        found = self.parts.pop(index)
        if not self.parts:
            self.read = None
        return found

    def undo_(self) -> None:
        """Give the linears their weights back."""
        for linear in self.linears:
            del linear.forward
        if not self.packed:
            return
        weights = self.weight.to_dense().split([linear.out_features for linear in self.linears])
        for linear, weight in zip(self.linears, weights, strict=True):
            linear.weight = nn.Parameter(weight.clone(), requires_grad=linear.weight.requires_grad)


def _joined_bias(linears: list[nn.Linear]) -> Tensor | None:
    biases = [linear.bias for linear in linears]
    if all(bias is None for bias in biases):
        return None
    zeros = [linear.weight.new_zeros(linear.out_features) for linear in linears]
    return torch.cat([zero if bias is None else bias.detach() for bias, zero in zip(biases, zeros, strict=True)])
