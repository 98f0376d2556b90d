"""Where systems in float64 are solved: on the model's GPU where that is no slower than the CPU, else on the CPU.

What solves is plain functions over tensors, wherever these lie. A `Solver` brings what they are given to one device and
what they find back to the CPU. Graphics cards for games have a 64th of their rate in float64, and Apple's have none, so
that it is measured which is faster, once in a process.
"""

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from seap.allocation import giving_back
from seap.environment import clock
from seap.errors import UserError, first_line
from seap.models.arch import Arch
from seap.models.residency import streamed

T = TypeVar("T")
CPU = torch.device("cpu")
_MARK = "_seap_solve_device"
LEAST, MOST = 256, 2048  # inputs of a system that is timed
REPEATS = 2
FULL = ("alloc_failed", "out of memory")  # what a library that has no memory left says, where it isn't torch itself


@dataclass(frozen=True)
class Solver:
    """Calls functions with their tensors on a device."""

    device: torch.device = CPU

    def __call__(self, solve: Callable[..., T], *given: Any, stays: bool = False) -> T:
        """solve(*given), where tensors in arguments are on the device and those in the result on the CPU.

        stays: leave the result where it was found. Where the device's memory isn't enough it is found on the CPU.
        """
        if self.device.type != "cpu":
            try:
                found = solve(*(moved(value, self.device) for value in given))
                return found if stays else moved(found, CPU)
            except RuntimeError as error:  # torch's OutOfMemoryError is one
                if not is_full(error):
                    raise
            _say_once(self.device)
        with giving_back():
            return solve(*(moved(value, CPU) for value in given))


def is_full(error: RuntimeError) -> bool:
    """Whether a device had no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error).lower() for word in FULL)


@functools.cache
def _say_once(device: torch.device) -> None:
    warnings.warn(f"{device} has no memory left for a solve; such ones are done on the CPU", stacklevel=4)


def moved(value: Any, device: torch.device) -> Any:
    """Tensors, and those in dataclasses, tuples and lists, on a device; of a mapping, once they are asked for."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return value if device == CPU and not isinstance(value, _Moved) else _Moved(value, device)
    if isinstance(value, list) or type(value) is tuple:
        parts = type(value)(moved(part, device) for part in value)
        return parts if any(new is not old for new, old in zip(parts, value, strict=True)) else value
    if not is_dataclass(value) or isinstance(value, type):
        return value
    own = {field.name: getattr(value, field.name) for field in fields(value) if field.init}
    changed = {name: new for name, part in own.items() if (new := moved(part, device)) is not part}
    return replace(value, **changed) if changed else value


class _Moved(Mapping[Any, Any]):
    """A mapping whose values come to a device as they are read."""

    def __init__(self, source: Mapping[Any, Any], device: torch.device) -> None:
        self._source, self._device = source, device

    def __getitem__(self, key: Any) -> Any:
        return moved(self._source[key], self._device)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._source)

    def __contains__(self, key: object) -> bool:
        return key in self._source

    def __len__(self) -> int:
        return len(self._source)


def settle_(model: nn.Module, device: str) -> None:
    """From now on what is solved for this model is solved there: auto, cpu or a device.

    Raises UserError for a device that isn't here or has no float64.
    """
    if device not in ("auto", "cpu"):
        check(device)
    model.__dict__[_MARK] = device


def check(device: str) -> torch.device:
    """The device. Raises UserError where it isn't here or doesn't solve in float64."""
    try:
        place = torch.device(device)
        float(_one_system(place, 2)().sum())
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        raise UserError(
            f"--solve-device {device}: {first_line(error)}; use auto, cpu, or a GPU that is here and has float64"
        ) from error
    return place


def solver_of(arch: Arch, layer: int) -> Solver:
    """What solves for a layer: where it was settled, or where its weights are if these solve no slower than the CPU."""
    wanted = arch.model.__dict__.get(_MARK, "auto")
    if wanted != "auto":
        return Solver(torch.device(wanted))
    return Solver(chosen(_place_of(arch, layer), max((axis.num_inputs for axis in arch.axes), default=1)))


def _place_of(arch: Arch, layer: int) -> torch.device:
    plan = streamed(arch.model)
    if plan is not None:
        return plan.device
    found = next(arch.layers[layer].parameters(), None)
    return CPU if found is None else found.device


def chosen(place: torch.device, size: int) -> torch.device:
    """A GPU where systems of half so many inputs are solved no slower on it than on the CPU, else the CPU."""
    if place.type != "cuda":
        return CPU
    size = min(max(1 << (max(size // 2, 1) - 1).bit_length(), LEAST), MOST)
    return place if _pays(place, size) else CPU


@functools.cache
def _pays(place: torch.device, size: int) -> bool:
    try:
        return seconds_of(place, size) <= seconds_of(CPU, size)
    except RuntimeError:  # no memory, or a build without these solvers
        return False


def seconds_of(place: torch.device, size: int) -> float:
    """The least of some repeats, after a first one that loads libraries."""
    solve, found = _one_system(place, size), []
    for _ in range(1 + REPEATS):
        started = clock(place)
        solve()
        found.append(clock(place) - started)
    return min(found[1:])


def _one_system(place: torch.device, size: int) -> Callable[[], Tensor]:
    """A system in float64, factored and solved, and a product."""
    rows = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(place)

    def solve() -> Tensor:
        factor = torch.linalg.cholesky(rows @ rows.t() + size * torch.eye(size, dtype=torch.float64, device=place))
        return torch.cholesky_solve(rows, factor)

    return solve
