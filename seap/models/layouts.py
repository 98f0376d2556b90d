"""Which is faster on this processor, a linear's weight as PyTorch has it or laid out for oneDNN: measured, and kept.

On an AMD processor laid-out weights were 1.4 to 2.3 times as fast; on an Intel one they were slower for one row and
faster for eight. So each shape is timed once, by dtype and rows, with as many copies of the weight as a cache doesn't
hold, and the figures stand in a file that says of which processor, threads and PyTorch they are. Shapes: C inputs, O
outputs, N rows.
"""

import contextlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from seap.environment import machine, versions
from seap.errors import UserError
from seap.files import digest, write_json
from seap.models.prepack import product_of

FILE = "layouts.json"
ROWS = (1, 8)  # that are decoded together, where nobody knows how many will be
BYTES = 1 << 27  # of all copies of a weight: more than a core's share of the cache
MOST_COPIES = 32
REPEATS = 3

Seconds = tuple[float, float]  # of a product: as PyTorch has it, laid out


@dataclass
class Layouts:
    """What was measured on this processor; `path`: the file that it is kept in, with those of other processors."""

    path: Path | None = None
    known: dict[str, Seconds] = field(default_factory=dict)  # `float32 1536x576 8` → seconds
    others: dict[str, Any] = field(default_factory=dict)  # of other processors

    @classmethod
    def beside(cls, folder: Path) -> "Layouts":
        """Those kept in a folder of networks. A file that can't be read is as if there were none."""
        path = folder / FILE
        try:
            found = json.loads(path.read_text())["processors"]
            own = found.pop(processor(), {})
            known = {str(key): (float(plain), float(packed)) for key, (plain, packed) in own.items()}
            return cls(path, known, found)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return cls(path)

    def pays(self, weight: Tensor, rows: Sequence[int] = ROWS) -> bool:
        """Whether a weight (O, C) is better laid out, over all these numbers of rows; False where it can't be."""
        ratios = []
        for count in rows:
            taken = self._seconds(weight, count)
            if taken is None:
                return False
            ratios.append(math.log(taken[0] / taken[1]))
        return sum(ratios) > 0

    def _seconds(self, weight: Tensor, rows: int) -> Seconds | None:
        key = f"{str(weight.dtype).removeprefix('torch.')} {weight.shape[0]}x{weight.shape[1]} {rows}"
        if key not in self.known:
            found = measure(weight, rows)
            if found is None:
                return None
            self.known[key] = found
            self._keep()
        return self.known[key]

    def _keep(self) -> None:
        """Write the file; where that can't be, what was measured serves this process alone."""
        if self.path is not None and self.path.parent.is_dir():
            with contextlib.suppress(OSError, UserError):
                found = {"kind": "layouts", "processors": self.others | {processor(): self.known}}
                write_json(self.path, found | {"versions": versions()})


def processor() -> str:
    """What decides which layout is faster, in a word: the processor's name, threads and PyTorch."""
    about = machine()
    name = " ".join(str(about["cpu"]).split())
    return f"{name}, {torch.get_num_threads()} threads, {digest([torch.__version__, torch.__config__.show()])}"


@torch.no_grad()
def measure(weight: Tensor, rows: int) -> Seconds | None:
    """Seconds of a product (N, C) → (N, O) in either layout; None where weights like this one can't be laid out."""
    if product_of(weight, None) is None:
        return None
    copies = max(min(BYTES // max(weight.nbytes, 1), MOST_COPIES), 1)
    weights = [torch.full_like(weight, 0.01, memory_format=torch.contiguous_format) for _ in range(copies)]
    packed = [product for w in weights if (product := product_of(w, None)) is not None]
    given = torch.full((rows, weight.shape[1]), 0.5, dtype=weight.dtype)

    def plain() -> None:
        for w in weights:
            linear(given, w)

    def laid_out() -> None:
        for product in packed:
            product(given)

    return fastest(plain, laid_out, copies)


def fastest(one: Callable[[], None], other: Callable[[], None], count: int) -> Seconds:
    """The least seconds of each of two runs, taken in turn, over how many products they are."""
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(REPEATS):
        for into, run in zip(taken, (one, other), strict=True):
            started = time.perf_counter()
            run()
            into.append(time.perf_counter() - started)
    return min(taken[0]) / count, min(taken[1]) / count
