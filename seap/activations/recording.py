"""What a pass over text leaves of each axis: moments of what its consumer reads, taken in by hooks.

Shapes: B rows, T tokens, C inputs of a consumer.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from seap.activations.accumulator import Accumulator, ExpertAccumulator
from seap.activations.moments import Moments
from seap.activations.normed import NormedAccumulator
from seap.errors import UserError
from seap.models.arch import Arch
from seap.models.axes import Axis
from seap.models.experts import Routed
from seap.text.corpus import Batch

AnyAccumulator = Accumulator | NormedAccumulator | ExpertAccumulator
Into = Mapping[str, AnyAccumulator]  # by axis key


def accumulator_of(arch: Arch, axis: Axis, blocks: int = 0, *, is_small: bool = False) -> AnyAccumulator:
    """blocks: of co-moments; none are kept with 0. is_small: see `Accumulator`."""
    device = arch.weights(axis)[0].device
    place = device if device.type in ("cuda", "cpu") else torch.device("cpu")  # MPS has no float64
    if axis.usage_key:
        return ExpertAccumulator(axis.experts, axis.units, blocks=blocks // axis.experts, device=place)
    if axis.is_normed and blocks:
        return NormedAccumulator(axis.num_inputs, blocks=blocks, device=place)
    return Accumulator(axis.num_inputs, blocks=blocks, device=place, is_small=is_small)


def moments_of(axes: Sequence[Axis], into: Into) -> dict[str, Moments]:
    """What was accumulated, by axis key; how experts are used, by usage key; normed second moments by theirs."""
    found = {}
    for axis in axes:
        accumulator = into[axis.key]
        if isinstance(accumulator, ExpertAccumulator):
            found[axis.usage_key] = accumulator.usage.moments()
        if isinstance(accumulator, NormedAccumulator):
            found[axis.normed_key] = accumulator.normed()
        found[axis.key] = accumulator.moments()
    return found


@contextlib.contextmanager
def recording(arch: Arch, axes: Sequence[Axis], into: Into, batch: Batch) -> Iterator[None]:
    """Takes in what the axes' consumers read of one batch's tokens that count, padding never."""
    real = None if batch.counted.all() else batch.counted.flatten()
    with contextlib.ExitStack() as stack:
        for axis in axes:
            accumulator = into[axis.key]
            if isinstance(accumulator, ExpertAccumulator):
                stack.enter_context(arch.experts_of(axis).watched(_of_experts(accumulator, real)))
            elif isinstance(accumulator, NormedAccumulator):
                handle = arch.consumer(axis).register_forward_hook(_of_normed(accumulator, real))
                stack.callback(handle.remove)
            else:
                handle = arch.consumer(axis).register_forward_pre_hook(_of_linear(accumulator, real))
                stack.callback(handle.remove)
        yield


def _of_linear(accumulator: Accumulator, real: Tensor | None) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def record(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rows = _rows_of(inputs[0])
        accumulator.update_(rows, None if real is None else real.to(rows.device))

    return record


def _of_normed(
    accumulator: NormedAccumulator, real: Tensor | None
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        rows = _rows_of(inputs[0])
        accumulator.update_(rows, _rows_of(output), None if real is None else real.to(rows.device))

    return record


def _rows_of(values: Tensor) -> Tensor:
    return values.detach().reshape(-1, values.shape[-1])


def _of_experts(accumulator: ExpertAccumulator, real: Tensor | None) -> Callable[[int, list[Routed]], None]:
    return lambda num_tokens, seen: accumulator.update_(num_tokens, seen, real)


def check_finite(axes: Sequence[Axis], into: Into) -> None:
    if not axes:  # of a layer that has none
        return
    finite = torch.stack([into[axis.key].is_finite.cpu() for axis in axes])
    bad = (~finite).nonzero().flatten().tolist()
    if bad:
        raise not_finite(axes[bad[0]])


def not_finite(axis: Axis) -> UserError:
    return UserError(
        f"NaN or infinite activations at the input of layer {axis.layer} {axis.consumer}; "
        "try --dtype bfloat16 or float32, and check the model's weights"
    )
