"""GGUF for llama.cpp: architectures whose files say the widths layer by layer.

Llama, Mistral and Qwen2 become `deci`, which reads arrays of head counts and MLP widths, and biases anywhere. Tied,
bias-free Qwen3 becomes `openelm`, which normalises q and k as Qwen3 does. Both are found in llama.cpp's
src/models/deci.cpp and openelm.cpp, and are what its convert_hf_to_gguf.py writes for models of that name. Mixtures of
experts, whose layers must be alike, are in gguf_experts.py; Nemotron-H, Gemma 3 and Gemma 4 have architectures of their
own, in gguf_states.py, gguf_gemma3.py and gguf_gemma4.py.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seap.disk.kinds import GGUF_KEY
from seap.errors import UserError, missing_extra, refuse
from seap.exports import gguf_gemma3, gguf_gemma4, gguf_states
from seap.exports.engines import widths
from seap.exports.gguf_experts import add_parameters, check_experts, expert_tensors, is_router, misplaced
from seap.exports.gguf_names import ATTENTION, GLOBAL, MLP, parts, whole_tensors
from seap.exports.llamas import ROPES, rope_of
from seap.exports.options import Export
from seap.exports.stock import slides
from seap.models.arch import Arch, describe
from seap.models.axes import KV_GROUPS
from seap.models.blocks import refuse_gone
from seap.models.families import has_experts, refuse_states

# families with a layout of their own
OWN: dict[str, Any] = {module.FAMILY: module for module in (gguf_states, gguf_gemma3, gguf_gemma4)}
ARCHITECTURES = {"llama": "deci", "mistral": "deci", "qwen2": "deci", "qwen3": "openelm"}
NAMES = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"} | ATTENTION | MLP
LARGEST_F16 = 65504.0


def gguf_package() -> Any:
    """The `gguf` package. Raises UserError naming the extra where it isn't installed."""
    try:
        import gguf
    except ImportError as error:
        raise missing_extra("gguf", "gguf", "--to gguf") from error
    return gguf


def check_config(config: Any) -> str:
    """The GGUF architecture of a model, from its config. Raises UserError, with the reason, where there is none."""
    refuse_gone(config, "--to gguf", "llama.cpp runs such a layer in its own way: prune without --drop")
    if config.model_type in OWN:
        return str(OWN[config.model_type].check(config))
    refuse_states(config, "--to gguf", "load it with transformers, which needs import seap")
    if has_experts(config):
        return check_experts(config)
    family = config.model_type
    rope = getattr(config, "rope_parameters", None) or {}
    reasons = {
        f"llama.cpp knows no architecture with a width per layer for {family}": family not in ARCHITECTURES,
        "its sliding window can't be said there": slides(config),
        f"its activation is {getattr(config, 'hidden_act', None)}, not silu": getattr(config, "hidden_act", "")
        != "silu",
        f"its rope scaling {rope.get('rope_type')} isn't written yet": rope.get("rope_type", "default") not in ROPES,
        "only Qwen3 with tied embeddings fits openelm": family == "qwen3" and not config.tie_word_embeddings,
        "openelm scales no rope": family == "qwen3" and rope.get("rope_type", "default") != "default",
    }
    advice = "use --to padded and llama.cpp's convert_hf_to_gguf.py on the result"
    if getattr(config, "seap", None) is None:
        advice = "llama.cpp's own convert_hf_to_gguf.py reads this checkpoint as it is, since no layer was cut"
    refuse("--to gguf", reasons, advice)
    return ARCHITECTURES[family]


def check_model(arch: Arch, architecture: str) -> None:
    """Raise UserError for biases that the architecture has no place for."""
    if architecture in ("deci", gguf_states.ARCHITECTURE):
        return
    biases = misplaced(architecture, [name for name, _ in arch.model.named_parameters()])
    if biases:
        raise UserError(
            f"--to gguf: {architecture}, where {arch.family.model_type} goes, has no biases there, and this model has "
            f"{len(biases)}, such as {biases[0]}; prune with --compensate none, which adds none"
        )


def write_gguf(
    model: Any, vocabulary: Any, path: Path, options: Export, about: Mapping[str, Any] | None = None
) -> list[str]:
    """Write a model and its vocabulary to one file; returns what to know about it. about: its seap.json.

    The weights are written one after the other, so that no second copy of the model is in memory.
    """
    gguf, arch = gguf_package(), describe(model)
    architecture = check_config(model.config)
    check_model(arch, architecture)
    kinds = {name: _kind(gguf, name, tensor, options) for name, tensor in _tensors(arch, architecture)}
    with contextlib.closing(gguf.GGUFWriter(path, architecture)) as writer:
        _add_parameters(gguf, writer, arch, options)
        if about is not None:
            writer.add_description(_described(about))
        vocabulary.add_to(writer)
        for name, tensor in _tensors(arch, architecture):
            size = gguf.quant_shape_to_byte_shape(tuple(tensor.shape), kinds[name])
            writer.add_tensor_info(name, tensor.shape, np.dtype(np.float32), math.prod(size), raw_dtype=kinds[name])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, tensor in _tensors(arch, architecture):
            writer.write_tensor_data(_encoded(gguf, name, tensor, kinds[name]))
    ropes = [] if model.config.model_type in OWN else rope_of(model.config, "--to gguf").notes
    return [*vocabulary.notes, *ropes, *_about_kinds(gguf, arch, kinds, options)]


def _add_parameters(gguf: Any, writer: Any, arch: Arch, options: Export) -> None:
    writer.add_string(GGUF_KEY, version("seap"))  # among the first, where a file's beginning tells whose it is
    config = arch.model.config
    types = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
    writer.add_name(Path(getattr(config, "_name_or_path", "") or "model").name)
    writer.add_file_type(gguf.LlamaFileType[types[options.quantize]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(len(arch.layers))
    if config.model_type in OWN:
        OWN[config.model_type].add_layers(writer, arch)
    else:
        _add_layers(gguf, writer, arch)


def _add_layers(gguf: Any, writer: Any, arch: Arch) -> None:
    """Widths, experts, norms and rope of layers that have an attention and an MLP each."""
    config, layers = arch.model.config, widths(arch.model.config)
    groups = [layer["kv_groups"] for layer in layers]
    each: list[list[int]] = [
        [layer["channels"] for layer in layers],
        [count * arch.queries_at(layer) for layer, count in enumerate(groups)],
        groups,
    ]
    channels, heads, kv = [found[0] for found in each] if has_experts(config) else each  # one number, or one of each
    writer.add_feed_forward_length(channels)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv)
    if has_experts(config):
        add_parameters(writer, config)
    writer.add_key_length(arch.head_size)
    writer.add_value_length(arch.head_size)
    writer.add_rope_dimension_count(arch.head_size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope.get("rope_type") == "yarn":  # its frequencies are among the tensors; this is what q and k are scaled by
        writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)
        writer.add_rope_scaling_attn_factors(float(arch.model.model.rotary_emb.attention_scaling))


def _described(about: Mapping[str, Any]) -> str:
    tasks = ", ".join(about["tasks"]) or "no task"
    return (
        f"{about['realised_sparsity']:.1%} of the attention and MLP parameters of {Path(about['model']).name} removed "
        f"by seap {about['versions']['seap']}, method {about['method']}, for {tasks}"
    )


def _tensors(arch: Arch, architecture: str) -> Iterator[tuple[str, Tensor]]:
    """Every tensor under its name in the file, in llama.cpp's layout."""
    if arch.family.model_type in OWN:
        yield from OWN[arch.family.model_type].tensors(arch)
        return
    yield from whole_tensors(arch.model, GLOBAL)
    if (factors := rope_factors(arch)) is not None:
        yield "rope_freqs.weight", factors
    for layer, block in enumerate(arch.layers):
        own = {f"{NAMES[path]}.{kind}": value for path, kind, value in parts(block) if path in NAMES}
        if arch.experts(layer) is not None:
            own |= expert_tensors(dict(block.named_parameters()))
        yield from ((f"blk.{layer}.{name}", value) for name, value in _laid_out(own, architecture, arch.head_size))


def _laid_out(own: Mapping[str, Tensor], architecture: str, head_size: int) -> Iterator[tuple[str, Tensor]]:
    """One layer's tensors as the architecture wants them: q, k and v in one (openelm), q and k in pairs (llama)."""
    if architecture == "openelm":
        yield "attn_qkv.weight", torch.cat([own[f"attn_{part}.weight"] for part in "qkv"])
        yield from ((name, value) for name, value in own.items() if name[:-7] not in ("attn_q", "attn_k", "attn_v"))
        return
    for name, value in own.items():
        turned = architecture in ("deci", "llama") and name.startswith(("attn_q.", "attn_k."))
        yield name, interleaved(value, head_size) if turned else value


def interleaved(rows: Tensor, head_size: int) -> Tensor:
    """Rows of q or k from transformers' rotary order (halves) to llama.cpp's (pairs), head by head."""
    heads = rows.shape[0] // head_size
    return rows.reshape(heads, 2, head_size // 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def rope_factors(arch: Arch) -> Tensor | None:
    """What Llama 3's and YaRN's scaling divide each frequency by (K/2,); None for a rope without.

    llama.cpp has YaRN of its own, but not every option of it: the quotients say all of them.
    """
    rope = arch.model.config.rope_parameters
    if rope.get("rope_type") not in ("llama3", "yarn"):
        return None
    plain = rope["rope_theta"] ** -(torch.arange(0, arch.head_size, 2, dtype=torch.float32) / arch.head_size)
    return plain / arch.model.model.rotary_emb.inv_freq.float().cpu()


def _kind(gguf: Any, name: str, tensor: Tensor, options: Export) -> Any:
    """The type of one tensor: vectors stay float32, and rows that no block fits stay float16."""
    kinds = gguf.GGMLQuantizationType
    if tensor.ndim == 1 or is_router(name) or gguf_states.stays_float32(name):
        return kinds.F32
    if options.quantize == "q8_0":
        return kinds.Q8_0 if tensor.shape[-1] % 32 == 0 else kinds.F16
    return kinds[options.quantize.upper()]


def _encoded(gguf: Any, name: str, tensor: Tensor, kind: Any) -> Any:
    values = tensor.detach().float().cpu().contiguous().numpy()
    if kind == gguf.GGMLQuantizationType.F16 and (largest := float(np.abs(values).max())) > LARGEST_F16:
        raise UserError(f"{name} holds {largest:.3g}, which float16 can't; use --quantize bf16 or f32")
    return gguf.quants.quantize(values, kind)


def round_trip(model: Any, options: Export) -> dict[str, Tensor]:
    """What the matrices of a file stand for, by the names of the model's parameters."""
    gguf, found = gguf_package(), {}
    for name, value in model.named_parameters():
        if value.ndim > 1 and (kind := _kind(gguf, name, value, options)) != gguf.GGMLQuantizationType.F32:
            read = gguf.quants.dequantize(_encoded(gguf, name, value, kind), kind)
            found[name] = torch.from_numpy(np.asarray(read, dtype=np.float32)).view(value.shape)
    return found


def _about_kinds(gguf: Any, arch: Arch, kinds: Mapping[str, Any], options: Export) -> list[str]:
    if options.quantize == "q8_0":
        whole = sum(kind == gguf.GGMLQuantizationType.F16 for kind in kinds.values())
        said = f"{whole} matrices stay f16, since their rows are no multiple of 32: prune with --round-to 32"
        return [said] if whole else []
    channels = [axis.units for axis in arch.axes if axis.name != KV_GROUPS]
    ragged, odd = (sum(count % block > 0 for count in channels) for block in (32, 256))
    if ragged:
        return [
            f"{ragged} layers have channels that are no multiple of 32, so that llama-quantize leaves their down "
            "projections in 16 bits; prune with --round-to 32, or 256 for K-quants, if you quantize this"
        ]
    if odd:
        return [
            f"{odd} layers have channels that are no multiple of 256, so that llama-quantize's K-quants leave their "
            "down projections somewhat larger; --round-to 256 at pruning avoids it in models wide enough for that"
        ]
    return []
