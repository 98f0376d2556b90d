"""A row of `families.py` from a model that has none: which linears of a layer read and write what, by watching it run.

A layer's linears are called in groups that read the same: those that write q, k and v, the one that reads the heads,
those that write the channels, the one that reads them. Which pair is the attention shows by whose output at the last
token depends on the first one; which config key sizes what, by building a layer with another value. What can't be told
so is said, and a check of the row itself (masked against sliced) is in pruning/proposal.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from seap.errors import first_line
from seap.models.families import FAMILIES, Family
from seap.models.heads import num_groups
from seap.models.modeling_seap import LayerConfig
from seap.models.watching import Call, groups_of, is_conv1d, watched

DERIVED = "its attention derives the head size from hidden_size / heads, so fewer heads can't be expressed"
OVER_HEADS = "its q/k norm spans all heads of a layer, so removing one changes the others"
HEAD_SIZES = ("head_dim", "head_size", "attention_head_size", "hidden_size_per_attention_head")


@dataclass(frozen=True)
class Derived:
    """row: None where it can't be told. told: what was not, or only partly."""

    row: Family | None
    told: tuple[str, ...] = ()


class CantTell(Exception):
    """Why a layer is none that a row describes."""


def derive(model: Any) -> Derived:
    """The row of a model with weights (random ones do), in memory and small."""
    try:
        return _derive(model)
    except CantTell as error:
        return Derived(None, (str(error),))


def layers_path(model: Any) -> str:
    """Where the list of decoder layers is."""
    number = model.config.num_hidden_layers
    found = {
        name: sum(p.numel() for p in module.parameters())
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == number
    }
    if not found:
        raise CantTell(f"it has no list of {number} layers")
    return max(found, key=lambda name: found[name])


def _derive(model: Any) -> Derived:
    path = layers_path(model)
    layer, told = model.get_submodule(path)[0], _about_layers(model.get_submodule(path))
    try:
        calls, given = watched(model, layer)
    except Exception as error:  # a model of sizes that nobody made can raise what it likes
        raise CantTell(f"a small model of it doesn't run ({type(error).__name__}: {first_line(error)})") from error
    groups = groups_of([call for call in calls if call.is_linear])
    attention, mlp = _pairs(groups, given.shape[-1])
    row = replace(
        FAMILIES["llama"],
        model_type=model.config.model_type,
        layers=path,
        transposed=is_conv1d(mlp[1].module),
        **_of_attention(model.config, layer, attention, told),
        **_of_mlp(model.config, layer, mlp, told),
        **_norms(calls, given, layer, attention, mlp),
    )
    return Derived(row, tuple(told))


def _about_layers(layers: Any) -> list[str]:
    """What the layers have that a row of one kind doesn't describe."""
    told = []
    names = [{name for name, module in layer.named_modules() if isinstance(module, nn.Linear)} for layer in layers]
    if other := next((index for index, found in enumerate(names) if found != names[0]), 0):
        differing = ", ".join(sorted(names[other] ^ names[0])[:4])
        told.append(f"its layers are of several kinds: layer {other} differs from layer 0 in {differing}")
    stacked = sorted({name for layer in layers for name, value in layer.named_parameters() if value.ndim == 3})
    if stacked:
        told.append(f"it has experts ({', '.join(stacked[:3])}): `experts` needs a Layout, as Mixtral's row has one")
    return told


Pair = tuple[list[Call], Call]  # those that write an axis, the one that reads it


def _pairs(groups: list[list[Call]], size: int) -> tuple[Pair, Pair]:
    """The attention and the MLP of a layer."""
    said = " → ".join("+".join(call.path for call in group) for group in groups) or "none"
    if len(groups) != 4 or any(len(group) > 1 or group[0].wrote.shape[-1] != size for group in groups[1::2]):
        raise CantTell(f"its layer runs its linears as {said}, not as q+k+v → o → gate+up → down: look at the module")
    pairs = [(groups[0], groups[1][0]), (groups[2], groups[3][0])]
    mixing = [pair for pair in pairs if not _differs(pair[0][0].read) and _differs(pair[1].read)]
    if len(mixing) != 1:
        raise CantTell(f"of {said} it can't be told which mixes tokens")
    return mixing[0], next(pair for pair in pairs if pair is not mixing[0])


def _differs(tensor: Tensor) -> bool:
    """Whether the last token of the two rows, which are alike but for the first, differs."""
    last = tensor.reshape(2, -1, tensor.shape[-1])[:, -1]
    return not torch.allclose(last[0], last[1], atol=1e-6)


def _of_attention(config: Any, layer: nn.Module, pair: Pair, told: list[str]) -> dict[str, Any]:
    producers, consumer = pair
    heads = getattr(config, "num_attention_heads", None)
    if type(heads) is not int:
        raise CantTell(f"its config says no number of attention heads (it has {heads!r})")
    groups = num_groups(config)
    if groups == 1:
        told.append("with one KV group none can go: whether its heads could be cut was not tried")
    inputs = consumer.read.shape[-1]
    size, rest = divmod(inputs, heads)
    if rest:
        raise CantTell(f"{consumer.path} reads {inputs} numbers, which {heads} heads don't divide: latent attention?")
    parts = _parts({call.path: call.wrote.shape[-1] for call in producers}, heads * size, groups * size)
    owner, _, _ = consumer.path.rpartition(".")
    found = {"heads": parts, "heads_consumer": consumer.path, "head_size": _head_size(layer, owner, size, told)}
    refused, values = _about_heads(layer, owner, heads, groups, size, told)
    return found | {"head_values": values, "heads_refused": refused or _refused(config, layer, consumer.path, size)}


def _parts(sizes: Mapping[str, int], queries: int, keys: int) -> dict[str, str]:
    """Which of q, k and v are in the rows of each linear, by how many there are."""
    if len(sizes) == 1 and sum(sizes.values()) == queries + 2 * keys:
        return dict.fromkeys(sizes, "qkv")
    if len(sizes) == 2 and set(sizes.values()) == {queries, 2 * keys}:
        return {name: "q" if place == 0 else "kv" for place, name in enumerate(sizes)}
    if len(sizes) == 3 and sorted(sizes.values()) == sorted([queries, keys, keys]):
        q = next(name for name, size in sizes.items() if size == queries)
        rest = iter("kv")
        return {name: "q" if name == q else next(rest) for name in sizes}
    raise CantTell(f"{', '.join(sizes)} write {list(sizes.values())} numbers, not q of {queries}, k and v of {keys}")


def _head_size(layer: nn.Module, owner: str, size: int, told: list[str]) -> str:
    module = layer.get_submodule(owner)
    named = [name for name in HEAD_SIZES if getattr(module, name, None) == size]
    named += sorted(name for name, value in vars(module).items() if type(value) is int and value == size)
    if not named:
        told.append(f"no attribute of {owner} is the head size {size}: `head_size` is left as it is")
        return FAMILIES["llama"].head_size
    return f"{owner}.{named[0]}"


def _about_heads(
    layer: nn.Module, owner: str, heads: int, groups: int, size: int, told: list[str]
) -> tuple[str, tuple[str, ...]]:
    """Why heads can't be cut, by the attention's other parameters, and those with a value for each head."""
    module, values = layer.get_submodule(owner), []
    for path, part in module.named_modules():
        if isinstance(part, nn.Linear) or is_conv1d(part):
            continue
        for name, value in part.named_parameters(recurse=False):
            count, whole = value.numel(), ".".join(filter(None, (owner, path, name)))
            if count in (heads * size, groups * size) and count > size:
                return OVER_HEADS, ()
            if count == heads and count != size:
                values.append(whole)
            elif count != size:
                told.append(f"{whole} has {count} numbers: what are they for, and are they one for each head?")
    return "", tuple(values)


def _refused(config: Any, layer: nn.Module, consumer: str, size: int) -> str:
    """Why fewer heads can't be said to a layer's constructor; empty where they can."""
    heads = config.num_attention_heads
    groups = num_groups(config)
    if groups == 1:
        return ""
    fewer = groups // 2
    said = {"num_attention_heads": heads // groups * fewer, "num_key_value_heads": fewer, "head_dim": size}
    built = rebuilt(config, layer, said)
    if built is None or _inputs(built.get_submodule(consumer)) != heads // groups * fewer * size:
        return DERIVED
    return ""


def _of_mlp(config: Any, layer: nn.Module, pair: Pair, told: list[str]) -> dict[str, Any]:
    producers, consumer = pair
    channels = consumer.read.shape[-1]
    sizes = [call.wrote.shape[-1] for call in producers]
    names = [call.path for call in producers]
    if sizes == [channels] * len(sizes) and len(sizes) in (1, 2):
        parts = dict(zip(names, "c" if len(sizes) == 1 else "gu", strict=True))
    elif sizes == [2 * channels]:
        parts = {names[0]: "gu"}
    else:
        raise CantTell(f"{', '.join(names)} write {sizes} numbers, and {consumer.path} reads {channels}")
    keys = [key for key, value in config.to_dict().items() if type(value) is int and value == channels]
    keys += [key for key, value in config.to_dict().items() if value is None]
    key = next((key for key in keys if _sizes(config, layer, consumer.path, key, channels + 8)), None)
    if key is None:
        told.append("no config key that sizes the MLP of one layer was found: `channels_key` is left as it is")
    return {
        "mlp": parts,
        "mlp_consumer": consumer.path,
        "channels_key": key or FAMILIES["llama"].channels_key,
    }


def _sizes(config: Any, layer: nn.Module, consumer: str, key: str, channels: int) -> bool:
    """Whether a config key says how many channels a layer has."""
    built = rebuilt(config, layer, {key: channels})
    return built is not None and _inputs(built.get_submodule(consumer)) == channels


def rebuilt(config: Any, layer: nn.Module, values: Mapping[str, int]) -> Any:
    """A layer by its own constructor with other values in its config, without memory; None where that raises."""
    view = LayerConfig(config, dict(values))
    with torch.device("meta"):
        for index in ((0,), ()):
            try:
                return type(layer)(view, *index)
            except Exception:  # whatever a constructor says to values that it can't have
                continue
    return None


def _inputs(module: Any) -> int:
    return int(module.weight.shape[0] if is_conv1d(module) else module.in_features)


def _norms(calls: list[Call], given: Tensor, layer: nn.Module, attention: Pair, mlp: Pair) -> dict[str, Any]:
    """The norms that the two sub-blocks read through, and those behind them."""
    norms = [call for call in calls if not call.is_linear]

    def before(pair: Pair) -> str:
        return next((call.path for call in norms if pair[0][0].reads(call.wrote)), "")

    def behind(pair: Pair) -> str:
        return next((call.path for call in norms if call.reads(pair[1].wrote)), "")

    first, second, usual = before(attention), before(mlp), FAMILIES["llama"].mlp_norm
    has_usual = isinstance(getattr(layer, usual, None), nn.Module)
    return {
        "heads_norm": first,
        "mlp_norm": usual if second == first and second and not has_usual else second,
        "heads_behind": behind(attention),
        "mlp_behind": behind(mlp),
    }
