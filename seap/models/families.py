"""The model families: one row each; hybrids in `hybrid_families.py`, those of latent attention in `latent_families.py`.

These are the only files that know the names of a model's submodules.
"""

from dataclasses import replace
from typing import Any

from seap.errors import UserError
from seap.models.experts import Cut
from seap.models.family import LLAMA, QWEN2_MOE, SEPARATE_HEADS, Sharing, stacked
from seap.models.family import Family as Family
from seap.models.hybrid_families import HYBRIDS
from seap.models.latent_families import LATENT

_LIKE_LLAMA = (
    "qwen3_vl_text",
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
_MIXTRAL = stacked("mlp", count_keys=("num_local_experts", "num_experts"), channels_key="intermediate_size")
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
    LLAMA,
    model_type="gemma2",
    mlp_norm="pre_feedforward_layernorm",
    heads_behind="post_attention_layernorm",
    mlp_behind="post_feedforward_layernorm",
)
_GEMMA3N = replace(
    _GEMMA2,
    model_type="gemma3n_text",
    blocks_refused="AltUp and Laurel read beside its attention and its MLP, through the same norms",
    mlp_refused_at={"activation_sparsity_pattern": "which of their channels count follows from the mean of all"},
    streams="altup_num_inputs",
    sharing=Sharing(modes="kv_sharing_modes", kinds="layer_types", passed="shared_kv_states", keys="self_attn.k_proj"),
    token_inputs=("hidden_size_per_layer_input", "per_layer_inputs"),
    sizes_by_type=True,
)
_GEMMA4_MOE = stacked(
    "experts",
    module="experts",
    router="router",
    up="experts.gate_up_proj",
    down="experts.down_proj",
    by_channel={"experts.gate_up_proj": Cut(dim=0, sections=(1, 1)), "experts.down_proj": Cut(dim=1)},
    by_expert=("router.proj.weight", "router.per_expert_scale"),
    top_k="config.top_k_experts",
    switch="enable_moe_block",
    count_keys=("num_experts",),
    channels_key="moe_intermediate_size",
    shared={"mlp.gate_proj": "g", "mlp.up_proj": "u"},  # its MLP, beside the experts
    shared_consumer="mlp.down_proj",
    shared_key="intermediate_size",
)
_GEMMA4 = replace(
    _GEMMA3N,
    model_type="gemma4_text",
    heads_refused="its config says sizes of heads by the layer's type, alike for all of a type",
    blocks_refused="",
    mlp_refused_at={},
    streams="",
    experts=_GEMMA4_MOE,
    fixed={"use_double_wide_mlp": False},  # by which MLPs of some layers are twice as wide as said
)
_EXAONE4 = replace(_GEMMA2, model_type="exaone4", heads_norm="", mlp_norm="")  # its norms stand behind alone
_NORM_ON_STREAM = "with do_layer_norm_before false its norms are of the stream itself, and stay"
_DERIVED_HEAD_SIZE = "its attention derives the head size from hidden_size / heads, so fewer heads can't be expressed"

FAMILIES: dict[str, Family] = {
    row.model_type: row
    for row in (
        LLAMA,
        replace(LLAMA, model_type="mistral"),
        replace(LLAMA, model_type="qwen2"),
        replace(LLAMA, model_type="qwen3"),
        _GEMMA2,
        replace(_GEMMA2, model_type="gemma3_text"),
        replace(LLAMA, model_type="smollm3"),
        *(replace(LLAMA, model_type=name) for name in _LIKE_LLAMA),
        _GEMMA3N,
        _GEMMA4,
        _EXAONE4,
        replace(LLAMA, model_type="hyperclovax", heads_behind="post_norm1", mlp_behind="post_norm2"),
        replace(LLAMA, model_type="vaultgemma", mlp_norm="pre_feedforward_layernorm"),
        replace(LLAMA, model_type="cohere", heads_refused_with={"use_qk_norm": _NORM_PER_HEAD.format("use_qk_norm")}),
        *(replace(LLAMA, model_type=name, mlp={"mlp.up_proj": "c"}) for name in ("arcee", "nemotron")),
        replace(
            LLAMA,
            model_type="apertus",
            mlp={"mlp.up_proj": "c"},
            heads_norm="attention_layernorm",
            mlp_norm="feedforward_layernorm",
        ),
        replace(LLAMA, model_type="glm", mlp={"mlp.gate_up_proj": "gu"}),
        replace(
            LLAMA,
            model_type="glm4",
            mlp={"mlp.gate_up_proj": "gu"},
            heads_behind="post_self_attn_layernorm",
            mlp_behind="post_mlp_layernorm",
        ),
        *(
            replace(LLAMA, model_type=name, heads_refused=_DERIVED_HEAD_SIZE)
            for name in ("helium", "stablelm", "qwen2_vl_text", "qwen2_5_vl_text")
        ),
        *(replace(_EXAONE4, model_type=name, heads_refused=_NORM_OVER_HEADS) for name in ("olmo2", "olmo3")),
        replace(LLAMA, model_type="mixtral", experts=_MIXTRAL),
        replace(LLAMA, model_type="qwen2_moe", experts=QWEN2_MOE),
        replace(LLAMA, model_type="qwen3_moe", experts=replace(_MIXTRAL, channels_key="moe_intermediate_size")),
        replace(LLAMA, model_type="olmoe", experts=_MIXTRAL, heads_refused=_NORM_OVER_HEADS),
        replace(LLAMA, model_type="gpt_oss", experts=_GPT_OSS, head_values=("self_attn.sinks",)),
        replace(LLAMA, model_type="starcoder2", mlp={"mlp.c_fc": "c"}, mlp_consumer="mlp.c_proj"),
        replace(LLAMA, model_type="nanochat", mlp={"mlp.fc1": "c"}, mlp_consumer="mlp.fc2"),
        replace(
            LLAMA,
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
            heads=SEPARATE_HEADS,
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
        *HYBRIDS,
        *LATENT,
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


def has_experts(config: Any) -> bool:
    """Whether any layer has experts: a family's smaller models may have none."""
    layout = find_family(config).experts
    if layout is None:
        return False
    if layout.layers_of:
        key, kind = layout.layers_of
        return kind in getattr(config, key)
    has_any = bool(getattr(config, layout.count_keys[0], None))
    return has_any and (not layout.switch or bool(getattr(config, layout.switch)))


def refuse_experts(config: Any, what: str, instead: str) -> None:
    """Raise UserError for a model with experts. what: that doesn't know them; instead: what to do."""
    if has_experts(config):
        raise UserError(f"{what} doesn't know mixtures of experts such as {config.model_type} yet; {instead}")


def keeps_states(config: Any) -> bool:
    """Whether some layers keep states of a recurrence or a convolution in a cache, not keys and values alone."""
    return bool(find_family(config).mixers)


def refuse_states(config: Any, what: str, instead: str) -> None:
    """Raise UserError for a family whose layers keep such states. what: that doesn't know them; instead: what to do."""
    if keeps_states(config):
        names = ", ".join(mixer.name for mixer in find_family(config).mixers)
        raise UserError(f"{what} doesn't know layers of {names} such as {config.model_type}'s yet; {instead}")


def refuse_other_caches(config: Any, what: str, instead: str) -> None:
    """As `refuse_states`; and for one whose cache isn't keys and values of one size, a pair for each KV group."""
    refuse_states(config, what, instead)
    refuse_shared_keys(config, what, instead)
    family = find_family(config)
    if family.sizes_by_type or not family.heads_share:
        why = "heads of several sizes" if family.sizes_by_type else "latent attention"
        raise UserError(f"{what} doesn't know {why} such as {config.model_type}'s yet; {instead}")


def sharing_modes(config: Any) -> list[str | None]:
    """Each layer's part in sharing keys and values: "store", "reuse", or None; all None where no layer reuses any."""
    sharing = find_family(config).sharing
    modes = [] if sharing is None else list(getattr(config, sharing.modes))
    return modes if "reuse" in modes else [None] * config.num_hidden_layers


def refuse_shared_keys(config: Any, what: str, instead: str) -> None:
    """Raise UserError for a model some of whose layers read the keys of others."""
    if any(sharing_modes(config)):
        raise UserError(
            f"{what} doesn't know layers that read the keys of others such as {config.model_type}'s yet; {instead}"
        )


def token_inputs(config: Any) -> int:
    """Numbers that each layer reads of every token beside the hidden states; 0 where it reads none."""
    told = find_family(config).token_inputs
    return 0 if told is None else int(getattr(config, told[0], None) or 0)


def width_keys(family: Family) -> tuple[str, ...]:
    """The config keys that hold a layer's widths, under every name that the family's modules read them by."""
    heads = () if family.heads_refused else ("num_attention_heads", "num_key_value_heads")
    layout = family.experts
    own = () if layout is None else (*layout.count_keys, layout.channels_key, layout.shared_key)
    return tuple(dict.fromkeys(key for key in (*heads, family.channels_key, *own) if key))
