"""Decoding by CUDA graphs: one step is recorded once and played again, so that nothing waits for its launches.

What engines that serve do (vLLM), without a compiler's minutes: the kernels are those of the eager step. The cache is
transformers' static one, whose buffers stay where they are and whose length lies on the GPU.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from seap.errors import UserError
from seap.models.families import keeps_states
from seap.models.modes import cache_name

if TYPE_CHECKING:
    from transformers import StaticCache

WARM_UPS = 2  # steps before the recording: libraries take their memory then


class Written(dict[str, Any]):
    """What a step gives: logits (B, 1, V), and the cache by the name that this transformers has for it."""

    @property
    def logits(self) -> Tensor:
        found: Tensor = self["logits"]
        return found


class GraphedStep:
    """A step of decoding one token for each of a fixed number of rows, recorded at its first call.

    Raises UserError where the model isn't on a CUDA GPU, or has a cache whose length isn't a tensor (sliding windows,
    recurrent states).
    """

    def __init__(self, model: Any, cache: "StaticCache") -> None:
        if not is_on_gpu(model):
            raise UserError(f"--mode graphs needs a CUDA GPU, and the model is on {model.device}; use --mode eager")
        if keeps_states(model.config) or any(getattr(layer, "is_sliding", False) for layer in cache.layers):
            raise UserError("--mode graphs: this model's cache counts tokens outside of the GPU; use --mode compile")
        self.model, self.cache, self._name = model, cache, cache_name(model)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._ids: Tensor | None = None
        self._logits: Tensor | None = None

    def __call__(self, ids: Tensor, **known: Any) -> Written:
        """The step for tokens (B, 1), after what the cache holds; logits (B, 1, V)."""
        if self._graph is None:
            self._record_(ids)
        assert self._graph is not None and self._ids is not None
        self._ids.copy_(ids)
        self._graph.replay()
        return Written({"logits": self._logits, self._name: self.cache})

    def _record_(self, ids: Tensor) -> None:
        self._ids = ids.clone()
        lengths = [layer.cumulative_length.clone() for layer in self.cache.layers]
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS):
                self._step()
                self._put_back_(lengths)
        torch.cuda.current_stream().wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._logits = self._step()

    def _step(self) -> Tensor:
        found: Tensor = self.model(self._ids, use_cache=True, logits_to_keep=1, **{self._name: self.cache}).logits
        return found

    def _put_back_(self, lengths: list[Tensor]) -> None:
        for layer, length in zip(self.cache.layers, lengths, strict=True):
            layer.cumulative_length.copy_(length)


def is_on_gpu(model: Any) -> bool:
    return bool(model.device.type == "cuda")
