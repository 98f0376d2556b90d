"""What the exports for engines of Llama-like models share: which families compute as Llama does, and its rope.

Llama, Mistral without a sliding window and Qwen2 are one computation; they differ in which biases there are.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from seap.errors import UserError, refuse
from seap.exports.stock import slides
from seap.models.arch import Arch
from seap.models.axes import ATTENTION
from seap.models.families import refuse_experts

AS_LLAMA = ("llama", "mistral", "qwen2")
ROPES = ("default", "linear", "llama3", "yarn", "dynamic")


@dataclass(frozen=True)
class Rope:
    """The rotary embedding as engines are told. scaling: None where it isn't scaled."""

    theta: float
    scaling: Mapping[str, Any] | None
    notes: tuple[str, ...] = ()

    def entries(self) -> dict[str, Any]:
        """For config.json, under the older names and the newer one."""
        whole = {"rope_theta": self.theta, "rope_type": "default"} | dict(self.scaling or {})
        return {"rope_theta": self.theta, "rope_scaling": self.scaling, "rope_parameters": whole}


def rope_of(config: Any, target: str) -> Rope:
    """The rope of a model. Raises UserError for one that isn't written.

    `dynamic` changes nothing up to the length that the model was made for, which is what is written.
    """
    told = dict(config.rope_parameters or {})
    theta, kind = float(told.pop("rope_theta", 10000.0)), told.get("rope_type", "default")
    if kind not in ROPES:
        raise UserError(f"{target}: its rope scaling {kind} isn't written yet; {', '.join(ROPES)} are")
    if kind == "dynamic":
        note = (
            f"its rope is dynamic, which engines are not told: up to {config.max_position_embeddings:,} tokens it is "
            "the same, beyond them don't use it"
        )
        return Rope(theta, None, (note,))
    scaling = {name: value for name, value in told.items() if value is not None}
    return Rope(theta, None if kind == "default" else scaling)


def check_family(config: Any, target: str, families: tuple[str, ...] = AS_LLAMA) -> None:
    """Raise UserError, with the reason, for a model that doesn't compute as Llama does."""
    refuse_experts(config, target, "use --to uniform, or load it with transformers, which needs import seap")
    reasons = {
        f"only {', '.join(families)} are written, and this is {config.model_type}": config.model_type not in families,
        "its sliding window can't be said there": slides(config),
        f"its activation is {getattr(config, 'hidden_act', None)}, not silu": getattr(config, "hidden_act", "")
        != "silu",
    }
    refuse(target, reasons, "use --to padded, or serve it as it is with vLLM")
    rope_of(config, target)


def biased(arch: Arch, block: str) -> bool:
    """Whether any linear of the layers' attention, or of their MLP, has a bias."""
    start = "self_attn." if block == ATTENTION else "mlp."
    return any(
        name.startswith(start) and name.endswith("_proj.bias")
        for layer in arch.layers
        for name, _ in layer.named_parameters()
    )
