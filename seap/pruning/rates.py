"""What a unit of each kind of work takes on the device at hand: a second of measuring, on pieces of the model's shape.

Weights are random and no larger than 4,096 inputs by 4,096 outputs, whose rate is that of larger ones; so nothing of
the model is loaded. Each rate is the least of some repeats, in seconds and in the processor's seconds of all threads:
on a busy machine the first says what it takes today, the second what it takes by right.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, log_softmax, scaled_dot_product_attention, silu

from seap.activations.accumulator import GATHERED, Accumulator
from seap.allocation import give_back
from seap.compensation.damped import solve_damped
from seap.environment import clock
from seap.models import solving
from seap.models.axes import KV_GROUPS
from seap.models.trial import SURE_PARAMS, batch_of
from seap.pruning.cost import HALF_OF_A_MATRIX, Shape
from seap.pruning.work import Stage
from seap.threads import settle

CLIPPED = 4096  # inputs and outputs of a matrix that is measured
OPERATIONS = 4e9  # of a measured product, at most
FEW_TOKENS = 256  # at least, in a product: of fewer rows it is slower than those of a batch
REPEATS = 3
LAYER_CALLS = 55  # small operations of a layer, Python between them
DISK_BYTES_PER_S = 5e8  # read or written: not measured, since a file that is small enough stays in memory
KNAPSACK = 1e-4  # seconds a variable; the solver's luck makes it a third or three times of that


@dataclass(frozen=True)
class Taken:
    """Seconds, and the processor's seconds."""

    wall: float
    cpu: float

    def __add__(self, other: "Taken") -> "Taken":
        return Taken(self.wall + other.wall, self.cpu + other.cpu)

    def times(self, factor: float) -> "Taken":
        return Taken(self.wall * factor, self.cpu * factor)


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What one unit of each kind of a `Stage`'s work takes."""

    forward: Taken
    backward: Taken
    positions: Taken
    backward_positions: Taken
    passes: Taken
    moments: Taken
    solves: Taken
    variables: Taken = Taken(KNAPSACK, KNAPSACK)
    read: Taken = Taken(1 / DISK_BYTES_PER_S, 0.3 / DISK_BYTES_PER_S)
    written: Taken = Taken(1 / DISK_BYTES_PER_S, 0.3 / DISK_BYTES_PER_S)

    def of(self, stage: Stage) -> Taken:
        """What a stage takes."""
        total = Taken(0.0, 0.0)
        for name, value in vars(stage).items():
            if name != "name" and value:
                total += getattr(self, name).times(value)
        return total


@dataclass(frozen=True)
class Meter:
    """Times pieces of work on a device."""

    device: torch.device
    dtype: torch.dtype
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def numbers(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Small random numbers; a constant would be easier than what it stands for."""
        drawn = torch.randn(*shape, generator=self.generator)
        return drawn.to(self.device, dtype or self.dtype)

    def taken(self, run: Callable[[], Any]) -> Taken:
        """The least of some repeats, after a warm-up that is one of them where it is long."""
        found = [self._once(run) for _ in range(1 + REPEATS)]
        return Taken(min(t.wall for t in found), median(sorted(t.cpu for t in found)[:2]))

    def _once(self, run: Callable[[], Any]) -> Taken:
        cpu, wall = time.process_time(), clock(self.device)
        run()
        wall = clock(self.device) - wall
        return Taken(wall, time.process_time() - cpu)


@torch.no_grad()
def measure_rates(shape: Shape, *, device: str, dtype: torch.dtype, length: int, batch_tokens: int) -> Rates:
    """The rates for a model of this shape. length: tokens of a usual row; batch_tokens: of a batch."""
    meter = Meter(torch.device(device), dtype)
    if meter.device.type == "cpu":
        settle(_piece(meter, shape))
    forward = _forward(meter, shape, length, batch_tokens)
    head = _head(meter, shape)
    words = _words(meter, shape)
    rates = Rates(
        forward=forward,
        backward=forward.times(1.15),  # of the inputs alone: as many products
        positions=head + words,
        backward_positions=head.times(2) + words,
        passes=_call(meter),
        moments=_moments(meter, shape),
        solves=_solves(_solving(meter, shape), shape),
    )
    give_back()
    return rates


def _piece(meter: Meter, shape: Shape) -> Callable[[], float] | None:
    """Seconds of some layers' products; None for a model so large that threads are sure to help."""
    if shape.params > SURE_PARAMS:
        return None
    return batch_of([meter.numbers(o, c) for o, c in _linear_sizes(shape)], most=shape.num_layers)


def _forward(meter: Meter, shape: Shape, length: int, batch_tokens: int) -> Taken:
    """A token through all layers: their products, attention within its row, and what is done number by number."""
    sizes, most = _linear_sizes(shape), min(batch_tokens, 512)
    tokens = _fitting(OPERATIONS / (2 * sum(o * c for o, c in sizes)), most, min(FEW_TOKENS, most))
    some = _largest(sizes, OPERATIONS / (2 * tokens))
    pieces = [(meter.numbers(tokens, c), meter.numbers(o, c)) for o, c in some]
    rate = meter.taken(lambda: [linear(x, w) for x, w in pieces]).times(1 / (tokens * sum(o * c for o, c in some)))
    products = rate.times(shape.active)
    return products + _attention(meter, shape, length) + _elements(meter, shape, most)


def _largest(sizes: Sequence[tuple[int, int]], most: float) -> list[tuple[int, int]]:
    """The largest linears, one after the other, as long as they have no more than so many weights; at least one."""
    found: list[tuple[int, int]] = []
    for o, c in sorted(sizes, key=lambda size: -size[0] * size[1]):
        if found and sum(x * y for x, y in found) + o * c > most:
            break
        found.append((o, c))
    return found


def _fitting(count: float, most: int, least: int = 16) -> int:
    return int(max(min(count, most), least))


def _linear_sizes(shape: Shape) -> list[tuple[int, int]]:
    """(O, C) of the linears of the middle layer, clipped; of all experts, the ones that a token goes through."""
    layer = shape.arch.layers[shape.num_layers // 2]
    found = [tuple(p.shape[-2:]) for p in layer.parameters() if p.dim() >= 2]
    return [(min(o, CLIPPED), min(c, CLIPPED)) for o, c in found]


def _attention(meter: Meter, shape: Shape, length: int) -> Taken:
    """A token's scores and sums in all layers, rows of one length."""
    config = shape.arch.model.config
    heads = int(getattr(config, "num_attention_heads", 0) or 0)
    widths = [axis.num_inputs for axis in shape.arch.axes if axis.name == KV_GROUPS]
    width = sum(widths) / len(widths) if widths else float(shape.hidden)
    size = max(int(width // max(heads, 1)), 1)
    few = max(min(heads, 4), 1)
    states = meter.numbers(1, few, length, size)
    taken = meter.taken(lambda: scaled_dot_product_attention(states, states, states, is_causal=True))
    return taken.times(shape.num_layers * heads / few / length)


def _elements(meter: Meter, shape: Shape, tokens: int) -> Taken:
    """A token's norms, activation, rotation and sums in all layers."""
    channels = [axis.num_inputs / axis.experts for axis in shape.arch.axes if axis.name != KV_GROUPS]
    width = int(sum(channels) / max(len(channels), 1)) or shape.hidden
    wide, narrow = meter.numbers(tokens, width), meter.numbers(tokens, shape.hidden)
    half = shape.hidden // 2

    def layer() -> Tensor:
        normed = narrow.float() * torch.rsqrt(narrow.float().square().mean(-1, keepdim=True) + 1e-6)
        turned = torch.cat((-narrow[:, half:], narrow[:, :half]), -1) * narrow + narrow * narrow
        return silu(wide) * wide + (normed.sum() + turned.sum())

    return meter.taken(layer).times(2 * shape.num_layers / tokens)


def _head(meter: Meter, shape: Shape) -> Taken:
    """The output layer at one position."""
    outputs, inputs, tokens = min(shape.vocabulary, CLIPPED), min(shape.hidden, CLIPPED), FEW_TOKENS
    rows, weight = meter.numbers(tokens, inputs), meter.numbers(outputs, inputs)
    taken = meter.taken(lambda: linear(rows, weight))
    return taken.times(shape.vocabulary * shape.hidden / (outputs * inputs * tokens))


def _words(meter: Meter, shape: Shape) -> Taken:
    """KL over the vocabulary at one position, as `damage.py` has it."""
    rows = _fitting(8e6 / shape.vocabulary, 256, 1)
    expected = log_softmax(meter.numbers(rows, shape.vocabulary, dtype=torch.float32), -1)
    logits = meter.numbers(rows, shape.vocabulary, dtype=torch.float32)
    return meter.taken(lambda: (expected.exp() * (expected - log_softmax(logits, -1))).sum(-1)).times(1 / rows)


def _call(meter: Meter) -> Taken:
    """What one layer's call costs beside the numbers in it."""
    one, layer = meter.numbers(1, 8), nn.Linear(8, 8, bias=False).to(meter.device, meter.dtype)

    def calls() -> None:
        for _ in range(LAYER_CALLS):
            layer(one)

    return meter.taken(calls)


def _moments(meter: Meter, shape: Shape) -> Taken:
    """An operation of second moments (or of another product in float32)."""
    size = min(max((axis.num_inputs for axis in shape.arch.axes), default=1), 2048)
    tokens = 2 * GATHERED
    rows = meter.numbers(tokens, size)
    place = meter.device if meter.device.type in ("cuda", "cpu") else torch.device("cpu")

    def once() -> None:
        found = Accumulator(size, blocks=1, device=place)
        found.update_(rows)
        found.moments()  # the last rows are multiplied by then

    return meter.taken(once).times(1 / (2 * HALF_OF_A_MATRIX * tokens * size**2))


def _solving(meter: Meter, shape: Shape) -> Meter:
    """In float64, where systems will be solved."""
    if shape.solve_device != "auto":
        return Meter(solving.check(shape.solve_device), torch.float64)
    widest = max((axis.num_inputs for axis in shape.arch.axes), default=1)
    return Meter(solving.chosen(meter.device, widest), torch.float64)


def _solves(host: Meter, shape: Shape) -> Taken:
    """An operation of a solve of the size of half an axis."""
    size = min(max((axis.num_inputs for axis in shape.arch.axes), default=2) // 2, 1024) or 1
    outputs = min(shape.hidden, 1024)
    rows = host.numbers(2 * size, size)
    covariance, right = rows.t() @ rows / len(rows), host.numbers(outputs, size)
    taken = host.taken(lambda: solve_damped(covariance, right @ covariance, 1e-2))
    return taken.times(1 / (size**3 / 3 + 4 * outputs * size**2))
