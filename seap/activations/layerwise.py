"""Runs a model one decoder layer at a time, or from one layer on, for any family.

The layers are called as their model calls them: a pass in which every layer is a stub that hands its input on records
what each layer would get beside the hidden states (masks, positions), and a pass in which only the first layers are
stubs resumes from hidden states that are known already. Shapes: B rows, T tokens, D hidden size, O outputs.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from seap.activations.handed import Stub, entered, first, handed_on, packed, stubbed
from seap.activations.looking import added, looked
from seap.activations.ranks import Ranks
from seap.models.arch import Arch
from seap.models.axes import Axis
from seap.models.families import token_inputs
from seap.models.residency import at_the_beginning, resident, streamed
from seap.models.shelf import Shelf
from seap.text.corpus import Batch, batches

Changed = Callable[[int], contextlib.AbstractContextManager[None]]  # a layer as something else for a while
LOGIT_BYTES = 1 << 26  # of logits in float32 that are computed at a time; there are some copies of them
WIDE_BYTES = 1 << 26  # of activations in float32 where a layer is widest; there are some copies of them
LOGIT_TOKENS = 256  # that are looked at together, however large the vocabulary
HELD_PERIOD = 5  # one row in so many is held out


def unchanged(layer: int) -> contextlib.AbstractContextManager[None]:
    """A layer as it is."""
    return contextlib.nullcontext()


@dataclass(frozen=True)
class Call:
    """What one layer gets beside the hidden states, for one batch."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    added: Tensor | None = None  # what the model adds to the states before this layer: of images, in some models


@dataclass
class Walk:
    """A corpus on its way through the layers: the hidden states (B, T, D) of every batch before the next layer."""

    arch: Arch
    batches: list[Batch]
    held: list[bool]  # whether a batch is of held-out rows
    hidden: list[Tensor]
    calls: list[list[Call]]  # per batch, per layer
    _counted: dict[tuple[int, torch.device], Tensor | None] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def start(
        cls,
        arch: Arch,
        rows: Sequence[Sequence[int]],
        *,
        batch_tokens: int,
        apart: bool = True,
        ranks: Ranks = Ranks(),  # noqa: B008
    ) -> "Walk":
        """Embed the rows. apart: held-out rows (see `is_held`) come in batches of their own.

        batch_tokens: at most; fewer where layers are wide.
        ranks: of several, each takes its part of the batches, which are small enough for all to have some.
        """
        parts = split_rows(rows) if apart else (rows,)
        batch_tokens = few_wide(arch, batch_tokens)
        batch_tokens = min(batch_tokens, -(-sum(map(len, rows)) // ranks.size)) if ranks.size > 1 else batch_tokens
        made = [(batch, held) for held, part in enumerate(parts) for batch in batches(part, batch_tokens=batch_tokens)]
        made = ranks.deal(made)
        with at_the_beginning(arch):
            begun = [_begin(arch, batch) for batch, _ in made]
        return cls(arch, [b for b, _ in made], [bool(h) for _, h in made], [h for h, _ in begun], [c for _, c in begun])

    def run(self, layer: int, index: int, hidden: Tensor | None = None) -> Tensor:
        """The output of a layer for one batch, from the walk's hidden states or from others."""
        given = self.hidden[index] if hidden is None else hidden
        return ran(self.arch, self.arch.layers[layer], given, self.calls[index][layer])

    def states(self, shelf: Shelf, changed: Changed = unchanged) -> list[list[Tensor]]:
        """Run all layers: the hidden states before each of them and after the last, per batch, as the shelf has them.

        It holds those of batch i before layer n as `i.n`. changed: what a layer is meanwhile.
        """
        found = [self.kept(shelf, 0)]
        for layer in range(len(self.arch.layers)):
            with resident(self.arch, layer), changed(layer):
                self.hidden = [self.run(layer, index) for index in range(len(self.batches))]
            found.append(self.kept(shelf, layer + 1))
            shelf.rest()
        return found

    def kept(self, shelf: Shelf, layer: int) -> list[Tensor]:
        """The hidden states, which lie on the shelf from now on."""
        self.hidden = [shelf.put(f"{index}.{layer}", hidden) for index, hidden in enumerate(self.hidden)]
        return list(self.hidden)

    @property
    def state_bytes(self) -> int:
        """Of the hidden states before one layer."""
        return sum(hidden.nbytes for hidden in self.hidden)

    def real(self, index: int, values: Tensor) -> Tensor:
        """(B, T, C) → (N, C): the rows of the tokens that count."""
        flat = values.flatten(0, -2)
        counted = self._where(index, flat.device)
        return flat if counted is None else flat.index_select(0, counted)

    def _where(self, index: int, device: torch.device) -> Tensor | None:
        """Which rows of a batch count, None for all; found once, since a GPU is waited for at each look at a mask."""
        if (index, device) not in self._counted:
            mask = self.batches[index].counted.flatten()
            self._counted[index, device] = None if mask.all() else mask.nonzero()[:, 0].to(device)
        return self._counted[index, device]


def is_held(index: int) -> bool:
    """Whether a row is held out: every fifth."""
    return index % HELD_PERIOD == HELD_PERIOD - 1


def split_rows(rows: Sequence[Sequence[int]]) -> tuple[list[Sequence[int]], list[Sequence[int]]]:
    """Rows to fit on, and held-out rows."""
    fit = [row for i, row in enumerate(rows) if not is_held(i)]
    return fit, [row for i, row in enumerate(rows) if is_held(i)]


def ran(arch: Arch, module: nn.Module, state: Tensor, call: Call) -> Tensor:
    """The state after a layer, or after what stands for it, from the one before it."""
    hidden = entered(arch, placed(state, module), call.kwargs)
    hidden = hidden if call.added is None else hidden + call.added
    return packed(arch, module(hidden, *call.args, **call.kwargs), call.kwargs)


def placed(values: Tensor, module: nn.Module) -> Tensor:
    """Values where a module computes; layers may lie on several devices."""
    device = next((weight.device for weight in module.parameters()), values.device)
    return values if device.type == "meta" else values.to(device)


def model_inputs(arch: Arch, batch: Batch) -> dict[str, Any]:
    if batch.seen:
        return looked(arch, batch)
    device = next(arch.model.parameters()).device
    return {
        "input_ids": batch.ids.to(device),
        "attention_mask": batch.mask.long().to(device),
        "use_cache": False,
    }


def _begin(arch: Arch, batch: Batch) -> tuple[Tensor, list[Call]]:
    """Hidden states before the first layer, and every layer's call."""
    states: list[Tensor] = []
    calls: dict[int, Call] = {}

    def recorder(index: int) -> Stub:
        def record(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            states.append(hidden)
            calls[index] = Call(args, kwargs)
            return handed_on(arch, hidden)

        return record

    layers = arch.layers
    with stubbed(layers, {i: recorder(i) for i in range(len(layers))}):
        arch.model.base_model(**model_inputs(arch, batch))
    found = [calls[i] for i in range(len(layers))]
    if batch.seen:
        found = [replace(call, added=more) for call, more in zip(found, added(arch, batch, states), strict=True)]
    return packed(arch, states[0], calls[0].kwargs), found


def resume(arch: Arch, batch: Batch, layer: int, hidden: Tensor) -> Tensor:
    """Logits (B, T, V) from the hidden states before a layer (or, with the number of layers, after the last one)."""
    if batch.seen and layer == len(arch.layers):
        return _ended(arch, batch, hidden)

    def stub(index: int) -> Stub:
        return lambda given, *args, **kwargs: handed_on(
            arch, entered(arch, hidden, kwargs) if index == layer - 1 else given
        )

    with stubbed(arch.layers, {i: stub(i) for i in range(layer)}):
        logits: Tensor = arch.model(**model_inputs(arch, batch)).logits
    return logits


def finished(arch: Arch, batch: Batch, hidden: Tensor) -> Tensor:
    """Logits (B, T, V) from the hidden states after the last layer; of a streamed model, inside `at_the_end`."""
    plan = streamed(arch.model)
    if plan is None:
        return resume(arch, batch, len(arch.layers), hidden)
    return _ended(arch, batch, hidden.to(plan.device))


def _ended(arch: Arch, batch: Batch, last: Tensor) -> Tensor:
    """The same without what the layers would read."""
    given = {"attention_mask": batch.mask.long().to(last.device), "use_cache": False}

    def stub(*args: Any, **kwargs: Any) -> Any:
        return handed_on(arch, entered(arch, last, kwargs))

    with stubbed(arch.layers, dict.fromkeys(range(len(arch.layers)), stub)):
        logits: Tensor = arch.model(**_in_place_of_tokens(arch, last), **given).logits
    return logits


def _in_place_of_tokens(arch: Arch, state: Tensor) -> dict[str, Tensor]:
    """Inputs of a model whose layers read nothing of them, in the shapes that it expects."""
    config = arch.model.config
    found = {"inputs_embeds": state[..., : config.hidden_size]}
    if size := token_inputs(config):
        _, name = arch.family.token_inputs or ("", "")
        found[name] = state.new_zeros(*state.shape[:2], config.num_hidden_layers, size)
    return found


def vocabulary_size(arch: Arch) -> int:
    found: int = arch.model.get_input_embeddings().weight.shape[0]
    return found


def few_logits(vocabulary: int, most: int) -> int:
    """Tokens, at most so many, whose logits take little memory beside a model of that vocabulary."""
    return min(most, max(LOGIT_BYTES // (4 * vocabulary), LOGIT_TOKENS))


def few_wide(arch: Arch, most: int) -> int:
    """Tokens, at most so many, whose activations take little memory where a layer is widest."""
    return min(most, max(WIDE_BYTES // (4 * max(widest(arch.axes), 1)), LOGIT_TOKENS))


def widest(axes: Iterable[Axis]) -> int:
    """Inputs of a consumer, of experts of one of them."""
    return max((axis.num_inputs // axis.experts for axis in axes), default=0)


def in_pieces(arch: Arch, batch: Batch, hidden: Tensor) -> Iterator[tuple[Batch, Tensor]]:
    """Some rows of a batch and of its states at a time, with few logits or one row."""
    step = max(few_logits(vocabulary_size(arch), batch.ids.numel()) // batch.ids.shape[1], 1)
    for i in range(0, len(batch.ids), step):
        rows = slice(i, i + step)
        yield batch.part(rows), hidden[rows]


@contextlib.contextmanager
def taken(module: nn.Module, into: list[Tensor], *, inputs: bool = False) -> Iterator[None]:
    """What comes out of a linear, or what it reads, appended to a list."""
    handle = module.register_forward_hook(lambda _, args, output: into.append(args[0] if inputs else first(output)))
    try:
        yield
    finally:
        handle.remove()


class _ReachedError(Exception):
    """Raised inside a layer to leave it as soon as what was wanted is known."""


def input_of(walk: Walk, layer: int, module: str, index: int, hidden: Tensor) -> Tensor:
    """What a linear of a layer reads, for one batch; nothing after it is run."""
    found: list[Tensor] = []

    def leave(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        found.append(args[0])
        raise _ReachedError

    handle = walk.arch.linear(layer, module).register_forward_pre_hook(leave)
    try:
        walk.run(layer, index, hidden)
    except _ReachedError:
        pass
    finally:
        handle.remove()
    return found[0]
