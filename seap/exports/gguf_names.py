"""How tensors are called in a GGUF file, where architectures call them alike."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

ATTENTION = {f"self_attn.{part}_proj": f"attn_{part}" for part in "qkv"}
ATTENTION |= {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "self_attn.o_proj": "attn_output"}
MLP = {f"mlp.{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")}
BOTH_SIDES = {  # norms before and behind attention and MLP, as in Gemma 3 and 4
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
FULL, SLIDING = "full_attention", "sliding_attention"  # kinds of layers, by config
GLOBAL = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def whole_tensors(model: Any, names: Mapping[str, str]) -> Iterator[tuple[str, Tensor]]:
    """Those that are no layer's, under their names in the file: module → name. Of tied ones the first alone."""
    parameters = dict(model.named_parameters())
    for module, name in names.items():
        if f"{module}.weight" in parameters:
            yield f"{name}.weight", parameters[f"{module}.weight"]


def parts(block: Any) -> Iterator[tuple[str, str, Tensor]]:
    """A layer's parameters: path of the module, `weight` or `bias` (or the parameter's own name), tensor."""
    for name, value in block.named_parameters():
        path, _, kind = name.rpartition(".")
        yield path, kind, value
