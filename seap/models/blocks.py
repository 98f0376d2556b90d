"""Whole sub-blocks: the attention or the MLP of a layer that goes with all its units, its norm and its KV cache.

What is left of one is at most a vector that the layer adds to the residual stream. A family's row says which norms go
with it; `modeling_seap.py` builds layers without.
"""

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor, nn

from seap.errors import UserError
from seap.models import modeling_seap
from seap.models.arch import Arch
from seap.models.axes import ATTENTION, CHANNELS, KV_GROUPS, MLP, Axis

BLOCK_OF = {KV_GROUPS: ATTENTION, CHANNELS: MLP}


def why_whole(arch: Arch, axis: Axis) -> str:
    """Why an axis must keep a unit; empty where its sub-block can go."""
    if axis.name not in BLOCK_OF or (axis.name == CHANNELS and arch.experts(axis.layer) is not None):
        return "a layer keeps its experts, and the one that all tokens go through"
    return blocks_refused(arch)


def blocks_refused(arch: Arch) -> str:
    """Why no sub-block of a model can go whole, by an option of its config; empty when they can."""
    options = arch.family.blocks_refused_with.items()
    return arch.family.blocks_refused or next(
        (why for (entry, value), why in options if getattr(arch.model.config, entry, None) is value), ""
    )


def cache_kinds(arch: Arch) -> list[str]:
    """Of each layer, which kind of KV cache its attention has."""
    types = getattr(arch.model.config, "layer_types", None)
    return list(types) if types else [""] * len(arch.layers)


def cached_tokens(config: Any, layer: int, context: int) -> int:
    """Tokens of so many that a layer's attention holds keys and values of: with a sliding window no more than that."""
    window, types = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    slides = types[layer] == "sliding_attention" if types else True
    return min(context, int(window)) if slides and window else context


def first_of_kind(arch: Arch, axis: Axis) -> bool:
    """Whether an axis is the first attention of its kind of cache."""
    kinds = cache_kinds(arch)
    before = [other for other in arch.axes if other.name == KV_GROUPS and other.layer < axis.layer]
    return axis.name == KV_GROUPS and all(kinds[other.layer] != kinds[axis.layer] for other in before)


def check_gone(arch: Arch, masks: Mapping[str, Tensor], *, whole_layers: Collection[int] = ()) -> None:
    """Raise UserError where masks take away a sub-block that must stay. whole_layers: those that go as such."""
    kinds = cache_kinds(arch)
    staying = {kinds[axis.layer] for axis in arch.axes if axis.name == KV_GROUPS and bool(masks[axis.key].any())}
    for axis in arch.axes:
        if bool(masks[axis.key].any()) or axis.layer in whole_layers:
            continue
        if why := why_whole(arch, axis):
            units = masks[axis.key].numel()
            raise UserError(f"{axis.key}: the mask keeps 0 of {units} units; at least 1 must remain: {why}")
        if axis.name == KV_GROUPS and kinds[axis.layer] not in staying:
            kind = kinds[axis.layer] or "all layers"
            raise UserError(
                f"{axis.key}: the masks take away every attention of {kind}; one must stay, by whose cache the tokens "
                "are counted"
            )


def gone(config: Any) -> list[str]:
    """The sub-blocks that a checkpoint's layers haven't got: `layer 3 attention`."""
    layers = range(config.num_hidden_layers)
    return [f"layer {i} {kind}" for i in layers for kind in modeling_seap.skipped(config, i)]


def without(config: Any) -> dict[str, int]:
    """The axes of those sub-blocks, each with 0 units: `layers.3.kv_groups`."""
    axes = {kind: axis for axis, kind in BLOCK_OF.items()}
    layers = range(config.num_hidden_layers)
    return {f"layers.{i}.{axes[kind]}": 0 for i in layers for kind in modeling_seap.skipped(config, i)}


def refuse_gone(config: Any, what: str, instead: str) -> None:
    """Raise UserError for a model that has lost whole sub-blocks. what: that doesn't know it; instead: what to do."""
    if missing := gone(config):
        raise UserError(f"{what} doesn't know layers without {missing[0].split()[-1]} ({missing[0]}); {instead}")


def blocks_of(arch: Arch, layer: int) -> dict[str, dict[str, Any]]:
    """What belongs to the two sub-blocks of a layer: the linear that writes, and what goes with it."""
    row, found = arch.family, arch.layers[layer]
    has_two = not row.mlp_norm or isinstance(getattr(found, row.mlp_norm, None), nn.Module)
    producers = () if row.mlp_consumer.count(".") else tuple(row.mlp)  # that the layer calls itself
    heads = (row.heads_norm, row.heads_behind)
    mlp = (row.mlp_norm if has_two else row.heads_norm, *producers, row.mlp_behind)
    return {
        ATTENTION: {"consumer": row.heads_consumer, "passes": [name for name in heads if name]},
        MLP: {"consumer": row.mlp_consumer, "passes": [name for name in mlp if name]},
    }


def behind(arch: Arch, layer: int, kind: str) -> Any:
    """The norm behind what a sub-block writes, or None."""
    row = arch.family
    return arch.norm_at(layer, row.heads_behind if kind == ATTENTION else row.mlp_behind)
