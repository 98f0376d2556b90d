"""Mixtures of experts in GGUF: which of llama.cpp's architectures hold them, and how it wants their tensors.

Its readers (src/models/llama.cpp, qwen2moe.cpp, qwen3moe.cpp) take one number for the whole file of the experts, their
width and the heads, so all layers must have the same. Shapes: E experts, U channels of each, D hidden size.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from seap.errors import UserError, refuse
from seap.exports.llamas import ROPES
from seap.exports.stock import slides
from seap.models import modeling_seap
from seap.models.families import find_family, width_keys
from seap.models.heads import said, size_said

ARCHITECTURES = {"mixtral": "llama", "qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe"}
SUMS_TO_ONE = {"mixtral": True, "qwen2_moe": False, "qwen3_moe": True}  # the router's weights of a token, there
NAMES = {
    "mlp.gate": "ffn_gate_inp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
}
ROUTERS = ("mlp.gate", "mlp.shared_expert_gate", "ffn_gate_inp", "ffn_gate_inp_shexp")  # in models, and in files
PRUNE = "prune the dense model again with --allocate one-width and --experts N"
ELSE = "use --to uniform and llama.cpp's convert_hf_to_gguf.py on the result, or load it with transformers"


def check_experts(config: Any) -> str:
    """The GGUF architecture of a mixture of experts. Raises UserError, with the reason, where none holds it."""
    family, rope = config.model_type, getattr(config, "rope_parameters", None) or {}
    if family not in ARCHITECTURES:
        raise UserError(
            f"--to gguf: of mixtures of experts {', '.join(ARCHITECTURES)} are written, not {family}; {ELSE}"
        )
    if differing := _differing(config):
        name, found = differing[0]
        raise UserError(
            f"--to gguf: the layers have {min(found)} to {max(found)} in {name}, and llama.cpp reads one number for "
            f"all layers of a mixture of experts; {PRUNE}"
        )
    ropes = ROPES if family == "mixtral" else ("default", "linear", "dynamic")
    heads = layer_values(config, 0)["num_attention_heads"] * size_said(config)
    reasons = {
        "its sliding window can't be said there": slides(config),
        f"its activation is {config.hidden_act}, not silu": config.hidden_act != "silu",
        f"its rope scaling {rope.get('rope_type')} isn't written for it": rope.get("rope_type", "default") not in ropes,
        "llama.cpp knows no layers without experts in it (mlp_only_layers, decoder_sparse_step)": _has_others(config),
        f"norm_topk_prob is {getattr(config, 'norm_topk_prob', True)}, and llama.cpp computes the other": getattr(
            config, "norm_topk_prob", SUMS_TO_ONE[family]
        )
        is not SUMS_TO_ONE[family],
        f"llama.cpp's {ARCHITECTURES[family]} has heads for all of the hidden size, and this one for {heads} of "
        f"{config.hidden_size}": family == "qwen2_moe" and heads != config.hidden_size,
    }
    refuse("--to gguf", reasons, ELSE)
    return ARCHITECTURES[family]


def layer_values(config: Any, layer: int) -> dict[str, Any]:
    """The widths of a layer under the names of its config, heads included."""
    family = find_family(config)
    assert family.experts is not None
    keys = [key for key in width_keys(family) if key not in family.experts.count_keys[1:]]
    own = modeling_seap.layer_widths(config, layer) if getattr(config, "seap", None) else {}
    return {key: own.get(key, said(config, key)) for key in keys}


def add_parameters(writer: Any, config: Any) -> None:
    """What the file says of experts beside what it says of every model."""
    layout, found = find_family(config).experts, layer_values(config, 0)
    assert layout is not None
    writer.add_expert_count(found[layout.count_keys[0]])
    writer.add_expert_used_count(config.num_experts_per_tok)
    if config.model_type != "mixtral":  # whose experts are as wide as feed_forward_length says
        writer.add_expert_feed_forward_length(found[layout.channels_key])
    if layout.shared:
        writer.add_expert_shared_feed_forward_length(found[layout.shared_key])


def expert_tensors(own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A block's tensors of experts and router by their names in a file. own: its parameters by path.

    gate_up_proj (E, 2U, D) → gates and ups (E, U, D) each; down_proj (E, D, U) as it is.
    """
    gates, ups = own["mlp.experts.gate_up_proj"].chunk(2, 1)
    found = {"ffn_gate_exps.weight": gates, "ffn_up_exps.weight": ups}
    found["ffn_down_exps.weight"] = own["mlp.experts.down_proj"]
    for path, name in NAMES.items():
        if f"{path}.weight" in own:
            value = own[f"{path}.weight"]
            found[f"{name}.weight"] = value.flatten() if value.shape[0] == 1 else value
    return found


def misplaced(architecture: str, names: list[str]) -> list[str]:
    """Biases that the architecture has no place for: llama reads that of o_proj, qwen2moe those of q, k and v."""
    ends = {"llama": ("self_attn.o_proj.bias",), "qwen2moe": tuple(f"self_attn.{part}_proj.bias" for part in "qkv")}
    return [name for name in names if name.endswith(".bias") and not name.endswith(ends.get(architecture, ()))]


def is_router(name: str) -> bool:
    """Whether a parameter is a router's, which stays in float32."""
    return name.removesuffix(".weight").endswith(ROUTERS)


def _differing(config: Any) -> list[tuple[str, list[int]]]:
    each = [layer_values(config, layer) for layer in range(config.num_hidden_layers)]
    found = [(name, [values[name] for values in each]) for name in each[0]]
    return [(name, values) for name, values in found if len(set(values)) > 1]


def _has_others(config: Any) -> bool:
    return bool(getattr(config, "mlp_only_layers", None)) or getattr(config, "decoder_sparse_step", 1) != 1
