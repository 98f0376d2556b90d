"""Gemma 3 in GGUF: layers that are all alike, with a vocabulary of any size.

Its reader (src/models/gemma3.cpp) takes one number for the file of channels and of heads, has no place for biases, and
knows of windows that all layers but each sixth have one. What goes here lost tokens alone, or as much in every layer.
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from seap.errors import refuse
from seap.exports.engines import widths
from seap.exports.gguf_names import ATTENTION, BOTH_SIDES, FULL, GLOBAL, MLP, SLIDING, parts, whole_tensors
from seap.models.arch import Arch
from seap.models.heads import queries_at

FAMILY, ARCHITECTURE = "gemma3_text", "gemma3"
NAMES = ATTENTION | MLP | BOTH_SIDES
PERIOD = 6  # layers, of which the last sees everything
SHAPE_27B = 62  # layers of the one model whose scale llama.cpp takes from elsewhere
ELSE = (
    "cut the vocabulary alone (--vocabulary N --sparsity 0) or prune with --allocate one-width, or use OpenVINO or ONNX"
)


def check(config: Any) -> str:
    """The architecture of such a model. Raises UserError, with the reason, where it isn't written."""
    layers = range(config.num_hidden_layers)
    shapes = {(*width.values(), queries_at(config, layer)) for layer, width in enumerate(widths(config))}
    rope = config.rope_parameters
    windows = [FULL if layer % PERIOD == PERIOD - 1 else SLIDING for layer in layers]
    reasons = {
        "llama.cpp reads one width for all layers of Gemma 3": len(shapes) > 1,
        f"its activation is {config.hidden_activation}": config.hidden_activation != "gelu_pytorch_tanh",
        "its attention looks both ways": bool(getattr(config, "use_bidirectional_attention", None)),
        "its projections have biases (attention_bias)": bool(config.attention_bias),
        f"not every layer but each sixth has a window: {config.layer_types}": list(config.layer_types) != windows,
        "its queries are scaled by something else than the head size (query_pre_attn_scalar)": (
            config.query_pre_attn_scalar != config.head_dim or config.num_hidden_layers == SHAPE_27B
        ),
        "its attention's logits are capped": config.attn_logit_softcapping is not None,
        "its rope is scaled": any(rope[kind].get("rope_type", "default") != "default" for kind in (FULL, SLIDING)),
    }
    refuse("--to gguf", reasons, ELSE)
    return ARCHITECTURE


def add_layers(writer: Any, arch: Arch) -> None:
    """What all layers have, and the window and rope of those that have one."""
    config, width = arch.model.config, widths(arch.model.config)[0]
    writer.add_feed_forward_length(width["channels"])
    writer.add_head_count(width["kv_groups"] * arch.queries_at(0))
    writer.add_head_count_kv(width["kv_groups"])
    writer.add_key_length(arch.head_size)
    writer.add_value_length(arch.head_size)
    writer.add_rope_freq_base(config.rope_parameters[FULL]["rope_theta"])
    writer.add_rope_freq_base_swa(config.rope_parameters[SLIDING]["rope_theta"])
    writer.add_sliding_window(config.sliding_window)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if config.final_logit_softcapping:
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


def tensors(arch: Arch) -> Iterator[tuple[str, Tensor]]:
    """Every tensor under its name in the file; of norms 1 + weight, as llama.cpp multiplies by it."""
    for name, value in whole_tensors(arch.model, GLOBAL):
        yield name, value + 1 if name == "output_norm.weight" else value
    for layer, block in enumerate(arch.layers):
        for module, kind, value in parts(block):
            yield f"blk.{layer}.{NAMES[module]}.{kind}", value + 1 if module.endswith("norm") else value
