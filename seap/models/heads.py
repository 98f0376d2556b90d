"""How many KV groups and query heads the layers of a model have, and their size, by its config."""

from typing import TYPE_CHECKING, Any

from seap.models import modeling_seap

if TYPE_CHECKING:
    from seap.models.arch import Arch


def said(config: Any, name: str) -> Any:
    """An entry of the whole config, also where single layers have others, for which transformers raises; or None."""
    return vars(config)[name] if name in vars(config) else getattr(config, name, None)


def num_groups(config: Any) -> int:
    """KV groups of a layer before any was cut; of a family that knows none, its heads."""
    return int(said(config, "num_key_value_heads") or config.num_attention_heads)


def queries_at(config: Any, layer: int) -> int:
    """Query heads of each KV group of a layer as it is now."""
    own = modeling_seap.layer_widths(config, layer) if getattr(config, "seap", None) else {}
    heads = own.get("num_attention_heads", config.num_attention_heads)
    return int(heads // (own.get("num_key_value_heads") or num_groups(config)))


def size_said(config: Any) -> int:
    """Numbers of a key of one head, by the config."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def size_of_key(arch: "Arch") -> int:
    """Numbers of a key of one head; of a family whose heads can't be cut as the config has it."""
    return arch.head_size if arch.can_cut_heads else size_said(arch.model.config)
