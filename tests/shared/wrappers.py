"""Tiny random multimodal models: one for every kind of wrapper."""

from typing import Any

import torch
import transformers
from tiny import SMALL

TEXT = {name: value for name, value in SMALL.items()} | {"head_dim": 8}
SIGLIP: dict[str, Any] = {
    "model_type": "siglip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
QWEN_VISION: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_heads": 2,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 1,
}
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
# class of the whole model → its config's entries, and what its get_image_features takes
WRAPPERS: dict[str, dict[str, Any]] = {
    "Gemma3ForConditionalGeneration": {
        "text_config": TEXT | {"sliding_window": 6, "query_pre_attn_scalar": 8},
        "vision_config": SIGLIP,
        "mm_tokens_per_image": 4,
        "image_token_index": 90,
    },
    "LlavaForConditionalGeneration": {
        "text_config": TEXT | {"model_type": "llama"},
        "vision_config": SIGLIP,
        "image_token_index": 90,
    },
    "Mistral3ForConditionalGeneration": {
        "text_config": TEXT | {"model_type": "mistral", "sliding_window": None},
        "vision_config": {
            "model_type": "pixtral",
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 4,
        },
        "spatial_merge_size": 2,
        "image_token_index": 90,
    },
    "Qwen2VLForConditionalGeneration": {
        "text_config": TEXT | {"hidden_size": 64, "rope_parameters": ROPE, "head_dim": None},
        "vision_config": {"depth": 2, "embed_dim": 16, "hidden_size": 64, "num_heads": 2, "patch_size": 4},
    },
    "Qwen2_5_VLForConditionalGeneration": {
        "text_config": TEXT | {"hidden_size": 64, "rope_parameters": ROPE, "head_dim": None},
        "vision_config": QWEN_VISION | {"out_hidden_size": 64, "fullatt_block_indexes": [1], "window_size": 16},
    },
    "Qwen3VLForConditionalGeneration": {
        "text_config": TEXT | {"rope_parameters": ROPE},
        "vision_config": QWEN_VISION
        | {"out_hidden_size": 24, "deepstack_visual_indexes": [0], "num_position_embeddings": 16},
    },
    "Qwen3_5ForConditionalGeneration": {
        "text_config": TEXT
        | {
            "rope_parameters": ROPE | {"partial_rotary_factor": 1.0},
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
            "linear_key_head_dim": 4,
            "linear_value_head_dim": 6,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
        },
        "vision_config": QWEN_VISION | {"out_hidden_size": 24, "num_position_embeddings": 16},
    },
    "SmolVLMForConditionalGeneration": {
        "text_config": TEXT | {"model_type": "llama"},
        "vision_config": SIGLIP | {"model_type": "smolvlm_vision"},
        "scale_factor": 2,
        "image_token_id": 90,
    },
    "Idefics3ForConditionalGeneration": {
        "text_config": TEXT | {"model_type": "llama"},
        "vision_config": SIGLIP | {"model_type": "idefics3_vision"},
        "scale_factor": 2,
        "image_token_id": 90,
    },
}
HERE = sorted(name for name in WRAPPERS if hasattr(transformers, name))


def wrapper(name: str, vocabulary: int = SMALL["vocab_size"], **changes: Any) -> Any:
    kind = getattr(transformers, name)
    given = WRAPPERS[name] | changes
    text = {k: v for k, v in given["text_config"].items() if v is not None} | {"vocab_size": vocabulary}
    torch.manual_seed(0)
    built = kind(kind.config_class(**(given | {"text_config": text}))).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.ndim == 1 else 0.1))
    return built
