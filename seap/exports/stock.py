"""A pruned model as one of a stock transformers class: one width for all layers, no code of its own.

`uniform` takes a model whose layers have one width already and changes nothing but its config. `padded` fills the
narrower layers with zero units: the same outputs, no smaller or faster than the widest layer. Any engine that knows
the family's stock class runs either.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from seap.errors import UserError
from seap.models.arch import Arch, describe
from seap.models.axes import ATTENTION, CHANNELS, KV_GROUPS, QUERY_HEADS, Axis, Slice
from seap.models.blocks import refuse_gone
from seap.models.families import refuse_experts
from seap.models.heads import num_groups
from seap.models.layer_config import layer_width_values, whole_values

OWN = (
    *("seap", "per_layer_config", "auto_map", "architectures"),
    *("allow_global_per_layer_attribute_access", "attn_implementation"),
)
BIAS_FLAGS = ("attention_bias", "mlp_bias")
# Classes that compute the same where no sliding window applies: what the key's class does, those named can do too.
REWRITES = {"llama": ("mistral",), "mistral": ("llama",), "qwen2": ("llama",)}


@dataclass(frozen=True)
class Form:
    """A stock config that holds a model, its class, and what was done to fit."""

    config: Any
    model_class: Any
    notes: tuple[str, ...]


def widths_by_axis(arch: Arch) -> dict[str, list[int]]:
    """Axis name → its units in each layer that has it; the number of experts; query heads, where any were cut."""
    found: dict[str, list[int]] = {}
    for key, count in arch.units.items():
        found.setdefault(key.rpartition(".")[2], []).append(count)
    if KV_GROUPS in found:  # heads that stay are as many as before
        stay = [i for i in range(len(arch.layers)) if arch.makes(i, ATTENTION) and not arch.cuts_heads(i)]
        found[KV_GROUPS] += [num_groups(arch.model.config)] * len(stay)
    if _says_each(arch):
        found.pop(CHANNELS, None)
    return found


def _says_each(arch: Arch) -> bool:
    """Whether the stock config has a list with each layer's channels."""
    return isinstance(getattr(arch.model.config, arch.family.channels_key, None), list)


def check_one_width(arch: Arch) -> None:
    """Raise UserError, saying how to prune for it, unless every layer has the same widths."""
    differing = {name: found for name, found in widths_by_axis(arch).items() if len(set(found)) > 1}
    if differing:
        spans = " and ".join(f"{min(w)} to {max(w)} {name.replace('_', ' ')}" for name, w in differing.items())
        raise UserError(
            f"the layers keep {spans}, and a stock class has one width for all of them. Prune the dense model again "
            "with --allocate one-width (and --round-to 64, say), or export --to padded: zeros up to the widest layer, "
            "exact, but no faster"
        )


def stock_model(model: Any, *, pad: bool, dense: Mapping[str, int] | None = None) -> tuple[Any, tuple[str, ...]]:
    """The same model as one of a stock class, and what was done to make it one. Weights are shared where they can be.

    pad: fill narrower layers with zeros, up to the widest or to `dense` (axis name → units). Its buffers are empty: it
    is there to be saved. Raises UserError where no stock class holds it, saying why.
    """
    arch = describe(model)
    refuse_gone(model.config, "a stock class", "load it with transformers and seap, or prune without --drop")
    if pad:
        refuse_experts(model.config, "--to padded", "prune with --allocate one-width and export --to uniform")
    else:
        check_one_width(arch)
        layouts = [arch.experts_of(axis).layout for axis in arch.axes if axis.usage_key]
        if any(layout.resized for layout in layouts):
            raise UserError(
                f"a stock {arch.family.model_type} makes the shared expert as wide as several others, and this one "
                "isn't; load it with transformers and seap"
            )
    form, units = _fitting_form(arch, pad=pad, dense=dense)
    with torch.device("meta"):
        built = form.model_class(form.config)
    state = _state(arch, built.state_dict(), units)
    built.load_state_dict(state, assign=True)
    built.tie_weights()
    built.generation_config = model.generation_config
    return built, form.notes


def _fitting_form(arch: Arch, *, pad: bool, dense: Mapping[str, int] | None) -> tuple[Form, dict[str, int]]:
    """The first stock form that holds the model; when padding, with more heads where fewer don't fit."""
    units = {name: max(found) for name, found in widths_by_axis(arch).items()} | dict(dense or {})
    reasons: list[str] = []
    for heads in _heads_from(arch, units, pad=pad):
        for form in _forms(arch, units | heads, reasons):
            return form, units | heads
    raise UserError(
        f"no stock class holds this model: {'; '.join(dict.fromkeys(reasons))}. Prune with --compensate none for one "
        "without added biases, or export --to gguf or openvino, or serve it with vLLM: they take it as it is"
    )


def _heads_from(arch: Arch, units: Mapping[str, int], *, pad: bool) -> Iterator[dict[str, int]]:
    """KV groups and query heads of each, those that the layers need first, when padding up to the dense model's."""
    if KV_GROUPS not in units:
        yield {}
        return
    groups, queries = units[KV_GROUPS], units.get(QUERY_HEADS, arch.queries_per_group)
    most = (arch.model.config.num_key_value_heads, arch.queries_per_group) if pad else (0, 0)
    for count in range(groups, max(groups, most[0]) + 1):
        for heads in range(queries, max(queries, most[1]) + 1):
            yield {KV_GROUPS: count, QUERY_HEADS: heads}


def _forms(arch: Arch, units: Mapping[str, int], reasons: list[str]) -> Iterator[Form]:
    """Stock configs of these widths that hold every weight of the model. Adds to `reasons` why others don't."""
    from huggingface_hub.errors import StrictDataclassError

    own = arch.model.config.model_type
    others = () if slides(arch.model.config) else REWRITES.get(own, ())
    for model_type in (own, *others):
        try:
            config, model_class = _config(arch, model_type, units)
            with torch.device("meta"):
                shapes = model_class(config).state_dict()
        except (ValueError, StrictDataclassError) as error:  # a config that refuses the number of heads
            reasons.append(f"{model_type} says: {str(error).strip().splitlines()[-1].strip().rstrip('.')}")
            continue
        if why := _misfit(arch, shapes):
            reasons.append(f"{model_type} has {why}")
            continue
        notes = [f"rewritten from {own} to {model_type}, which computes the same"] if model_type != own else []
        yield Form(config, model_class, tuple(notes))


def _misfit(arch: Arch, shapes: Mapping[str, Tensor]) -> str:
    """What a stock class doesn't hold of a model: a weight, or the shape of one that isn't cut. Empty where all fit."""
    found, places = arch.model.state_dict(), _places(arch)
    homeless = sorted(found.keys() - shapes.keys())
    if homeless:
        return f"no place for {homeless[0]}"
    other = (name for name, value in found.items() if value.shape != shapes[name].shape)
    return next((f"another shape for {name}" for name in other if name.rpartition(".")[0] not in places), "")


def _config(arch: Arch, model_type: str, units: Mapping[str, int]) -> tuple[Any, Any]:
    """The model's config in a stock class of this type, with these widths and the flags for the biases it has."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    config_class = CONFIG_MAPPING[model_type]
    own = [name for name in OWN if name != "per_layer_config" or not arch.family.sizes_by_type]
    values = {name: value for name, value in arch.model.config.to_dict().items() if name not in own}
    if model_type != arch.model.config.model_type:
        known = config_class().to_dict().keys() | {"dtype"}
        values = {name: value for name, value in values.items() if name in known and name != "layer_types"}
        values |= {"model_type": model_type, "sliding_window": None} if "sliding_window" in known else {}
    for layer in range(len(arch.layers)):
        budgets = {f"layers.{layer}.{name}": count for name, count in units.items()}
        own_values = layer_width_values(arch, budgets, layer)
        values |= {k: v for k, v in own_values.items() if k != arch.family.channels_key or not _says_each(arch)}
    values |= whole_values(arch)
    has = {flag: _has_bias(arch, flag) for flag in BIAS_FLAGS}
    values |= {flag: True for flag, found in has.items() if found and hasattr(config_class(), flag)}
    values.pop("model_type", None)
    config = config_class(**values)
    return config, AutoModelForCausalLM._model_mapping[type(config)]


def _has_bias(arch: Arch, flag: str) -> bool:
    """Whether any linear of the attention, or of the MLP, has a bias."""
    name = KV_GROUPS if flag == "attention_bias" else "channels"
    return any(
        arch.linear(axis.layer, part.module).bias is not None
        for axis in arch.axes
        if axis.name == name
        for part in axis.slices
    )


def slides(config: Any) -> bool:
    """Whether a sliding window ever hides a token."""
    window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    if window is None or (types is not None and "sliding_attention" not in types):
        return False
    return bool(window < config.max_position_embeddings)


def _places(arch: Arch) -> dict[str, tuple[Axis, Slice]]:
    """The linears that axes run through, by their names in a checkpoint."""
    start = arch.family.layers
    return {f"{start}.{axis.layer}.{part.module}": (axis, part) for axis in arch.axes for part in axis.slices}


def _state(arch: Arch, shapes: Mapping[str, Tensor], units: Mapping[str, int]) -> dict[str, Tensor]:
    """The model's weights in the stock model's shapes: zeros for units and biases that it hasn't got."""
    places, found = _places(arch), arch.model.state_dict()
    state = {}
    for name, shape in shapes.items():
        tensor = found.get(name)
        if tensor is None:
            state[name] = torch.zeros(shape.shape, dtype=arch.model.dtype)
        elif tensor.shape == shape.shape:
            state[name] = tensor
        else:
            axis, part = places[name.rpartition(".")[0]]
            state[name] = widened(tensor, axis, part, units[axis.name], units.get(QUERY_HEADS, 1))
    return state


def widened(tensor: Tensor, axis: Axis, part: Slice, units: int, queries: int) -> Tensor:
    """A linear's weight or bias with zero units after its own, up to `units` of them.

    In KV groups also with zero query heads after those of each, up to `queries`.
    """
    dim = part.dim if tensor.ndim > 1 else 0
    keep = torch.arange(units) < axis.units
    if part.by_head:
        of_heads = zip(part.sections, part.by_head, strict=True)
        sections = tuple(size // axis.queries * queries if is_heads else size for size, is_heads in of_heads)
        part = replace(part, sections=sections)
        keep = keep[:, None] & (torch.arange(queries) < axis.queries)
    shape = list(tensor.shape)
    shape[dim] = units * sum(part.sections)
    return torch.zeros(shape, dtype=tensor.dtype).index_copy_(dim, part.indices(keep), tensor.cpu())
