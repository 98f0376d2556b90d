"""Models of public shapes with random weights, for measurements of speed, which doesn't depend on the values."""

import re
from typing import Any

import torch

from seap.errors import UserError

# model_type, then the config's own names; sizes from the models' published configs
PUBLIC: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-2-7b": ("llama", {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}),
    "llama-2-13b": (
        "llama",
        {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40},
    ),
    "llama-3-8b": (
        "llama",
        {
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
        },
    ),
    "llama-3-70b": (
        "llama",
        {
            "hidden_size": 8192,
            "intermediate_size": 28672,
            "num_hidden_layers": 80,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
        },
    ),
    "llama-3.1-405b": (
        "llama",
        {
            "hidden_size": 16384,
            "intermediate_size": 53248,
            "num_hidden_layers": 126,
            "num_attention_heads": 128,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
        },
    ),
    "llama-3.2-1b": (
        "llama",
        {
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "vocab_size": 128256,
            "tie_word_embeddings": True,
        },
    ),
    "qwen3-0.6b": (
        "qwen3",
        {
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151936,
            "tie_word_embeddings": True,
        },
    ),
}
SIZED = re.compile(r"(llama|mistral|qwen2|qwen3):(\d+(?:\.\d+)?)([mb])")
HEAD_SIZE = 64  # of shapes that are made up from a size


def is_shape(name: str) -> bool:
    """Whether `shape_config` knows the name."""
    return name in PUBLIC or SIZED.fullmatch(name.lower()) is not None


def shape_config(name: str) -> Any:
    """The config of a public shape (`llama-2-7b`), or of a family at a size (`llama:0.5b`)."""
    from transformers import AutoConfig

    if name in PUBLIC:
        model_type, values = PUBLIC[name]
        return AutoConfig.for_model(model_type, **values)
    found = SIZED.fullmatch(name.lower())
    if not found:
        raise UserError(
            f"--random-weights {name}: name a shape ({', '.join(PUBLIC)}) or FAMILY:SIZE, such as llama:0.5b "
            "(llama, mistral, qwen2, qwen3)"
        )
    family, number, unit = found.groups()
    return AutoConfig.for_model(family, **of_size(float(number) * (1e9 if unit == "b" else 1e6)))


def of_size(params: float) -> dict[str, int]:
    """Widths of a model of about so many parameters in its layers: 12 · D² each, with D / 96 layers."""
    hidden = max(round((params * 8) ** (1 / 3) / 128), 1) * 128
    layers = max(round(params / (12 * hidden**2)), 1)
    heads = hidden // HEAD_SIZE
    return {
        "hidden_size": hidden,
        "intermediate_size": 8 * hidden // 3 // 64 * 64,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": HEAD_SIZE,
        "vocab_size": 32000,
    }


def random_model(name: str, *, dtype: str = "auto", device: str = "cpu") -> Any:
    """A model of a shape. dtype auto is float32 on a CPU and bfloat16 elsewhere."""
    from transformers import AutoModelForCausalLM

    chosen = ("float32" if device == "cpu" else "bfloat16") if dtype == "auto" else dtype
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(shape_config(name), dtype=getattr(torch, chosen)).eval()
