"""Models whose weights stay in their files: a layer's come into memory while it is worked on, and leave it again.

transformers maps safetensors into memory as they are on disk, so a weight takes memory only once it is read. Here its
pages are given back afterwards (on Linux; elsewhere the system does it when memory runs short).
"""

import contextlib
import ctypes
import mmap
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from seap.models.arch import Arch

_PAGE_OUT = 21  # MADV_PAGEOUT, from Linux 5.4 on: nothing is lost, also where a page was written to
_WILL_NEED = 3
_DONT_NEED = 4
_MARK = "_seap_streamed"


@dataclass(frozen=True)
class Streamed:
    """How a model that stays in its files is worked with."""

    dtype: torch.dtype  # of the arithmetic
    device: torch.device  # of the arithmetic
    save_dtype: torch.dtype
    shards: Path  # the folder for the layers that are finished
    offload_dir: Path | None = None  # for the hidden states between two layers; in memory without it


def mark_(model: nn.Module, plan: Streamed) -> None:
    """From now on the model's weights are in memory layer by layer."""
    model.__dict__[_MARK] = plan


def streamed(model: nn.Module) -> Streamed | None:
    """How, if the model is worked with in this way."""
    found: Streamed | None = model.__dict__.get(_MARK)
    return found


def resident(arch: Arch, layer: int) -> contextlib.AbstractContextManager[None]:
    """A layer ready to run, in the dtype and on the device of the work.

    Nothing happens for a model that is in memory as a whole, here and in the two below.
    """
    return _ready(arch, modules_of(arch, layer))


def at_the_beginning(arch: Arch) -> contextlib.AbstractContextManager[None]:
    """The same of what comes before the layers: all of the model but them and the output layer."""
    return _ready(arch, _around(arch, arch.model.base_model))


def at_the_end(arch: Arch) -> contextlib.AbstractContextManager[None]:
    """The same of what comes after the layers: all but them and the embedding, which may be as large as the output."""
    embedding = arch.model.get_input_embeddings()
    return _ready(arch, [module for module in _around(arch, arch.model) if module is not embedding])


@contextlib.contextmanager
def _ready(arch: Arch, modules: Sequence[nn.Module]) -> Iterator[None]:
    plan = streamed(arch.model)
    if plan is None:
        yield
        return
    kept = ready_(modules, plan)
    try:
        yield
    finally:
        for places, name, value in kept:
            places[name] = value
        page_out(value for _, _, value in kept)


def modules_of(arch: Arch, layer: int) -> list[nn.Module]:
    return list(arch.layers[layer].modules())


def _around(arch: Arch, model: nn.Module) -> list[nn.Module]:
    inside = {id(module) for one in arch.layers for module in one.modules()}
    return [module for module in model.modules() if id(module) not in inside]


def ready_(modules: Iterable[nn.Module], plan: Streamed) -> list[tuple[dict[str, Any], str, Tensor]]:
    """Put weights in the plan's dtype on its device, and buffers on its device. Returns what was there."""
    kept: list[tuple[dict[str, Any], str, Tensor]] = []
    for module in modules:
        for name, value in module._parameters.items():
            if value is not None:
                kept.append((module._parameters, name, value))
                moved = value.detach().to(plan.device, plan.dtype)
                module._parameters[name] = nn.Parameter(moved, requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                kept.append((module._buffers, name, buffer))
                module._buffers[name] = buffer.to(plan.device)
    return kept


def as_computed(model: nn.Module, weight: Tensor) -> Tensor:
    """A weight in the dtype of the work, which of a streamed model's weights in their files may be another."""
    plan = streamed(model)
    return weight if plan is None else weight.to(plan.dtype)


def release(model: nn.Module, weights: Iterable[Tensor]) -> None:
    """Give back the memory of weights that were read in place; nothing happens for a model that is in memory."""
    if streamed(model) is not None:
        page_out(weights)


def page_out(tensors: Iterable[Tensor]) -> None:
    """Ask the system to take whole pages of these tensors out of memory; they are read again when they are needed."""
    _advise(tensors, _PAGE_OUT)


def let_go(tensors: Iterable[Tensor]) -> None:
    """Take tensors of shared maps of files out of this process; the system keeps them as long as it has room."""
    _advise(tensors, _DONT_NEED)


def read_ahead(tensors: Iterable[Tensor]) -> None:
    """Ask the system to begin reading these tensors, which will be needed soon."""
    _advise(tensors, _WILL_NEED)


def _advise(tensors: Iterable[Tensor], advice: int) -> None:
    """About the whole pages of tensors; nothing happens where the system isn't Linux."""
    if not sys.platform.startswith("linux"):
        return
    library, page = ctypes.CDLL(None), mmap.PAGESIZE
    for tensor in tensors:
        if tensor.device.type == "cpu" and tensor.is_contiguous():
            start = -(-tensor.data_ptr() // page) * page
            end = (tensor.data_ptr() + tensor.numel() * tensor.element_size()) // page * page
            if end > start:
                library.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), advice)
