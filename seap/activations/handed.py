"""What goes from one layer to the next, as one tensor of what belongs to each token: a state (B, T, …).

Most families hand on hidden states alone, and those are the state. Some hand on several of a token (AltUp), and in some
later layers read the keys and values of earlier ones: these lie behind the hidden states in the last dimension, so that
whoever keeps states, compares them, changes layers before them or goes on from them has all that the rest of the model
reads. Shapes: B rows, T tokens, D hidden size, S hidden states of a token, G KV groups, K head size.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from seap.models.arch import Arch
from seap.models.families import sharing_modes

Stub = Callable[..., Any]


def first(output: Any) -> Tensor:
    """The hidden states in what a layer returns: alone, or first of a tuple."""
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found


def handed_on(arch: Arch, hidden: Tensor) -> Any:
    """Hidden states as a layer of this family returns them: alone, or in a tuple."""
    parts = arch.family.output_parts
    return (hidden, *[None] * (parts - 1)) if parts else hidden


@contextlib.contextmanager
def stubbed(layers: Sequence[nn.Module], stubs: dict[int, Stub]) -> Iterator[None]:
    """Layers whose forward is something else for a while."""
    own = {index: vars(layers[index]).get("forward") for index in stubs}  # accelerate's, of a model on several devices
    for index, stub in stubs.items():
        layers[index].forward = stub
    try:
        yield
    finally:
        for index, forward in own.items():
            del layers[index].forward
            if forward is not None:
                layers[index].forward = forward


def packed(arch: Arch, output: Any, kwargs: Mapping[str, Any]) -> Tensor:
    """The state after a layer that returned this, called with these keywords; zeros where no layer stored keys yet."""
    hidden = first(output)
    if arch.family.streams:
        hidden = hidden.permute(1, 2, 0, 3).flatten(2)
    parts = [hidden]
    for kind, groups, size in stored(arch):
        for values in kwargs[_passed(arch)].get(kind, (None, None)):
            none = hidden.new_zeros(*hidden.shape[:2], groups * size)
            parts.append(none if values is None else values.transpose(1, 2).flatten(2))
    return torch.cat(parts, -1) if len(parts) > 1 else hidden


def entered(arch: Arch, state: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
    """The hidden states in a state, as a layer takes them; keys and values of earlier ones go into kwargs."""
    hidden = hidden_of(arch, state)
    start = hidden.shape[-1]
    for kind, groups, size in stored(arch):
        pair = state[..., start : start + 2 * groups * size].unflatten(-1, (2, groups, size))
        kwargs[_passed(arch)][kind] = tuple(part.transpose(1, 2) for part in pair.unbind(2))
        start += 2 * groups * size
    if arch.family.streams:
        number = getattr(arch.model.config, arch.family.streams)
        hidden = hidden.unflatten(-1, (number, -1)).permute(2, 0, 1, 3)
    return hidden


def hidden_of(arch: Arch, state: Tensor) -> Tensor:
    """(B, T, S · D) of a state."""
    config = arch.model.config
    number = getattr(config, arch.family.streams) if arch.family.streams else 1
    return state[..., : number * config.hidden_size] if stored(arch) else state


def stored(arch: Arch) -> list[tuple[str, int, int]]:
    """Of every layer whose keys and values others read: their kind, G and K."""
    sharing, config, found = arch.family.sharing, arch.model.config, []
    if sharing is None:  # most families, for every layer and batch
        return []
    owner, _, name = arch.family.head_size.rpartition(".")
    for layer, mode in enumerate(sharing_modes(config)):
        if mode == "store":
            size = int(getattr(arch.layers[layer].get_submodule(owner), name))
            groups = arch.weight(layer, sharing.keys).shape[0] // size
            found.append((getattr(config, sharing.kinds)[layer], groups, size))
    return found


def _passed(arch: Arch) -> str:
    assert arch.family.sharing is not None
    return arch.family.sharing.passed
