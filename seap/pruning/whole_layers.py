"""Layers taken out of a model as they are: what is left is a stock checkpoint with fewer of them.

Config entries with a value for each layer (`layer_types`, `no_rope_layers`) are cut alike. Each layer that stays is
then built once more, empty, from the new config at its new place: it must be what it was, so that the folder loads
anywhere as the model in memory. It isn't where a family derives something from a layer's number.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch

from seap.errors import UserError
from seap.models.arch import Arch, describe
from seap.models.axes import Masks
from seap.models.families import sharing_modes, token_inputs
from seap.selection.whole_layers import dropped_layers

PLAIN = (int, float, bool, str, tuple, type(None))
OWN = ("layer_idx", "config")  # what may differ


def check_dense(model: Any) -> None:
    """Raise UserError for a model whose layers have widths of their own, by which its config numbers them."""
    if getattr(model.config, "seap", None):
        raise UserError(
            "--allocate whole-layers takes layers out of dense models, and this one is pruned already; give the model "
            "that it was made of"
        )
    if token_inputs(model.config) or any(sharing_modes(model.config)):
        raise UserError(
            f"--allocate whole-layers: the layers of {model.config.model_type} read what is theirs by their number (of "
            "the tokens, or keys of others), so none can go; prune units with another method, such as obs"
        )


@torch.no_grad()
def drop_layers_(arch: Arch, masks: Masks) -> Arch:
    """Take the layers out that the masks remove. Returns the model seen anew.

    The model is untouched when anything is refused: masks that also cut layers that stay, and layers that would be
    others at their new place.
    """
    model, dropped = arch.model, dropped_layers(masks)
    check_dense(model)
    if any(not axis.mask_of(masks).all() for axis in arch.axes if axis.layer not in dropped):
        raise UserError("a mask that takes whole layers out can't also cut others; prune twice, the layers first")
    kept = [layer for layer in range(len(arch.layers)) if layer not in dropped]
    config = copy.deepcopy(model.config)
    _cut_config_(config, kept, len(arch.layers))
    made = [_check_same(arch, config, layer, place) for place, layer in enumerate(kept)]
    _cut_config_(model.config, kept, len(arch.layers))
    for layer in sorted(dropped, reverse=True):
        del arch.layers[layer]
    for place, layer in enumerate(arch.layers):
        for path in made[place]:
            layer.get_submodule(path).layer_idx = place
    return describe(model)


def _cut_config_(config: Any, kept: Sequence[int], num_layers: int) -> None:
    for name, value in list(vars(config).items()):
        if "layer" in name and isinstance(value, list | tuple) and len(value) == num_layers:
            setattr(config, name, [value[layer] for layer in kept])
    config.num_hidden_layers = len(kept)


def _check_same(arch: Arch, config: Any, layer: int, place: int) -> list[str]:
    """Raise UserError unless a layer built from this config at this place is the one that is there.

    Returns the paths of its modules that know their place.
    """
    numbered = []
    for path, module in arch.built(config, layer, place).named_modules():
        own = arch.layers[layer].get_submodule(path)
        numbered += [path] if hasattr(module, "layer_idx") else []
        differing = _differing(vars(own), vars(module))
        if differing:
            where = f"{path}.{differing[0]}" if path else differing[0]
            raise UserError(
                f"layer {layer} can't become layer {place} of a stock {arch.family.model_type}: its {where} comes from "
                "its number; prune units with another method, such as obs"
            )
    return numbered


def _differing(own: dict[str, Any], built: dict[str, Any]) -> list[str]:
    """Plain attributes that two modules don't have alike."""
    names = [name for name in built if not name.startswith("_") and name not in (*OWN, "training")]
    return [name for name in names if isinstance(built[name], PLAIN) and own.get(name, ...) != built[name]]
