"""`nemotron-nas` (DeciLM): Llama whose layers differ, which vLLM, SGLang and mlx-lm run on their own kernels.

What these readers derive is in vllm/model_executor/models/nemotron_nas.py and mlx_lm/models/nemotron-nas.py, and is the
same in both: a layer's MLP has int(2 · ffn_mult · D / 3) channels, rounded up to a multiple of 256, and its attention
all H query heads of D / H each, H / n_heads_in_group KV groups, or nothing. So a width is rounded up with zeros, and a
layer with fewer KV groups keeps H query heads, those that are gone as zeros: the outputs are the pruned model's own.
Shapes: D hidden size, H query heads, K head size, G KV groups, Q query heads of each.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seap.errors import UserError
from seap.exports import configuration_decilm
from seap.exports.engines import widths
from seap.exports.llamas import biased, check_family, rope_of
from seap.files import to_json, write_safetensors
from seap.models.arch import Arch, describe
from seap.models.axes import ATTENTION, MLP
from seap.models.heads import queries_at, size_said

MULTIPLE = 256  # that readers round a layer's channels to
TARGET = "--to nemotron-nas"


@dataclass(frozen=True)
class Heads:
    """How a layer's attention is laid out: G KV groups of Q query heads are put into `groups` of `queries` each."""

    groups: int
    queries: int


def check_config(config: Any) -> None:
    """Raise UserError, with the reason, for a model that can't be said in this form."""
    check_family(config, TARGET)
    head_size = size_said(config)
    if config.hidden_size % head_size:
        raise UserError(f"{TARGET}: readers take heads of hidden_size / heads, and {head_size} doesn't divide it")
    for layer, found in enumerate(widths(config)):
        _heads(found["kv_groups"], queries_at(config, layer), config.hidden_size // head_size, layer)
    if not widths(config)[0]["kv_groups"]:
        raise UserError(f"{TARGET}: readers can't begin with a layer without attention; use --to mlx, or vLLM as it is")


def _heads(groups: int, queries: int, heads: int, layer: int) -> Heads:
    """The fewest KV groups, that divide all query heads, into which a layer's own fit."""
    for number in range(max(groups, 1), heads + 1):
        if heads % number == 0 and heads // number >= queries:
            return Heads(number, heads // number)
    raise UserError(
        f"{TARGET}: layer {layer} has {groups} KV groups of {queries} query heads, which {heads} heads of one size "
        "(hidden_size / head_dim, as readers derive them) don't hold"
    )


def ffn_mult(channels: int, hidden_size: int) -> float:
    """The number from which readers derive so many channels, a multiple of 256: what gives half of 256 fewer."""
    return round(3 * (channels - MULTIPLE / 2) / (2 * hidden_size), 6)


def derived(mult: float, hidden_size: int) -> int:
    """What readers derive from it."""
    return _multiple(int(2 * mult * hidden_size / 3))


def write_nas(model: Any, tokenizer: Any, folder: Path) -> list[str]:
    """Write the folder; returns what to know about it. Raises UserError for what has no place in the form."""
    arch = describe(model)
    check_config(model.config)
    _check_written(arch)
    values, about = dict(tensors(arch)), config_of(arch)
    write_safetensors(folder / "model.safetensors", values, {"format": "pt"})
    (folder / "config.json").write_text(to_json(about, indent=2) + "\n")
    source = Path(configuration_decilm.__file__)
    (folder / source.name).write_text(source.read_text())
    tokenizer.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    return _notes(arch, sum(value.numel() for value in values.values()))


def _notes(arch: Arch, after: int) -> list[str]:
    found, before = [], sum(p.numel() for p in arch.model.parameters())
    wide = [layer["channels"] for layer in widths(arch.model.config)]
    ragged, groups = sum(count % MULTIPLE > 0 for count in wide), {a.units for a in arch.axes if a.name == "kv_groups"}
    if after > before:
        found.append(f"{after / before - 1:.1%} more parameters, zeros that change no output")
    if ragged:
        found.append(
            f"{ragged} layers have channels that are no multiple of {MULTIPLE}, up to which readers round: prune with "
            f"--round-to {MULTIPLE} for none"
        )
    if groups and max(groups) != min(groups):
        found.append("layers with fewer KV groups keep all query heads: their cache is smaller, their q and o are not")
    return [*found, *rope_of(arch.model.config, TARGET).notes]


def _check_written(arch: Arch) -> None:
    for name, value in arch.model.named_parameters():
        if value.ndim == 1 and value.numel() and name.endswith(("o_proj.weight", "down_proj.weight")):
            raise UserError(
                f"{TARGET}: what went whole has left a vector ({name}), which a layer without it has no place for; "
                "prune with --compensate none"
            )


def _layout(arch: Arch, layer: int) -> Heads:
    heads = arch.model.config.hidden_size // arch.head_size
    return _heads(widths(arch.model.config)[layer]["kv_groups"], arch.queries_at(layer), heads, layer)


def config_of(arch: Arch) -> dict[str, Any]:
    """config.json, with the entry of each layer."""
    config, rope = arch.model.config, rope_of(arch.model.config, TARGET)
    names = ["hidden_size", "vocab_size", "num_hidden_layers", "rms_norm_eps", "hidden_act", "max_position_embeddings"]
    names += ("tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id", "initializer_range")
    blocks = [_block(arch, layer) for layer in range(len(arch.layers))]
    first = next(block["attention"]["n_heads_in_group"] for block in blocks if not block["attention"]["no_op"])
    heads = config.hidden_size // arch.head_size
    widest = max(layer["channels"] for layer in widths(config))
    dtype = str(arch.model.dtype).removeprefix("torch.")
    return {
        "architectures": ["DeciLMForCausalLM"],
        "model_type": configuration_decilm.DeciLMConfig.model_type,
        "auto_map": {"AutoConfig": "configuration_decilm.DeciLMConfig"},
        **{name: getattr(config, name, None) for name in names},
        "num_attention_heads": heads,
        "num_key_value_heads": heads // first,
        "head_dim": arch.head_size,
        "intermediate_size": _multiple(widest),
        "attention_bias": biased(arch, ATTENTION),
        "mlp_bias": biased(arch, MLP),
        "block_configs": blocks,
        **rope.entries(),
        "dtype": dtype,
        "torch_dtype": dtype,
        "use_cache": True,
    }


def _multiple(channels: int) -> int:
    return -(-channels // MULTIPLE) * MULTIPLE


def _block(arch: Arch, layer: int) -> dict[str, Any]:
    attention: dict[str, Any] = {
        "no_op": not arch.has(layer, ATTENTION),
        "replace_with_linear": False,
        "sparsify": None,
    }
    attention |= {"n_heads_in_group": None, "num_sink_tokens": None, "unshifted_sink": False, "window_length": None}
    attention["use_prefill_window_in_sink_attention"] = False
    if arch.has(layer, ATTENTION):
        attention["n_heads_in_group"] = _layout(arch, layer).queries
    ffn: dict[str, Any] = {"no_op": not arch.has(layer, MLP), "replace_with_linear": False, "sparsify": None}
    ffn["ffn_mult"] = None
    if arch.has(layer, MLP):
        size = arch.model.config.hidden_size
        channels = _multiple(widths(arch.model.config)[layer]["channels"])
        ffn["ffn_mult"] = ffn_mult(channels, size)
        assert derived(ffn["ffn_mult"], size) == channels, (layer, channels, ffn)
    return {"attention": attention, "ffn": ffn}


def tensors(arch: Arch) -> Iterator[tuple[str, Tensor]]:
    """Every tensor under its name, padded with zeros; a tied output layer once."""
    state = dict(arch.model.named_parameters())  # tied ones once
    inside = f"{arch.family.layers}."
    yield from ((name, value.detach()) for name, value in state.items() if not name.startswith(inside))
    for layer in range(len(arch.layers)):
        for part, value in _layer(arch, layer).items():
            yield f"{inside}{layer}.{part}", value.contiguous()


def _layer(arch: Arch, layer: int) -> dict[str, Tensor]:
    own = {name: value.detach() for name, value in arch.layers[layer].named_parameters()}
    found: dict[str, Tensor] = {}
    if arch.has(layer, ATTENTION):
        found["input_layernorm.weight"] = own["input_layernorm.weight"]
        found |= _attention(arch, layer, own)
    if arch.has(layer, MLP):
        found["post_attention_layernorm.weight"] = own["post_attention_layernorm.weight"]
        found |= _mlp(arch, own)
    return found


def _attention(arch: Arch, layer: int, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    new, size, queries = _layout(arch, layer), arch.head_size, arch.queries_at(layer)
    groups = own["self_attn.k_proj.weight"].shape[0] // size
    has_bias, hidden = biased(arch, ATTENTION), arch.model.config.hidden_size
    found = {}
    for part, each in (("q_proj", queries), ("k_proj", 1), ("v_proj", 1)):
        wanted = new.queries if part == "q_proj" else 1
        for kind in ("weight", "bias") if has_bias else ("weight",):
            value = own.get(f"self_attn.{part}.{kind}")
            rest = (hidden,) if kind == "weight" else ()
            whole = own["self_attn.o_proj.weight"].new_zeros(new.groups, wanted, size, *rest)
            if value is not None:
                whole[:groups, :each] = value.view(groups, each, size, *rest)
            found[f"self_attn.{part}.{kind}"] = whole.flatten(0, 2)
    weight = own["self_attn.o_proj.weight"]
    whole = weight.new_zeros(hidden, new.groups, new.queries, size)
    whole[:, :groups, :queries] = weight.view(hidden, groups, queries, size)
    found["self_attn.o_proj.weight"] = whole.flatten(1)
    if has_bias:
        found["self_attn.o_proj.bias"] = own.get("self_attn.o_proj.bias", weight.new_zeros(hidden))
    return found


def _mlp(arch: Arch, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    down = own["mlp.down_proj.weight"]
    more = _multiple(down.shape[1]) - down.shape[1]
    found = {"mlp.down_proj.weight": torch.nn.functional.pad(down, (0, more))}
    for part in ("gate_proj", "up_proj"):
        value = own[f"mlp.{part}.weight"]
        found[f"mlp.{part}.weight"] = torch.nn.functional.pad(value, (0, 0, 0, more))
        if biased(arch, MLP):
            bias = own.get(f"mlp.{part}.bias", down.new_zeros(len(value)))
            found[f"mlp.{part}.bias"] = torch.nn.functional.pad(bias, (0, more))
    if biased(arch, MLP):
        found["mlp.down_proj.bias"] = own.get("mlp.down_proj.bias", down.new_zeros(down.shape[0]))
    return found
