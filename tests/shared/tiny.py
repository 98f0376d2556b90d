"""Tiny random models: one for every row of the architecture table, those with experts apart."""

from typing import Any

import torch
import transformers

from seap.models.families import FAMILIES

SMALL: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPLICIT_HEAD = {"head_dim": 8}  # not hidden/heads = 3
# that say something for each layer
LISTED = {"layer_types", "layers_block_type", "activation_sparsity_pattern", "intermediate_size"}
CORRECTIONS = ("e_score_correction_bias", "expert_bias")  # of routers, which learn them beside the weights

ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True, **EXPLICIT_HEAD}),
    "mistral": ("MistralForCausalLM", {"sliding_window": 6, **EXPLICIT_HEAD}),
    "qwen2": ("Qwen2ForCausalLM", {"hidden_size": 32, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3ForCausalLM", EXPLICIT_HEAD),
    "gemma2": ("Gemma2ForCausalLM", {"sliding_window": 6, "query_pre_attn_scalar": 8, **EXPLICIT_HEAD}),
    "gemma3_text": ("Gemma3ForCausalLM", {"sliding_window": 6, "query_pre_attn_scalar": 8, **EXPLICIT_HEAD}),
    "smollm3": ("SmolLM3ForCausalLM", {"hidden_size": 32}),
    "olmo2": ("Olmo2ForCausalLM", {"hidden_size": 32}),
    "phi3": ("Phi3ForCausalLM", {"hidden_size": 32, "original_max_position_embeddings": 64}),
    "gpt_neox": ("GPTNeoXForCausalLM", {"hidden_size": 32, "num_key_value_heads": None}),
    "opt": (
        "OPTForCausalLM",
        {"hidden_size": 32, "ffn_dim": 40, "word_embed_proj_dim": 32, "num_key_value_heads": None},
    ),
    "gpt2": ("GPT2LMHeadModel", {"hidden_size": 32, "n_inner": 40, "num_key_value_heads": None}),
}
ROWS |= {
    "apertus": ("ApertusForCausalLM", EXPLICIT_HEAD),
    "arcee": ("ArceeForCausalLM", EXPLICIT_HEAD),
    "cohere": ("CohereForCausalLM", EXPLICIT_HEAD),
    "cohere2": ("Cohere2ForCausalLM", {"sliding_window": 6, **EXPLICIT_HEAD}),
    "cwm": ("CwmForCausalLM", {"sliding_window": 6, **EXPLICIT_HEAD}),
    "ernie4_5": ("Ernie4_5ForCausalLM", EXPLICIT_HEAD),
    "exaone4": ("Exaone4ForCausalLM", {"sliding_window": 6, **EXPLICIT_HEAD}),
    "gemma": ("GemmaForCausalLM", EXPLICIT_HEAD),
    "glm": ("GlmForCausalLM", EXPLICIT_HEAD),
    "glm4": ("Glm4ForCausalLM", EXPLICIT_HEAD),
    "granite": ("GraniteForCausalLM", EXPLICIT_HEAD),
    "helium": ("HeliumForCausalLM", {"hidden_size": 32, "head_dim": 4}),
    "hunyuan_v1_dense": ("HunYuanDenseV1ForCausalLM", EXPLICIT_HEAD),
    "hyperclovax": ("HyperCLOVAXForCausalLM", EXPLICIT_HEAD),
    "ministral": ("MinistralForCausalLM", {"sliding_window": 6, **EXPLICIT_HEAD}),
    "ministral3": ("Ministral3ForCausalLM", EXPLICIT_HEAD),
    "nanochat": ("NanoChatForCausalLM", EXPLICIT_HEAD),
    "nemotron": ("NemotronForCausalLM", EXPLICIT_HEAD),
    "olmo": ("OlmoForCausalLM", {"hidden_size": 32}),
    "olmo3": ("Olmo3ForCausalLM", {"hidden_size": 32, "sliding_window": 6}),
    "phi": (
        "PhiForCausalLM",
        {"hidden_size": 32, "intermediate_size": 80, "partial_rotary_factor": 0.5, **EXPLICIT_HEAD},
    ),
    "seed_oss": ("SeedOssForCausalLM", EXPLICIT_HEAD),
    "stablelm": ("StableLmForCausalLM", {"hidden_size": 64}),
    "starcoder2": ("Starcoder2ForCausalLM", {"use_bias": True, **EXPLICIT_HEAD}),
    "vaultgemma": ("VaultGemmaForCausalLM", {"sliding_window": 6, "query_pre_attn_scalar": 8, **EXPLICIT_HEAD}),
}
TWO_OF_SIX = {"num_experts": 6, "num_experts_per_tok": 2}
MOE: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("MixtralForCausalLM", {"num_local_experts": 5, "num_experts_per_tok": 2, **EXPLICIT_HEAD}),
    "qwen2_moe": (
        "Qwen2MoeForCausalLM",
        {
            "hidden_size": 32,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 24,
            "mlp_only_layers": [1],
            **TWO_OF_SIX,
        },
    ),
    "qwen3_moe": (
        "Qwen3MoeForCausalLM",
        {"moe_intermediate_size": 16, "norm_topk_prob": True, **TWO_OF_SIX, **EXPLICIT_HEAD},
    ),
    "olmoe": ("OlmoeForCausalLM", {"hidden_size": 32, **TWO_OF_SIX}),
    "gpt_oss": (
        "GptOssForCausalLM",
        {
            "num_local_experts": 5,
            "num_experts_per_tok": 2,
            "sliding_window": 6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            **EXPLICIT_HEAD,
        },
    ),
}
LINEAR = {"layer_types": ["linear_attention", "full_attention", "linear_attention"]}
DELTA: dict[str, Any] = {
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 6,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    **LINEAR,
    **EXPLICIT_HEAD,
}
MAMBA: dict[str, Any] = {
    "mamba_n_heads": 6,
    "mamba_d_head": 8,
    "mamba_d_state": 6,
    "mamba_chunk_size": 4,
    "mamba_expand": 2,
    **EXPLICIT_HEAD,
}
BLOCKS = ["recurrent", "attention"]
NEMOTRON: dict[str, Any] = {
    "num_hidden_layers": None,
    "layers_block_type": ["linear_attention", "mlp", "full_attention"],
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "moe_shared_expert_intermediate_size": 24,
    "mamba_num_heads": 6,
    "mamba_head_dim": 8,
    "ssm_state_size": 6,
    "n_groups": 2,
    "chunk_size": 4,
    **EXPLICIT_HEAD,
}
ROWS |= {
    "qwen3_5_text": ("Qwen3_5ForCausalLM", DELTA),
    "lfm2": (
        "Lfm2ForCausalLM",
        {"layer_types": ["conv", "full_attention", "conv"], "block_multiple_of": 8, **EXPLICIT_HEAD},
    ),
    "bamba": ("BambaForCausalLM", {"attn_layer_indices": [1], "mlp_bias": True, **MAMBA}),
    "falcon_h1": (
        "FalconH1ForCausalLM",
        {"mamba_d_ssm": 48, "mlp_multipliers": [0.7, 1.3], "ssm_out_multiplier": 0.8, **MAMBA},
    ),
    "recurrent_gemma": (
        "RecurrentGemmaForCausalLM",
        {"hidden_size": 32, "intermediate_size": 80, "block_types": BLOCKS, "attention_window_size": 6},
    ),
}
MOE |= {
    "qwen3_next": (
        "Qwen3NextForCausalLM",
        {
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 24,
            "mlp_only_layers": [1],
            **TWO_OF_SIX,
            **DELTA,
        },
    ),
    "qwen3_5_moe_text": (
        "Qwen3_5MoeForCausalLM",
        {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 24, **TWO_OF_SIX, **DELTA},
    ),
    "lfm2_moe": (
        "Lfm2MoeForCausalLM",
        {
            "moe_intermediate_size": 16,
            "num_dense_layers": 1,
            "layer_types": ["conv", "full_attention", "conv"],
            **TWO_OF_SIX,
            **EXPLICIT_HEAD,
        },
    ),
    "jamba": (
        "JambaForCausalLM",
        {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 6, **TWO_OF_SIX, **EXPLICIT_HEAD},
    ),
    "granitemoehybrid": (
        "GraniteMoeHybridForCausalLM",
        {
            "shared_intermediate_size": 24,
            "num_local_experts": 5,
            "num_experts_per_tok": 2,
            "residual_multiplier": 0.7,
            **MAMBA,
            **LINEAR,
        },
    ),
    "nemotron_h": (
        "NemotronHForCausalLM",
        NEMOTRON | {"layers_block_type": ["linear_attention", "mlp", "full_attention", "moe"]},
    ),
}
ROWS["gemma4_text"] = (
    "Gemma4ForCausalLM",
    {
        "intermediate_size": 80,  # its heads stay: so that 0.3 of it can go
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "sliding_window": 6,
        "global_head_dim": 16,
        "hidden_size_per_layer_input": 0,
        "num_experts": 6,
        "top_k_experts": 2,
        "moe_intermediate_size": 16,
        **EXPLICIT_HEAD,
    },
)
TOKEN_INPUTS = {"hidden_size_per_layer_input": 6, "vocab_size_per_layer_input": 97}
ROWS["gemma3n_text"] = (
    "Gemma3nForCausalLM",
    {
        "num_hidden_layers": 4,
        "intermediate_size": [40, 72, 56, 64],
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
        "sliding_window": 6,
        "num_kv_shared_layers": 1,
        "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
        "altup_num_inputs": 3,
        "laurel_rank": 4,
        **TOKEN_INPUTS,
        **EXPLICIT_HEAD,
    },
)
GEMMA4 = ROWS["gemma4_text"][1]
GEMMA4_SHARED: dict[str, Any] = {
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_kv_shared_layers": 2,
    "use_double_wide_mlp": True,
    **TOKEN_INPUTS,
}
GEMMA4_EXPERTS: dict[str, Any] = {
    "intermediate_size": 40,
    "enable_moe_block": True,
    "attention_k_eq_v": True,
    "num_global_key_value_heads": 2,
}
LATENT: dict[str, Any] = {
    "num_key_value_heads": 8,
    "kv_lora_rank": 12,
    "q_lora_rank": 10,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 5,
}
LATENT_MOE: dict[str, Any] = {
    **LATENT,
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "n_shared_experts": 2,
    "moe_intermediate_size": 16,
    "n_group": 1,
    "topk_group": 1,
}
ROWS["minicpm3"] = ("MiniCPM3ForCausalLM", LATENT)
MOE |= {
    "deepseek_v2": ("DeepseekV2ForCausalLM", LATENT_MOE | {"first_k_dense_replace": 1, "q_lora_rank": None}),
    "deepseek_v3": ("DeepseekV3ForCausalLM", LATENT_MOE | {"first_k_dense_replace": 1, "num_mtp_layers": 0}),
    "glm4_moe_lite": ("Glm4MoeLiteForCausalLM", LATENT_MOE),
}
MOE["gemma4_text-experts"] = ("Gemma4ForCausalLM", GEMMA4 | GEMMA4_EXPERTS)
# decoders that come inside multimodal models alone: see tests/models/test_decoders.py
INSIDE = {"qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text"}
# a transformers that is too old
NOT_HERE = {name for name, (class_name, _) in (ROWS | MOE).items() if not hasattr(transformers, class_name)}
ROWS = {name: row for name, row in ROWS.items() if name not in NOT_HERE}
MOE = {name: row for name, row in MOE.items() if name not in NOT_HERE}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-mha": ("LlamaForCausalLM", {"num_key_value_heads": 8, **EXPLICIT_HEAD}),
    "llama-mqa": ("LlamaForCausalLM", {"num_key_value_heads": 1, **EXPLICIT_HEAD}),
    "llama-tied": ("LlamaForCausalLM", {"tie_word_embeddings": True, **EXPLICIT_HEAD}),
    "granitemoehybrid-dense": (
        "GraniteMoeHybridForCausalLM",
        {"shared_intermediate_size": 40, "num_local_experts": 0, **MAMBA, **LINEAR},
    ),
    "nemotron_h-dense": ("NemotronHForCausalLM", NEMOTRON),
    "gemma4_text-shared": ("Gemma4ForCausalLM", GEMMA4 | GEMMA4_SHARED),
}
ALL = ROWS | VARIANTS
EVERY = ALL | MOE
ROW_OF = {name: FAMILIES[name if name in FAMILIES else name.rpartition("-")[0]] for name in EVERY}
READ_TOKENS = {"gemma3n_text", "gemma4_text-shared"}  # whose layers have an embedding of every token
KEEP_STATES = {name for name, row in ROW_OF.items() if row.mixers}
# whose cache isn't keys and values of one size, a pair for each KV group
OTHER_CACHES = KEEP_STATES | {name for name, row in ROW_OF.items() if row.sizes_by_type or not row.heads_share}


def model(name: str = "llama", *, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A random model with non-zero biases and norms away from 1, so that nothing cancels by chance."""
    class_name, own = EVERY[name]
    options = {k: v for k, v in (SMALL | own | changes).items() if v is not None}
    if number := changes.get("num_hidden_layers"):
        for key in [key for key in LISTED & own.keys() - changes.keys() if isinstance(own[key], list)]:  # go on in turn
            options[key] = [own[key][i % len(own[key])] for i in range(number)]
    model_class = getattr(transformers, class_name)
    config = model_class.config_class(**options)
    torch.manual_seed(seed)
    built = model_class(config).to(dtype).eval()
    with torch.no_grad():
        corrections = (value for name, value in built.named_buffers() if name.endswith(CORRECTIONS))
        for parameter in (*built.parameters(), *corrections):
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.ndim == 1 else 0.1))
    return built


def ids(rows: int = 3, tokens: int = 12, *, seed: int = 1) -> torch.Tensor:
    """Token ids (rows, tokens), none of them special."""
    return torch.randint(3, SMALL["vocab_size"], (rows, tokens), generator=torch.Generator().manual_seed(seed))
