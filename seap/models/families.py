"""The model families: one row each. The only file that knows the names of a model's submodules."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from seap.errors import UserError
from seap.models.experts import Cut, Layout


@dataclass(frozen=True, kw_only=True)
class Family:
    """How one `model_type` names its parts. Paths are relative to the decoder layer.

    `heads` and `mlp` map each linear that writes the axis to the parts stacked in its rows: q (Q·K rows a unit), k and
    v (K rows), g, u and c (one row: gate, up, or the only one). A fused `qkv_proj` has "qkv".
    """

    model_type: str
    layers: str = "model.layers"
    heads: dict[str, str]
    heads_consumer: str = "self_attn.o_proj"
    heads_refused: str = ""  # why the heads can't be cut; empty when they can
    heads_refused_with: Mapping[str, str] = field(default_factory=dict)  # why not, where this config entry is true
    head_size: str = "self_attn.head_dim"
    mlp: dict[str, str]
    mlp_consumer: str = "mlp.down_proj"
    channels_key: str = "intermediate_size"
    transposed: bool = False  # weights are (C, O), as in GPT-2's Conv1D
    head_values: tuple[str, ...] = ()  # parameters with one value for each query head
    heads_norm: str = "input_layernorm"  # what the attention reads through; empty where it reads the stream itself
    mlp_norm: str = "post_attention_layernorm"  # and the MLP; where a layer has none, both read through one norm
    heads_behind: str = ""  # the norm behind what the attention writes
    mlp_behind: str = ""
    # why a layer's attention or MLP can't go whole, where a config entry has a value
    blocks_refused_with: Mapping[tuple[str, bool], str] = field(default_factory=dict)
    experts: Layout | None = None  # of the layers that have experts; `mlp` is then that of the others


_SEPARATE_HEADS = {"self_attn.q_proj": "q", "self_attn.k_proj": "k", "self_attn.v_proj": "v"}
_LLAMA = Family(model_type="llama", heads=_SEPARATE_HEADS, mlp={"mlp.gate_proj": "g", "mlp.up_proj": "u"})
_LIKE_LLAMA = (
    "cohere2",
    "cwm",
    "ernie4_5",
    "gemma",
    "granite",
    "hunyuan_v1_dense",
    "ministral",
    "ministral3",
    "olmo",
    "seed_oss",
)
_MIXTRAL = Layout(
    block="mlp",
    module="mlp.experts",
    router="mlp.gate",
    up="mlp.experts.gate_up_proj",
    down="mlp.experts.down_proj",
    by_channel={"mlp.experts.gate_up_proj": Cut(dim=0, sections=(1, 1)), "mlp.experts.down_proj": Cut(dim=1)},
    by_expert=("mlp.gate.weight",),
    count_keys=("num_local_experts", "num_experts"),
    channels_key="intermediate_size",
    shared={},
)
_QWEN2_MOE = replace(
    _MIXTRAL,
    count_keys=("num_experts",),
    channels_key="moe_intermediate_size",
    shared={"mlp.shared_expert.gate_proj": "g", "mlp.shared_expert.up_proj": "u"},
    shared_consumer="mlp.shared_expert.down_proj",
    shared_key="shared_expert_intermediate_size",
)
_GPT_OSS = replace(
    _MIXTRAL,
    router="mlp.router",
    up_bias="mlp.experts.gate_up_proj_bias",
    down_bias="mlp.experts.down_proj_bias",
    by_channel={
        "mlp.experts.gate_up_proj": Cut(dim=1, sections=(2,)),
        "mlp.experts.gate_up_proj_bias": Cut(dim=0, sections=(2,)),
        "mlp.experts.down_proj": Cut(dim=0),
    },
    by_expert=("mlp.router.weight", "mlp.router.bias", "mlp.experts.down_proj_bias"),
    transposed=True,
)
_NORM_OVER_HEADS = "its q/k norm spans all heads of a layer, so removing one changes the others"
_NORM_PER_HEAD = "its q/k norm ({}) has a weight for each head, which isn't cut yet"
_GEMMA2 = replace(
    _LLAMA,
    model_type="gemma2",
    mlp_norm="pre_feedforward_layernorm",
    heads_behind="post_attention_layernorm",
    mlp_behind="post_feedforward_layernorm",
)
_EXAONE4 = replace(_GEMMA2, model_type="exaone4", heads_norm="", mlp_norm="")  # its norms stand behind alone
_NORM_ON_STREAM = "with do_layer_norm_before false its norms are of the stream itself, and stay"
_DERIVED_HEAD_SIZE = "its attention derives the head size from hidden_size / heads, so fewer heads can't be expressed"

FAMILIES: dict[str, Family] = {
    row.model_type: row
    for row in (
        _LLAMA,
        replace(_LLAMA, model_type="mistral"),
        replace(_LLAMA, model_type="qwen2"),
        replace(_LLAMA, model_type="qwen3"),
        _GEMMA2,
        replace(_GEMMA2, model_type="gemma3_text"),
        replace(_LLAMA, model_type="smollm3"),
        *(replace(_LLAMA, model_type=name) for name in _LIKE_LLAMA),
        _EXAONE4,
        replace(_LLAMA, model_type="hyperclovax", heads_behind="post_norm1", mlp_behind="post_norm2"),
        replace(_LLAMA, model_type="vaultgemma", mlp_norm="pre_feedforward_layernorm"),
        replace(_LLAMA, model_type="cohere", heads_refused_with={"use_qk_norm": _NORM_PER_HEAD.format("use_qk_norm")}),
        *(replace(_LLAMA, model_type=name, mlp={"mlp.up_proj": "c"}) for name in ("arcee", "nemotron")),
        replace(
            _LLAMA,
            model_type="apertus",
            mlp={"mlp.up_proj": "c"},
            heads_norm="attention_layernorm",
            mlp_norm="feedforward_layernorm",
        ),
        replace(_LLAMA, model_type="glm", mlp={"mlp.gate_up_proj": "gu"}),
        replace(
            _LLAMA,
            model_type="glm4",
            mlp={"mlp.gate_up_proj": "gu"},
            heads_behind="post_self_attn_layernorm",
            mlp_behind="post_mlp_layernorm",
        ),
        *(replace(_LLAMA, model_type=name, heads_refused=_DERIVED_HEAD_SIZE) for name in ("helium", "stablelm")),
        *(replace(_EXAONE4, model_type=name, heads_refused=_NORM_OVER_HEADS) for name in ("olmo2", "olmo3")),
        replace(_LLAMA, model_type="mixtral", experts=_MIXTRAL),
        replace(_LLAMA, model_type="qwen2_moe", experts=_QWEN2_MOE),
        replace(_LLAMA, model_type="qwen3_moe", experts=replace(_MIXTRAL, channels_key="moe_intermediate_size")),
        replace(_LLAMA, model_type="olmoe", experts=_MIXTRAL, heads_refused=_NORM_OVER_HEADS),
        replace(_LLAMA, model_type="gpt_oss", experts=_GPT_OSS, head_values=("self_attn.sinks",)),
        replace(_LLAMA, model_type="starcoder2", mlp={"mlp.c_fc": "c"}, mlp_consumer="mlp.c_proj"),
        replace(_LLAMA, model_type="nanochat", mlp={"mlp.fc1": "c"}, mlp_consumer="mlp.fc2"),
        replace(
            _LLAMA,
            model_type="phi",
            heads_refused_with={"qk_layernorm": _DERIVED_HEAD_SIZE + " (qk_layernorm)"},
            heads_consumer="self_attn.dense",
            mlp={"mlp.fc1": "c"},
            mlp_consumer="mlp.fc2",
        ),
        Family(
            model_type="phi3",
            heads={"self_attn.qkv_proj": "qkv"},
            mlp={"mlp.gate_up_proj": "gu"},
        ),
        Family(
            model_type="gpt_neox",
            layers="gpt_neox.layers",
            heads={"attention.query_key_value": "qkv"},
            heads_consumer="attention.dense",
            heads_refused=_DERIVED_HEAD_SIZE,
            mlp={"mlp.dense_h_to_4h": "c"},
            mlp_consumer="mlp.dense_4h_to_h",
        ),
        Family(
            model_type="opt",
            layers="model.decoder.layers",
            heads=_SEPARATE_HEADS,
            heads_consumer="self_attn.out_proj",
            heads_refused=_DERIVED_HEAD_SIZE,
            mlp={"fc1": "c"},
            mlp_consumer="fc2",
            channels_key="ffn_dim",
            heads_norm="self_attn_layer_norm",
            mlp_norm="final_layer_norm",
            blocks_refused_with={("do_layer_norm_before", False): _NORM_ON_STREAM},
        ),
        Family(
            model_type="gpt2",
            layers="transformer.h",
            heads={"attn.c_attn": "qkv"},
            heads_consumer="attn.c_proj",
            heads_refused=_DERIVED_HEAD_SIZE,
            mlp={"mlp.c_fc": "c"},
            mlp_consumer="mlp.c_proj",
            channels_key="n_inner",
            transposed=True,
            heads_norm="ln_1",
            mlp_norm="ln_2",
        ),
    )
}


def find_family(config: Any) -> Family:
    """The row of a config's model type. Raises UserError for a family that isn't in the table."""
    family = FAMILIES.get(config.model_type)
    if family is None:
        known = ", ".join(sorted(FAMILIES))
        raise UserError(
            f"unknown model family {config.model_type!r}; known: {known}. "
            "docs/adding_a_model.md says how a family is added (one row)"
        )
    return family


def refuse_experts(config: Any, what: str, instead: str) -> None:
    """Raise UserError for a family with experts. what: that doesn't know them; instead: what to do."""
    if find_family(config).experts is not None:
        raise UserError(f"{what} doesn't know mixtures of experts such as {config.model_type} yet; {instead}")


def width_keys(family: Family) -> tuple[str, ...]:
    """The config keys that hold a layer's widths, under every name that the family's modules read them by."""
    heads = () if family.heads_refused else ("num_attention_heads", "num_key_value_heads")
    layout = family.experts
    own = () if layout is None else (*layout.count_keys, layout.channels_key, layout.shared_key)
    return tuple(dict.fromkeys(key for key in (*heads, family.channels_key, *own) if key))
