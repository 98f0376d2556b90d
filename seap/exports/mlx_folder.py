"""MLX: a folder that mlx-lm loads with the modelling file in it, its layers as wide as pruning left them.

mlx-lm's own classes have one width for all layers, but for `nemotron-nas` (nemotron_nas.py). Where a config names a
`model_file`, it imports that from the folder, if it is trusted to (`trust_remote_code`; mlx_lm/utils.py: load_model).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from seap.exports.engines import widths
from seap.exports.llamas import AS_LLAMA, check_family, rope_of
from seap.exports.step import stock_name
from seap.files import to_json, write_safetensors
from seap.models.arch import Arch, describe
from seap.models.axes import ATTENTION, MLP

TARGET = "--to mlx"
FAMILIES = (*AS_LLAMA, "qwen3", "smollm3")
SOURCE = Path(__file__).with_name("modeling_mlx.py")
CONSUMERS = {ATTENTION: "self_attn.o_proj.weight", MLP: "mlp.down_proj.weight"}


def check_config(config: Any) -> None:
    """Raise UserError, with the reason, for a model that the modelling file doesn't compute."""
    check_family(config, TARGET, FAMILIES)


def write_mlx(model: Any, tokenizer: Any, folder: Path) -> list[str]:
    """Write the folder; returns what to know about it."""
    check_config(model.config)
    arch = describe(model)
    write_safetensors(folder / "model.safetensors", dict(tensors(arch)), {"format": "mlx"})
    (folder / "config.json").write_text(to_json(config_of(arch), indent=2) + "\n")
    (folder / SOURCE.name).write_text(SOURCE.read_text())
    tokenizer.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    return [*rope_of(model.config, TARGET).notes]


def tensors(arch: Arch) -> Iterator[tuple[str, Tensor]]:
    """Every parameter under its own name, a tied one once; none that are empty."""
    for name, value in arch.model.named_parameters():
        if value.numel():
            yield name, value.detach().contiguous()


def config_of(arch: Arch) -> dict[str, Any]:
    """config.json: what transformers' has of sizes and tokens, and what the modelling file reads."""
    config, rotary = arch.model.config, arch.model.model.rotary_emb
    names = ["model_type", "hidden_size", "vocab_size", "num_hidden_layers", "rms_norm_eps", "max_position_embeddings"]
    names += ("tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id")
    return {
        **{name: getattr(config, name, None) for name in names},
        "architectures": [stock_name(arch.model)],
        "model_file": SOURCE.name,
        "head_dim": arch.head_size,
        "qk_norm": any(name.endswith("q_norm.weight") for name, _ in arch.layers.named_parameters()),
        "rope_freqs": [float(1 / value) for value in rotary.inv_freq.double().cpu()],
        "rope_scale": float(getattr(rotary, "attention_scaling", 1.0)),
        "layers": [_layer(arch, layer, found) for layer, found in enumerate(widths(config))],
    }


def _layer(arch: Arch, index: int, found: dict[str, int]) -> dict[str, Any]:
    own = dict(arch.layers[index].named_parameters())
    biases = sorted(name.removesuffix(".bias") for name in own if name.endswith("_proj.bias"))
    gone = [kind for kind, name in CONSUMERS.items() if not arch.has(index, kind) and own[name].numel()]
    turned = getattr(arch.model.config, "no_rope_layers", None)  # SmolLM3's: 1 of the layers that have it
    queries = arch.queries_at(index) if found["kv_groups"] else 0
    return {**found, "queries": queries, "biases": biases, "left": gone, "rope": turned is None or bool(turned[index])}
