"""The config of a `nemotron-nas` model: Llama's, and for each layer what its attention and its MLP are.

vLLM and SGLang run such models with code of their own and read this class beside the checkpoint
(`--trust-remote-code`); mlx-lm reads config.json alone. It imports nothing but transformers.
"""

from typing import Any

from transformers import LlamaConfig


class Block(dict[str, Any]):
    """JSON that is read by attribute, at any depth."""

    def __init__(self, told: Any) -> None:
        super().__init__({key: Block(value) if isinstance(value, dict) else value for key, value in told.items()})

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(name)

    def __reduce__(self) -> Any:
        return Block, (dict(self),)


class DeciLMConfig(LlamaConfig):
    """`block_configs`: of each layer `attention` (n_heads_in_group, no_op) and `ffn` (ffn_mult, no_op)."""

    model_type = "nemotron-nas"

    def __init__(self, block_configs: Any = None, **values: Any) -> None:
        super().__init__(**values)
        self.block_configs = [Block(block) for block in block_configs or ()]
