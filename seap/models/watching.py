"""One decoder layer watched while a model runs: its linears and norms, in order, with what each read and wrote.

Shapes: B rows, T tokens, D hidden size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

IDS = torch.tensor([[3, 5, 7, 11, 13, 17], [4, 5, 7, 11, 13, 17]])  # alike but for the first token


@dataclass(frozen=True)
class Call:
    """A linear or a norm that ran: its path in the layer, what it read and wrote."""

    path: str
    module: nn.Module
    read: Tensor
    wrote: Tensor

    @property
    def is_linear(self) -> bool:
        return isinstance(self.module, nn.Linear) or is_conv1d(self.module)

    def reads(self, other: Tensor) -> bool:
        """Whether it read this tensor itself, or another view of it."""
        return self.read.data_ptr() == other.data_ptr()


def is_conv1d(module: nn.Module) -> bool:
    """Whether it is GPT-2's linear, whose weight is (inputs, outputs)."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


@torch.no_grad()
def watched(model: Any, layer: nn.Module) -> tuple[list[Call], Tensor]:
    """The linears and norms of a layer in the order of their calls, and what the layer read (B, T, D)."""
    calls: list[Call] = []
    entered: list[Tensor] = []

    def note(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, given: Any, options: Any, output: Any) -> None:
            read = given[0] if given else next((v for v in options.values() if isinstance(v, Tensor)), None)
            if isinstance(read, Tensor) and isinstance(output, Tensor):
                calls.append(Call(path, module, read, output))

        return hook

    def begin(module: nn.Module, given: Any, options: Any) -> None:
        entered.append(given[0] if given else options["hidden_states"])

    leaves = {name: part for name, part in layer.named_modules() if not list(part.children()) and name}
    hooks = [
        part.register_forward_hook(note(name), with_kwargs=True)
        for name, part in leaves.items()
        if list(part.parameters()) or "norm" in type(part).__name__.lower()
    ]
    hooks.append(layer.register_forward_pre_hook(begin, with_kwargs=True))
    try:
        model(input_ids=IDS % model.config.vocab_size, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return calls, entered[0]


def groups_of(linears: list[Call]) -> list[list[Call]]:
    """Linears one after the other that read the same tensor."""
    groups: list[list[Call]] = []
    for call in linears:
        if groups and call.reads(groups[-1][0].read):
            groups[-1].append(call)
        else:
            groups.append([call])
    return groups
