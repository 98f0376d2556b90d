"""A pruned model for mlx-lm, which imports this file where config.json names it (`model_file`).

It computes as Llama, Qwen2, Qwen3 and SmolLM3 do, with widths, biases and missing sub-blocks layer by layer, as
`layers` in config.json says. It imports nothing of seap. Shapes: B batch, T tokens, D hidden size, H query heads, G KV
groups, K head size.
"""

from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.base import BaseModelArgs, create_attention_mask, scaled_dot_product_attention
from mlx_lm.models.cache import KVCache


@dataclass
class ModelArgs(BaseModelArgs):
    """config.json. `layers`: of each kv_groups, queries of each, channels (0 of what is gone), biases, rope, left."""

    model_type: str = ""
    hidden_size: int = 0
    vocab_size: int = 0
    head_dim: int = 0
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    qk_norm: bool = False
    rope_freqs: list[float] = field(default_factory=list)
    rope_scale: float = 1.0
    layers: list[dict[str, Any]] = field(default_factory=list)


class Vector(nn.Module):
    """What is left of a sub-block that went whole: it adds the same vector to every token."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = mx.zeros((size,))


class Attention(nn.Module):
    """Rotary attention of G groups of query heads."""

    def __init__(self, args: ModelArgs, layer: dict[str, Any]) -> None:
        super().__init__()
        size, groups = args.head_dim, layer["kv_groups"]
        self.groups, self.heads, self.size = groups, groups * layer["queries"], size
        outputs = {"q_proj": self.heads * size, "k_proj": groups * size, "v_proj": groups * size}
        for name, rows in outputs.items():
            setattr(self, name, nn.Linear(args.hidden_size, rows, bias=f"self_attn.{name}" in layer["biases"]))
        self.o_proj = nn.Linear(self.heads * size, args.hidden_size, bias="self_attn.o_proj" in layer["biases"])
        self.has_norm = args.qk_norm
        if self.has_norm:
            self.q_norm = nn.RMSNorm(size, eps=args.rms_norm_eps)
            self.k_norm = nn.RMSNorm(size, eps=args.rms_norm_eps)
        self._freqs = mx.array(args.rope_freqs) if layer["rope"] else None
        self._scale = args.rope_scale

    def __call__(self, x: Any, mask: Any = None, cache: Any = None) -> Any:
        """(B, T, D) → (B, T, D)."""
        batch, length, _ = x.shape
        queries, keys, values = (
            part(x).reshape(batch, length, number, self.size)
            for part, number in ((self.q_proj, self.heads), (self.k_proj, self.groups), (self.v_proj, self.groups))
        )
        if self.has_norm:
            queries, keys = self.q_norm(queries), self.k_norm(keys)
        queries, keys, values = (part.transpose(0, 2, 1, 3) for part in (queries, keys, values))
        if self._freqs is not None:
            offset = cache.offset if cache is not None else 0
            queries, keys = self._turned(queries, offset), self._turned(keys, offset)
        if cache is not None:
            keys, values = cache.update_and_fetch(keys, values)
        found = scaled_dot_product_attention(queries, keys, values, cache=cache, scale=self.size**-0.5, mask=mask)
        return self.o_proj(found.transpose(0, 2, 1, 3).reshape(batch, length, -1))

    def _turned(self, x: Any, offset: Any) -> Any:
        scaled = x if self._scale == 1.0 else x * self._scale
        return mx.fast.rope(
            scaled, self.size, traditional=False, base=None, scale=1.0, offset=offset, freqs=self._freqs
        )


class MLP(nn.Module):
    """Gated, with silu."""

    def __init__(self, args: ModelArgs, layer: dict[str, Any]) -> None:
        super().__init__()
        size, channels, biases = args.hidden_size, layer["channels"], layer["biases"]
        self.gate_proj = nn.Linear(size, channels, bias="mlp.gate_proj" in biases)
        self.up_proj = nn.Linear(size, channels, bias="mlp.up_proj" in biases)
        self.down_proj = nn.Linear(channels, size, bias="mlp.down_proj" in biases)

    def __call__(self, x: Any) -> Any:
        return self.down_proj(nn.silu(self.gate_proj(x)) * self.up_proj(x))


class Left(nn.Module):
    """In place of an attention or an MLP that went whole and has left a vector."""

    def __init__(self, name: str, size: int) -> None:
        super().__init__()
        setattr(self, name, Vector(size))


class Layer(nn.Module):
    """One decoder layer, with what it has kept."""

    def __init__(self, args: ModelArgs, layer: dict[str, Any]) -> None:
        super().__init__()
        size, eps = args.hidden_size, args.rms_norm_eps
        self.attends, self.has_mlp, self.left = layer["kv_groups"] > 0, layer["channels"] > 0, tuple(layer["left"])
        if self.attends:
            self.input_layernorm = nn.RMSNorm(size, eps=eps)
            self.self_attn = Attention(args, layer)
        elif "attention" in self.left:
            self.self_attn = Left("o_proj", size)
        if self.has_mlp:
            self.post_attention_layernorm = nn.RMSNorm(size, eps=eps)
            self.mlp = MLP(args, layer)
        elif "mlp" in self.left:
            self.mlp = Left("down_proj", size)

    def __call__(self, x: Any, mask: Any = None, cache: Any = None) -> Any:
        if self.attends:
            x = x + self.self_attn(self.input_layernorm(x), mask, cache)
        elif "attention" in self.left:
            x = x + self.self_attn.o_proj.weight
        if self.has_mlp:
            x = x + self.mlp(self.post_attention_layernorm(x))
        elif "mlp" in self.left:
            x = x + self.mlp.down_proj.weight
        return x


class Decoder(nn.Module):
    """Embedding, layers, norm."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(args.vocab_size, args.hidden_size)
        self.layers = [Layer(args, layer) for layer in args.layers]
        self.norm = nn.RMSNorm(args.hidden_size, eps=args.rms_norm_eps)

    def __call__(self, inputs: Any, cache: Any = None) -> Any:
        """cache: one for each layer that attends."""
        x = self.embed_tokens(inputs)
        caches = iter(cache if cache is not None else [None] * len(self.layers))
        mask = create_attention_mask(x, cache[0] if cache else None)
        for layer in self.layers:
            x = layer(x, mask, next(caches)) if layer.attends else layer(x)
        return self.norm(x)


class Model(nn.Module):
    """What mlx-lm loads and calls."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.args, self.model_type = args, args.model_type
        self.model = Decoder(args)
        if not args.tie_word_embeddings:
            self.lm_head = nn.Linear(args.hidden_size, args.vocab_size, bias=False)

    def __call__(self, inputs: Any, cache: Any = None) -> Any:
        """(B, T) → logits (B, T, V)."""
        found = self.model(inputs, cache)
        return self.model.embed_tokens.as_linear(found) if self.args.tie_word_embeddings else self.lm_head(found)

    @property
    def layers(self) -> Any:
        return self.model.layers

    def make_cache(self) -> list[Any]:
        """One for each layer that attends."""
        return [KVCache() for layer in self.layers if layer.attends]
