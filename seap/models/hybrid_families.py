"""The families whose layers are of several kinds: their rows, which `families.py` takes into its table.

Softmax attention in some layers, linear attention, a state space model or a convolution in others (or beside it).
"""

from dataclasses import replace

from seap.models.experts import Cut
from seap.models.family import LLAMA, QWEN2_MOE, Family, Mixer, stacked

_DELTA = Mixer(
    path="linear_attn",
    consumer="linear_attn.out_proj",
    name="linear attention",
    why="its value heads share keys, convolutions and decays, which aren't taken apart yet",
)
_CONVOLUTION = Mixer(
    path="conv", consumer="conv.out_proj", name="convolutions", why="theirs is the width of the residual stream"
)
_MAMBA = Mixer(
    path="mamba",
    consumer="mamba.out_proj",
    name="Mamba",
    why="its in_proj, convolution and states of all heads lie in one, and aren't taken apart yet",
)
_BESIDE = "its attention and its Mamba read through one norm and share a layer's place in the cache"
_ALONE = "a layer of this family is one sub-block alone; --allocate whole-layers takes such layers out"

_QWEN3_NEXT = replace(
    LLAMA,
    model_type="qwen3_next",
    heads={"self_attn.q_proj": "Q", "self_attn.k_proj": "k", "self_attn.v_proj": "v"},
    mixers=(_DELTA,),
    experts=QWEN2_MOE,
)

_LFM2 = replace(
    LLAMA,
    model_type="lfm2",
    heads_consumer="self_attn.out_proj",
    mixers=(_CONVOLUTION,),
    mlp={"feed_forward.w1": "g", "feed_forward.w3": "u"},
    mlp_consumer="feed_forward.w2",
    heads_norm="operator_norm",
    mlp_norm="ffn_norm",
)
_LFM2_MOE = stacked(
    "feed_forward",
    by_expert=("feed_forward.gate.weight", "feed_forward.expert_bias"),
    count_keys=("num_experts",),
    channels_key="moe_intermediate_size",
)

_BAMBA = replace(
    LLAMA,
    model_type="bamba",
    mixers=(_MAMBA,),
    mlp={"feed_forward.gate_proj": "g", "feed_forward.up_proj": "u"},
    mlp_consumer="feed_forward.down_proj",
    mlp_norm="pre_ff_layernorm",
)
_JAMBA_MOE = replace(
    _LFM2_MOE,
    router="feed_forward.router",
    by_expert=("feed_forward.router.weight",),
    chooses="feed_forward",
    count_keys=("num_experts", "num_local_experts"),
    channels_key="intermediate_size",
)
_GRANITE_MOE = stacked(
    "block_sparse_moe",
    router="block_sparse_moe.router",
    by_expert=("block_sparse_moe.router.weight",),
    count_keys=("num_local_experts",),
    channels_key="intermediate_size",
    shared={"shared_mlp.input_linear": "gu"},
    shared_consumer="shared_mlp.output_linear",
    shared_key="shared_intermediate_size",
)
_NEMOTRON_MOE = stacked(
    "mixer",
    up="mixer.experts.up_proj",
    by_channel={"mixer.experts.up_proj": Cut(dim=0), "mixer.experts.down_proj": Cut(dim=1)},
    by_expert=("mixer.gate.weight", "mixer.gate.e_score_correction_bias"),
    groups="num_group",
    layers_of=("layers_block_type", "moe"),
    count_keys=("n_routed_experts", "num_local_experts"),
    channels_key="moe_intermediate_size",
    shared={"mixer.shared_experts.up_proj": "c"},
    shared_consumer="mixer.shared_experts.down_proj",
    shared_key="moe_shared_expert_intermediate_size",
)

HYBRIDS: tuple[Family, ...] = (
    _QWEN3_NEXT,
    replace(_QWEN3_NEXT, model_type="qwen3_5_text", experts=None),
    replace(_QWEN3_NEXT, model_type="qwen3_5_moe_text"),
    # its class rounds widths to multiples of 256 unless told not to
    replace(_LFM2, fixed={"block_auto_adjust_ff_dim": False}),
    replace(_LFM2, model_type="lfm2_moe", experts=_LFM2_MOE),
    replace(_BAMBA, built_with={"layer_type": "layers_block_type"}, output_parts=2),
    replace(_BAMBA, model_type="falcon_h1", blocks_refused=_BESIDE, output_parts=1),
    replace(_BAMBA, model_type="jamba", experts=_JAMBA_MOE),
    replace(
        LLAMA,
        model_type="granitemoehybrid",
        mixers=(_MAMBA,),
        mlp={"shared_mlp.input_linear": "gu"},
        mlp_consumer="shared_mlp.output_linear",
        channels_key="shared_intermediate_size",
        experts=_GRANITE_MOE,
    ),
    replace(
        LLAMA,
        model_type="nemotron_h",
        heads={"mixer.q_proj": "q", "mixer.k_proj": "k", "mixer.v_proj": "v"},
        heads_consumer="mixer.o_proj",
        head_size="mixer.head_dim",
        mixers=(replace(_MAMBA, path="mixer", consumer="mixer.out_proj"),),
        mlp={"mixer.up_proj": "c"},
        mlp_consumer="mixer.down_proj",
        heads_norm="norm",
        mlp_norm="norm",
        blocks_refused=_ALONE,
        experts=_NEMOTRON_MOE,
    ),
    replace(
        LLAMA,
        model_type="recurrent_gemma",
        heads={"temporal_block.q_proj": "q", "temporal_block.k_proj": "k", "temporal_block.v_proj": "v"},
        heads_consumer="temporal_block.o_proj",
        head_size="temporal_block.head_dim",
        head_key="",
        mixers=(
            Mixer(
                path="temporal_block",
                consumer="temporal_block.linear_out",
                name="recurrence",
                why="its gates are of blocks of the recurrence's width, which must all be equally wide",
            ),
        ),
        mlp={"mlp_block.gate_proj": "g", "mlp_block.up_proj": "u"},
        mlp_consumer="mlp_block.down_proj",
        channels_factor=2,
        heads_norm="temporal_pre_norm",
        mlp_norm="channel_pre_norm",
    ),
)
