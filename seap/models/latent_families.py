"""The families with latent attention: their rows, which `families.py` takes into its table.

Keys and values of all heads are written from one compressed state (`kv_b_proj`), queries often from another
(`q_b_proj`): a head is its rows of these two and its columns of `o_proj`. What compresses serves all heads and stays,
and so does the cache, which holds the compressed state.
"""

from dataclasses import replace

from seap.models.family import LLAMA, Family, stacked

_LATENT = replace(
    LLAMA,
    model_type="minicpm3",
    heads=dict.fromkeys(("self_attn.q_proj", "self_attn.q_b_proj", "self_attn.kv_b_proj"), "*"),
    head_size="self_attn.v_head_dim",
    head_key="",
    heads_share=False,
    uncut=("self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa"),
)
_DEEPSEEK_MOE = stacked(
    "mlp",
    by_expert=("mlp.gate.weight", "mlp.gate.e_score_correction_bias"),
    groups="num_group",
    count_keys=("n_routed_experts", "num_local_experts"),
    channels_key="moe_intermediate_size",
    shared={"mlp.shared_experts.gate_proj": "g", "mlp.shared_experts.up_proj": "u"},
    shared_consumer="mlp.shared_experts.down_proj",
    shared_key="shared_expert_intermediate_size",
    resizes_shared=True,
)

LATENT: tuple[Family, ...] = (
    _LATENT,
    replace(_LATENT, model_type="deepseek_v3", experts=_DEEPSEEK_MOE),
    replace(_LATENT, model_type="glm4_moe_lite", experts=_DEEPSEEK_MOE),
    replace(
        _LATENT,
        model_type="deepseek_v2",
        experts=replace(_DEEPSEEK_MOE, count_keys=("n_routed_experts", "num_experts")),
    ),
)
