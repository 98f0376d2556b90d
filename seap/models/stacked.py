"""Experts' weights as a model has them, stacked, from files that have each expert's own: written once, layer by layer.

transformers stacks them in memory as it loads a checkpoint, those of all layers. A model that stays in its files needs
them on disk as they will be read. How an expert's weights are called in a checkpoint isn't known here: transformers'
own mapping takes apart a small stack whose entries are numbers, and what it puts under a name is that name's place.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from seap.files import write_safetensors
from seap.models.arch import describe
from seap.models.dequantize import Files

METADATA = {"format": "pt"}
Places = dict[str, list[list[str]]]  # a stack's name → for each expert, those of the linears that lie under each other


def stack_to_files(model: Any, paths: Sequence[Path], folder: Path) -> dict[str, Tensor] | None:
    """Every tensor of a checkpoint, mapped from disk, experts' stacked under the model's own names.

    model: without weights. paths: the checkpoint's files. folder: where the stacks are written, a file a layer. None
    where the files have them as the model has; nothing is written then.
    """
    files, stacks = Files(paths), dict[str, Tensor]()
    apart: set[str] = set()
    for layer in range(len(describe(model).layers)):
        places = places_of(model, layer)
        names = {part for experts in places.values() for parts in experts for part in parts}
        if not names or not names <= files.places.keys():
            continue
        apart |= names
        path = folder / f"experts-{layer}.safetensors"
        whole = {
            name: torch.stack([torch.cat([files[part] for part in parts]) for parts in experts])
            for name, experts in places.items()
        }
        write_safetensors(path, whole, METADATA)
        with safe_open(path, framework="pt") as opened:
            stacks |= {name: opened.get_tensor(name) for name in whole}
    if not stacks:
        return None
    return {name: files[name] for name in files.places if name not in apart} | stacks


def stacked_params(model: Any) -> int:
    """Parameters of the experts that a family's checkpoints have one by one; model: with or without weights."""
    sizes = {name: value.numel() for name, value in model.named_parameters()}
    return sum(sizes[name] for layer in range(len(describe(model).layers)) for name in places_of(model, layer))


def places_of(model: Any, layer: int) -> Places:
    """A layer's stacks that checkpoints have in parts; none where the layer has no experts, or they lie as they are."""
    from transformers.core_model_loading import revert_weight_conversion

    arch, found = describe(model), Places()
    experts = arch.experts(layer)
    if experts is None:
        return found
    layout, count = experts.layout, experts.num_experts
    for path, parts in ((layout.up, len(layout.by_channel[layout.up].sections)), (layout.down, 1)):
        name, numbers = f"{arch.family.layers}.{layer}.{path}", torch.arange(count * parts).view(count, parts, 1)
        apart = revert_weight_conversion(model, {name: numbers})
        if len(apart) == numbers.numel():  # else they lie stacked already, maybe under another name
            order = sorted(apart, key=lambda own: int(apart[own].flatten()[0]))
            found[name] = [order[i : i + parts] for i in range(0, len(order), parts)]
    return found
