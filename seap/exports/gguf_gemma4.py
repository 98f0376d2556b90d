"""Gemma 4 without experts in GGUF: llama.cpp reads an MLP width for each layer, and heads by the layer's kind.

Its reader (src/models/gemma4.cpp) has no place for added biases. Layers that share keys and values take those of the
last layer of their kind that has its own. Shapes: K head size, P size of a layer's own embedding of a token.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from seap.errors import refuse
from seap.exports.gguf_names import ATTENTION, BOTH_SIDES, FULL, GLOBAL, MLP, SLIDING, parts, whole_tensors
from seap.models.arch import Arch

FAMILY, ARCHITECTURE = "gemma4_text", "gemma4"
NAMES = ATTENTION | MLP | BOTH_SIDES
NAMES |= {
    "per_layer_input_gate": "inp_gate",
    "per_layer_projection": "proj",
    "post_per_layer_input_norm": "post_norm",
}
GLOBAL_NAMES = GLOBAL | {
    "model.embed_tokens_per_layer": "per_layer_token_embd",
    "model.per_layer_model_projection": "per_layer_model_proj",
    "model.per_layer_projection_norm": "per_layer_proj_norm",
}
UNTURNED = 1e30  # what a frequency is divided by that doesn't turn
ELSE = "use --to padded and llama.cpp's convert_hf_to_gguf.py on the result"


def check(config: Any) -> str:
    """The architecture of such a model. Raises UserError, with the reason, where it isn't written."""
    shared = getattr(config, "num_kv_shared_layers", 0) or 0
    own = config.layer_types[: config.num_hidden_layers - shared]
    reasons = {
        "Gemma 4's experts aren't written": bool(getattr(config, "enable_moe_block", False)),
        "its attention looks both ways": bool(getattr(config, "use_bidirectional_attention", None)),
        f"its activation is {config.hidden_activation}": config.hidden_activation != "gelu_pytorch_tanh",
        "of the layers with keys and values of their own the last two must be a sliding and a full one for others to "
        "share them": shared > 0 and own[-2:] != [SLIDING, FULL],
        "it has layers of one kind alone, where llama.cpp asks for the sizes of both": len(set(config.layer_types)) < 2,
    }
    refuse("--to gguf", reasons, ELSE)
    return ARCHITECTURE


def add_layers(writer: Any, arch: Arch) -> None:
    """Widths and heads of each layer, its kind, and what both kinds have."""
    config, blocks = arch.model.config, list(arch.layers)
    sizes = {kind: _head_size(block) for kind, block in zip(config.layer_types, blocks, strict=True)}
    writer.add_feed_forward_length([int(block.mlp.up_proj.weight.shape[0]) for block in blocks])
    writer.add_head_count([block.self_attn.q_proj.weight.shape[0] // _head_size(block) for block in blocks])
    groups: dict[str, int] = {}
    writer.add_head_count_kv(
        [_groups(block, kind, groups) for kind, block in zip(config.layer_types, blocks, strict=True)]
    )
    writer.add_key_length(sizes[FULL])
    writer.add_value_length(sizes[FULL])
    writer.add_key_length_swa(sizes[SLIDING])
    writer.add_value_length_swa(sizes[SLIDING])
    writer.add_rope_dimension_count(sizes[FULL])
    writer.add_rope_dimension_count_swa(sizes[SLIDING])
    writer.add_rope_freq_base(config.rope_parameters[FULL]["rope_theta"])
    writer.add_rope_freq_base_swa(config.rope_parameters[SLIDING]["rope_theta"])
    writer.add_sliding_window(config.sliding_window)
    writer.add_sliding_window_pattern([kind == SLIDING for kind in config.layer_types])
    writer.add_shared_kv_layers(getattr(config, "num_kv_shared_layers", 0) or 0)
    writer.add_embedding_length_per_layer_input(config.hidden_size_per_layer_input or 0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_final_logit_softcapping(config.final_logit_softcapping or 0.0)  # without a word it is 30 there


def tensors(arch: Arch) -> Iterator[tuple[str, Tensor]]:
    """Every tensor under its name in the file; q and k as they are, since llama.cpp turns halves here."""
    yield from whole_tensors(arch.model, GLOBAL_NAMES)
    yield "rope_freqs.weight", _factors(arch)
    for layer, block in enumerate(arch.layers):
        for module, kind, value in parts(block):
            yield f"blk.{layer}.{NAMES[module]}.{kind}", value
        yield f"blk.{layer}.layer_output_scale.weight", block.layer_scalar


def _factors(arch: Arch) -> Tensor:
    """What full layers divide each frequency by (K/2,): only a part of them turns."""
    found = arch.model.model.rotary_emb.full_attention_inv_freq.float().cpu()
    base, size = arch.model.config.rope_parameters[FULL]["rope_theta"], 2 * len(found)
    plain = base ** -(torch.arange(0, size, 2, dtype=torch.float32) / size)
    return torch.where(found > 0, plain / found, UNTURNED)


def _head_size(block: Any) -> int:
    return int(block.self_attn.q_norm.weight.shape[0])


def _groups(block: Any, kind: str, last: dict[str, int]) -> int:
    """KV groups of a layer; of one that shares them, those of the last of its kind, which is kept in `last`."""
    keys = getattr(block.self_attn, "k_proj", None)
    if keys is not None:
        last[kind] = int(keys.weight.shape[0]) // _head_size(block)
    return last[kind]
