"""A few tokens through a model before and after it is cut, and after it is saved: what can't run is never handed on.

Before the cut the removed units are masked, and the repairs made, by hooks that copy no weight: the cut model must say
the same, layer by layer. Shapes: T tokens, D hidden size, V vocabulary, C inputs and O outputs of a consumer.
"""

import contextlib
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from seap.activations.handed import first, handed_on, stubbed
from seap.compensation.compensate import Repair, Repairs, kept_inputs
from seap.errors import UserError, first_line
from seap.models import loader
from seap.models.arch import Arch, describe
from seap.models.axes import Axis, Masks
from seap.models.modes import evaluation
from seap.selection.whole_layers import dropped_layers
from seap.vocabulary.rewriting import check_reads_alike

TOKENS = 8
WHOLE = 1e-2  # how far outputs may be apart, as a share of their norm, where the arithmetic has 32 bits
HALF = 0.2  # and where it has 16: rounding differs from layer to layer
ROUNDING = 16  # units in the last place of a layer's output that aren't looked at
ROOM = 1.2  # memory that loading what was saved takes, as a multiple of its weights


@dataclass(frozen=True)
class Said:
    """What a model makes of a few tokens, layer by layer: (T, D) before and after each, and (T, V) in the end."""

    layers: list[tuple[Tensor, Tensor]]
    logits: Tensor

    @property
    def is_finite(self) -> bool:
        return all(bool(values.isfinite().all()) for pair in (*self.layers, (self.logits,)) for values in pair)


def logits(model: Any) -> Tensor:
    """(T, V) for a few tokens, in float32 on the CPU."""
    given = (torch.arange(1, TOKENS + 1) % model.config.vocab_size)[None].to(model.device)
    with evaluation(model):
        found: Tensor = model(given, use_cache=False).logits[0].float().cpu()
    return found


def said(model: Any, layers: Sequence[nn.Module], given: Sequence[Tensor] | None = None) -> Said:
    """given: what each of the layers is to read, in place of what the one before it wrote."""
    pairs: list[tuple[Tensor, Tensor]] = []

    def reading(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        return None if given is None else (given[len(pairs)].to(args[0]), *args[1:])

    def written(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        pairs.append((args[0].float().cpu(), first(output).float().cpu()))

    with contextlib.ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.register_forward_pre_hook(reading).remove)
            stack.callback(layer.register_forward_hook(written).remove)
        return Said(pairs, logits(model))


def before_cut(arch: Arch, masks: Masks, repairs: Repairs) -> Said | None:
    """What the cut model should say; None where the dense one already says nothing finite, or experts would be copied.

    Raises UserError for a model that doesn't run as it is.
    """
    dropped = dropped_layers(masks)
    try:
        if any(axis.usage_key for axis in arch.axes):
            logits(arch.model)
            return None
        with masked(arch, masks, repairs):
            found = said(arch.model, [layer for i, layer in enumerate(arch.layers) if i not in dropped])
    except Exception as error:
        raise UserError(
            f"the model doesn't run on {TOKENS} tokens, so it wasn't cut ({type(error).__name__}: {first_line(error)})"
        ) from error
    return found if found.is_finite else None


def check_cut(model: Any, expected: Said | None) -> None:
    """Raise UserError unless the cut model runs, and each of its layers writes what the masked one wrote.

    Each reads what the masked one read: in 16 bits, rounding that grows from layer to layer can change what a sound
    model says by more than a fault in one of them would.
    """
    try:
        layers = describe(model).layers
        found = said(model, layers, None if expected is None else [before for before, _ in expected.layers])
    except Exception as error:
        raise UserError(
            f"the cut model doesn't run ({type(error).__name__}: {first_line(error)}); nothing was saved, and the "
            "model in memory is cut: load it again, and try --axes channels"
        ) from error
    if expected is None:
        return
    what = "the cut model says something else than the masked one"
    unseen = ROUNDING * torch.finfo(model.dtype).eps
    for index, ((_, own), (before, after)) in enumerate(zip(found.layers, expected.layers, strict=True)):
        size = float((after - before).norm() + unseen * after.norm())
        _check_near(float((own - after).norm()) / max(size, 1e-9), model.dtype, f"{what} in layer {index}")
    check_like(found.logits, expected.logits, model.dtype, what)


def check_saved(folder: Path, model: Any, tokenizer: Any = None, *, trust_remote_code: bool = False) -> str:
    """Load what was saved and run it beside the model in memory. Returns a note where there is no room for that.

    tokenizer: one that the saved one must read as; by default it isn't looked at.

    Raises UserError where it doesn't load, doesn't run or says something else.
    """
    needed, free = ROOM * loader.weight_bytes(model), loader.free_memory()
    if needed > free:
        return f"what was saved wasn't loaded again: it needs {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
    saved, its_tokenizer = loader.load(str(folder), device="cpu", trust_remote_code=trust_remote_code)
    if tokenizer is not None:
        check_reads_alike(tokenizer, its_tokenizer, range(len(tokenizer)))
    try:
        found = logits(saved)
        same = saved.dtype == model.dtype and model.device.type == "cpu"
        expected = logits(model) if same else None
    except Exception as error:
        raise UserError(
            f"what was saved loads but doesn't run ({type(error).__name__}: {first_line(error)}); --no-verify keeps it"
        ) from error
    what = "what was saved says something else than the model in memory"
    try:
        check_like(found, expected, saved.dtype, what)
    except UserError:
        if expected is None or saved.dtype.itemsize >= 4:
            raise
        # rounding in 16 bits may have grown from layer to layer: the same weights in float32 don't differ so
        check_like(logits(saved.float()), logits(copy.deepcopy(model).float()), torch.float32, what)
    return ""


def check_like(found: Tensor, expected: Tensor | None, dtype: torch.dtype, what: str) -> None:
    """Raise UserError for logits that are far from those expected, or not finite where those are."""
    if expected is not None and bool(expected.isfinite().all()):
        _check_near(float((found - expected).norm() / expected.norm().clamp_min(1e-9)), dtype, what)


def _check_near(apart: float, dtype: torch.dtype, what: str) -> None:
    if not apart <= (WHOLE if dtype in (torch.float32, torch.float64) else HALF):
        raise UserError(
            f"{what}: their outputs are {apart:.2g} apart, as a share of their norm. This is a fault of seap's: "
            "please report it with the model's config.json; nothing was saved"
        )


@contextlib.contextmanager
def masked(arch: Arch, masks: Masks, repairs: Repairs) -> Iterator[None]:
    """The model as if it were cut: every consumer reads 0 from what goes, and is repaired; whole layers do nothing."""
    dropped = dropped_layers(masks)
    stubs = dict.fromkeys(dropped, lambda hidden, *args, **kwargs: handed_on(arch, hidden))
    with contextlib.ExitStack() as stack:
        stack.enter_context(stubbed(arch.layers, stubs))
        for axis in [axis for axis in arch.axes if axis.layer not in dropped]:
            repair = repairs.get(axis.key)
            keep = kept_inputs(axis, axis.mask_of(masks))
            for hook in _hooks(arch, axis, keep, repair):
                stack.callback(hook.remove)
        yield


def _hooks(arch: Arch, axis: Axis, keep: Tensor, repair: Repair | None) -> list[Any]:
    consumer: nn.Module = arch.consumer(axis)

    def without(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0] * keep.to(inputs[0].device), *inputs[1:])

    def repaired(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        assert repair is not None
        bias = repair.bias.to(output)
        if repair.weight is None:
            return output + bias
        new = inputs[0][..., keep.to(inputs[0].device)] @ repair.weight.to(output).t()
        return new + bias if module.bias is None else new + bias + module.bias

    made = [consumer.register_forward_pre_hook(without)]
    if repair is not None:
        made.append(consumer.register_forward_hook(repaired))
        if repair.inputs is not None:
            made += [_mapping(arch.linear(axis.layer, path), repair.inputs) for path in axis.producers]
    return made


def _mapping(linear: nn.Module, inputs: Tensor) -> Any:
    def mapped(module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (given[0] @ inputs.to(given[0]).t(), *given[1:])

    return linear.register_forward_pre_hook(mapped)
