"""Nemotron-H in GGUF: each layer is an attention, an MLP or a Mamba-2 mixer, and llama.cpp reads the widths of each.

Its reader (src/models/nemotron-h.cpp) takes a layer for the kind that it has a number for: KV groups, MLP channels, or
neither, which is the mixer. Biases are read wherever compensation adds one. Shapes: H state heads, P their size, S
states, G their groups, k taps of the convolution.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from seap.errors import refuse
from seap.exports.gguf_names import parts, whole_tensors
from seap.models.arch import Arch

FAMILY = ARCHITECTURE = "nemotron_h"
NAMES = {
    "norm": "attn_norm",
    "mixer.q_proj": "attn_q",
    "mixer.k_proj": "attn_k",
    "mixer.v_proj": "attn_v",
    "mixer.o_proj": "attn_output",
    "mixer.up_proj": "ffn_up",
    "mixer.down_proj": "ffn_down",
    "mixer.in_proj": "ssm_in",
    "mixer.conv1d": "ssm_conv1d",
    "mixer.norm": "ssm_norm",
    "mixer.out_proj": "ssm_out",
}
GLOBAL_NAMES = {"model.embeddings": "token_embd", "model.norm_f": "output_norm", "lm_head": "output"}
ELSE = "load it with transformers, which needs import seap"


def check(config: Any) -> str:
    """The architecture of such a model. Raises UserError, with the reason, where it isn't written."""
    low, high = getattr(config, "time_step_limit", None) or (0.0, math.inf)
    reasons = {
        "experts beside its mixers (nemotron_h_moe) aren't written": "moe" in config.layers_block_type,
        f"its activation is {config.mlp_hidden_act}, not relu2": config.mlp_hidden_act != "relu2",
        f"its time steps are held between {low} and {high}, which llama.cpp doesn't": low > 0 or high != math.inf,
        "its mixers' projections have biases (mamba_proj_bias, use_bias)": config.use_bias or config.mamba_proj_bias,
    }
    refuse("--to gguf", reasons, ELSE)
    return ARCHITECTURE


def add_layers(writer: Any, arch: Arch) -> None:
    """The widths of each layer, 0 of what it isn't, and the sizes of the mixers."""
    config, size = arch.model.config, arch.head_size
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_feed_forward_length([_rows(block, "up_proj") for block in arch.layers])
    writer.add_head_count([_rows(block, "q_proj") // size or config.num_attention_heads for block in arch.layers])
    writer.add_head_count_kv([_rows(block, "k_proj") // size for block in arch.layers])
    writer.add_layer_norm_eps(config.layer_norm_epsilon)  # the reader asks for both
    writer.add_layer_norm_rms_eps(config.layer_norm_epsilon)
    writer.add_ssm_conv_kernel(config.conv_kernel)
    writer.add_ssm_inner_size(config.mamba_num_heads * config.mamba_head_dim)
    writer.add_ssm_state_size(config.ssm_state_size)
    writer.add_ssm_time_step_rank(config.mamba_num_heads)
    writer.add_ssm_group_count(config.n_groups)


def tensors(arch: Arch) -> Iterator[tuple[str, Tensor]]:
    """Every tensor under its name in the file, in llama.cpp's layout."""
    yield from whole_tensors(arch.model, GLOBAL_NAMES)
    for layer, block in enumerate(arch.layers):
        for module, kind, value in parts(block):
            yield from ((f"blk.{layer}.{name}", own) for name, own in _named(module, kind, value, arch.model.config))


def stays_float32(name: str) -> bool:
    """Whether a tensor is a mixer's own, which stays in float32: all but the projections into and out of it."""
    return ".ssm_" in name and not name.endswith(("ssm_in.weight", "ssm_out.weight"))


def _named(module: str, kind: str, value: Tensor, config: Any) -> Iterator[tuple[str, Tensor]]:
    """A_log (H,) → −exp (H, 1); D (H,) → (H, 1); conv1d (C, 1, k) → (C, k); the mixer's norm (H·P,) → (G, H·P/G)."""
    if kind == "A_log":
        yield "ssm_a", -torch.exp(value.float())[:, None]
    elif kind == "D":
        yield "ssm_d", value[:, None]
    elif kind == "dt_bias":
        yield "ssm_dt.bias", value
    elif module == "mixer.conv1d" and kind == "weight":
        yield "ssm_conv1d.weight", value.squeeze(1)
    elif module == "mixer.norm":
        yield "ssm_norm.weight", value.view(config.n_groups, -1)
    else:
        yield f"{NAMES[module]}.{kind}", value


def _rows(block: Any, name: str) -> int:
    """Of a layer's linear; 0 where it has none of that name."""
    found = getattr(block.mixer, name, None)
    return 0 if found is None else int(found.weight.shape[0])
