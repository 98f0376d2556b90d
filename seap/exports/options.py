"""The options of `seap export`, `seap check` and `seap push`."""

from dataclasses import dataclass, fields
from typing import Literal

from seap.errors import UserError, at_least

Target = Literal[
    "uniform", "padded", "nemotron-nas", "gguf", "mlx", "openvino", "onnx", "compressed-tensors", "torchao"
]
PadTo = Literal["widest", "dense"]
Quantize = Literal["f32", "f16", "bf16", "q8_0"]
Weights = Literal["float", "int8", "int4"]
Engine = Literal["vllm"]

BELONGS_TO: dict[str, tuple[Target, ...]] = {
    "pad_to": ("padded",),
    "quantize": ("gguf",),
    "tokenizer": ("gguf",),
    "weights": ("openvino", "torchao", "compressed-tensors"),
}


@dataclass(frozen=True, kw_only=True)
class Export:
    """What an export is made of, beyond its target."""

    pad_to: PadTo = "widest"
    """padded: up to the widest layer, or to the widths of the model before pruning."""
    quantize: Quantize = "f16"
    """gguf: of the matrices. llama.cpp's own llama-quantize makes the K-quants from an f16 file."""
    tokenizer: str = "auto"
    """gguf: auto finds llama.cpp's pre-tokenizer that splits alike; its name, to say which; none leaves it out."""
    weights: Weights = "float"
    """openvino: weights as they are, or compressed by NNCF. torchao: int8. compressed-tensors: int8 or int4."""

    def check_target(self, target: Target) -> None:
        """Raise UserError for an option of another target."""
        for field in fields(self):
            belongs = BELONGS_TO[field.name]
            if getattr(self, field.name) != field.default and target not in belongs:
                flag = f"--{field.name.replace('_', '-')}"
                raise UserError(f"{flag} is for --to {' and '.join(belongs)}, not {target}; leave it out")


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """What a checkpoint is to run on."""

    engine: Engine = "vllm"
    """What will serve it."""
    tp: int = 1
    """GPUs that share each layer (vLLM's --tensor-parallel-size)."""

    def __post_init__(self) -> None:
        at_least("tp", self.tp, 1)
