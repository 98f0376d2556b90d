"""config.json → the config of a known family, agreed with the weights: the one place where constructors run first.

What a config says about how a model is to run is not taken from it: the attention implementation (which may name a
kernel for transformers to fetch and run), the file of the weights, other configs.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from seap.disk.whole import temporary
from seap.errors import UserError, missing_extra
from seap.models import decoders, headers, kinds, modeling_seap, quantized
from seap.models.axes import ATTENTION, MLP
from seap.models.families import FAMILIES, Family, find_family, width_keys
from seap.models.heads import said
from seap.models.kinds import Folder, cant_load

OURS = frozenset(  # to choose, at any depth of a config
    f"{start}{name}{end}"
    for name in ("attn_implementation", "experts_implementation")
    for start in ("", "_")
    for end in ("", "_internal")
) | {"transformers_weights", "kernel_config", "use_kernels", "allow_all_kernels", "distributed_config", "tp_plan"}
OURS |= {"configuration_files", "gguf_file", "adapter_kwargs", "_commit_hash", "device_map"}
INNER = ("text_config", "llm_config", "language_config", "thinker_config", "text_model_config", "decoder")


@dataclass(frozen=True)
class Opened:
    """A folder whose config agrees with its weights."""

    folder: Folder
    config: Any
    shapes: headers.Shapes


def open_folder(path: Path, *, trust_remote_code: bool = False) -> Opened:
    """Config and headers of a model folder; nothing is in memory yet. Raises UserError with cause and what to do."""
    folder = kinds.look(path)
    raw = folder.config
    if not trust_remote_code or raw.get("model_type") in FAMILIES:
        _check_family(path, raw)
    shapes, told = headers.read_headers(folder.weights), decoders.said_of_decoder(raw)
    model_type, is_quantized = told.get("model_type"), folder.quantization is not None
    if model_type in FAMILIES:
        for key in _names_of_layers(model_type):
            if key in told:
                headers.check_num_layers(path, told[key], shapes, told, FAMILIES[model_type], quantized=is_quantized)
        check_spec(path, told)
    config = build_config(path, raw, trust_remote_code=trust_remote_code)
    own = decoders.text_config(config)
    headers.check_num_layers(path, own.num_hidden_layers, shapes, told, find_family(own), quantized=is_quantized)
    check_heads(path, own)
    if folder.taken_back is not None:
        if decoders.is_wrapper(config):
            raise cant_load(path, f"a multimodal model whose weights are quantized; {quantized.GIVE}")
        _forget_quantization_(config)
        config.dequantized_from = folder.taken_back.about()
    if shapes and not trust_remote_code and getattr(config, "quantization_config", None) is None:
        with reading(path):
            model = on_meta(config)
        headers.check_shapes(path, model, shapes)
    return Opened(folder, config, shapes)


def _check_family(path: Path, raw: Mapping[str, Any]) -> None:
    model_type = raw.get("model_type")
    if not isinstance(model_type, str):
        raise cant_load(path, "config.json has no model_type, so it isn't known which model this is")
    if model_type in FAMILIES:
        return
    for key in INNER:
        inner = raw.get(key)
        if isinstance(inner, dict):
            name = inner.get("model_type", "unknown")
            if decoders.may_wrap(model_type) and (name in FAMILIES or "model_type" not in inner):
                return
            raise cant_load(
                path,
                f"{model_type} is a multimodal wrapper around a text decoder ({name}), which isn't supported yet; "
                "save the decoder as a model of its own, if its family is known: " + ", ".join(sorted(FAMILIES)),
            )
    if decoders.may_wrap(model_type):  # older ones have the decoder's entries beside their own
        return
    find_family(SimpleNamespace(model_type=model_type))


def _forget_quantization_(config: Any) -> None:
    """What a config says of quantized weights, which the model won't have."""
    inner = [getattr(config, name, None) for name in getattr(config, "sub_configs", {})]
    for part in [config, *(part for part in inner if part is not None)]:
        for name in quantized.ENTRIES:
            part.__dict__.pop(name, None)


def _names_of_layers(model_type: str) -> set[str]:
    """The keys under which a config of the family says how many layers there are."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if model_type not in CONFIG_MAPPING:  # a transformers that is too old
        return {"num_hidden_layers"}
    mapped = getattr(CONFIG_MAPPING[model_type], "attribute_map", {})
    return {"num_hidden_layers", mapped.get("num_hidden_layers", "num_hidden_layers")}


def check_heads(path: Path, config: Any) -> None:
    """Raise UserError for numbers of heads that no attention can have, which no shape of a weight shows."""
    heads = config.num_attention_heads
    groups = said(config, "num_key_value_heads")
    groups = heads if groups is None else groups
    found = [(heads, groups)]
    with reading(path):
        for layer in range(config.num_hidden_layers if getattr(config, "seap", None) else 0):
            own = modeling_seap.layer_widths(config, layer)
            found.append((own.get("num_attention_heads", heads), own.get("num_key_value_heads", groups)))
    for heads, groups in found:
        if not all(type(number) is int and number > 0 for number in (heads, groups)) or heads % groups:
            raise cant_load(
                path, f"config.json says {heads!r} attention heads in {groups!r} groups; correct the config"
            )


def check_spec(path: Path, raw: Mapping[str, Any]) -> None:
    """Raise UserError for a damaged `seap` entry, by which the layers of a pruned checkpoint are built."""
    spec = raw.get("seap")
    if spec is None:
        return
    known = {"num_attention_heads", "num_key_value_heads", *width_keys(FAMILIES[raw["model_type"]])}
    own = spec.get("layers") if isinstance(spec, dict) else None
    per_layer = raw.get("per_layer_config") if own is None else own
    added = spec.get("added_bias") if isinstance(spec, dict) else None
    sound = (
        isinstance(spec, dict)
        and isinstance(spec.get("widths"), list)
        and all(isinstance(name, str) and name in known for name in spec["widths"])
        and _sound_classes(spec.get("layer_class"))
        and isinstance(added, dict)
        and all(isinstance(layers, list) and all(type(i) is int for i in layers) for layers in added.values())
        and isinstance(per_layer, dict | list)
        and all(isinstance(v, dict) for v in (per_layer.values() if isinstance(per_layer, dict) else per_layer))
        and spec.get("resized", {}) == _resized(FAMILIES[raw["model_type"]])
        and _sound_blocks(spec, FAMILIES[raw["model_type"]])
    )
    if not sound:
        raise cant_load(path, "the entry `seap` or `per_layer_config` of its config.json is damaged; prune again")


def _resized(family: Family) -> Any:
    return {} if family.experts is None else family.experts.resized


def _sound_classes(names: Any) -> bool:
    """Whether they can be the names of decoder layers' classes."""
    given = [names] if isinstance(names, str) else names
    return (
        isinstance(given, list)
        and bool(given)
        and all(isinstance(name, str) and name.isidentifier() for name in given)
        and all(name.endswith(("Layer", "Block")) for name in given)
    )


def _sound_blocks(spec: Mapping[str, Any], family: Family) -> bool:
    """Whether what a `seap` entry says of whole sub-blocks names the family's own modules."""
    if "blocks" not in spec:
        return True
    blocks, written = spec["blocks"], spec.get("written")
    consumers = {ATTENTION: family.heads_consumer, MLP: family.mlp_consumer}
    passes = {family.heads_norm, family.mlp_norm, family.heads_behind, family.mlp_behind, *family.mlp} - {""}
    return (
        isinstance(blocks, dict)
        and isinstance(written, dict)
        and blocks.keys() == written.keys() == consumers.keys()
        and all(isinstance(block, dict) and block.get("consumer") == consumers[kind] for kind, block in blocks.items())
        and all(isinstance(block.get("passes"), list) for block in blocks.values())
        and all(isinstance(name, str) and name in passes for block in blocks.values() for name in block["passes"])
        and all(isinstance(layers, list) and all(type(i) is int for i in layers) for layers in written.values())
    )


def build_config(path: Path, raw: Mapping[str, Any], *, trust_remote_code: bool = False) -> Any:
    """The config of a known family as transformers makes it, without what is ours to choose."""
    config = any_config(path, raw, trust_remote_code=trust_remote_code)
    find_family(decoders.text_config(config))
    return config


def any_config(path: Path, raw: Mapping[str, Any], *, trust_remote_code: bool = False) -> Any:
    """As `build_config`, of any family that transformers knows, or that comes with code that is trusted."""
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    model_type = raw.get("model_type")
    if not trust_remote_code and model_type not in CONFIG_MAPPING:
        own = ", and its own code runs only with --trust-remote-code" if "auto_map" in raw else ""
        raise cant_load(path, f"this transformers doesn't know the model type {model_type!r}{own}; a newer one may")
    with reading(path):
        if trust_remote_code:
            config = AutoConfig.from_pretrained(path, trust_remote_code=True)
        else:
            with temporary("config") as place:  # which a later run removes if this one is killed
                (place / "config.json").write_text(json.dumps(without_ours(raw)))
                config = AutoConfig.from_pretrained(place, local_files_only=True)
            config._name_or_path = str(path)
        for name in ("_attn_implementation", "_experts_implementation"):
            setattr(config, name, None)  # and of the configs inside
    for name in ("transformers_weights", "kernel_config", "distributed_config"):
        config.__dict__.pop(name, None)
    return config


def without_ours(value: Any) -> Any:
    """JSON without the keys that are ours to choose."""
    if isinstance(value, Mapping):
        return {key: without_ours(part) for key, part in value.items() if key not in OURS}
    return [without_ours(part) for part in value] if isinstance(value, list) else value


def on_meta(config: Any) -> Any:
    """A model of this config that takes no memory."""
    import torch

    with torch.device("meta"):
        return decoders.auto_class(config).from_config(config)


@contextlib.contextmanager
def reading(name: Any, what: str = "its config.json doesn't fit its family") -> Iterator[None]:
    """Turn whatever the constructors of configs, models and tokenizers raise into `can't load …: cause, what to do`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, ImportError) and "torchao" in str(error):
            asking = f"the model {str(name)!r}, whose weights are quantized,"
            raise missing_extra("torchao", "torchao", asking) from error
        raise cant_load(name, f"{what} ({cause(error)}); correct it, or get the files again") from error


def cause(error: BaseException) -> str:
    """All of an error's message in a line, at most 300 characters; with its type where that says more."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, KeyError | AttributeError | TypeError | IndexError):
        text = f"{type(error).__name__} {text}"
    return text if len(text) <= 300 else f"{text[:299]}…"
