"""Operations of the systems that a pruning solves, and of what is made of their factors: counted from the shape.

In float64, but for products that are said to be in float32. Shapes: C inputs of a consumer, O its outputs, k kept.
"""

from typing import TYPE_CHECKING

from seap.activations.calibration import num_blocks
from seap.compensation.compensate import judged
from seap.methods import CLOSED_FORMS, Method
from seap.models.axes import Axis
from seap.selection.options import Pruning

if TYPE_CHECKING:
    from seap.pruning.cost import Shape

TRIED = 3.5  # dampings of a ridge on the way to the best (`compensate.lowest`)


def closed_form(shape: "Shape", axis: Axis, moments: str) -> tuple[float, float]:
    """Operations of an axis's damage in closed form (`selection/curves.py`): in float64, and products in float32."""
    blocks, outputs = num_blocks(axis, moments), shape.hidden
    size = axis.num_inputs / blocks
    weighing = outputs * size**2 + 2 * outputs**2 * size  # half of Vᵀ F V
    products = 2 * outputs * size**2 + 4 / 3 * size**3 + weighing
    return blocks * (size**3 / 3 + 2 / 3 * size**3), blocks * products


def removal(shape: "Shape", axis: Axis, method: Method, moments: str) -> float:
    """Operations of removing all units of an axis one after the other (`scoring/obs.py`)."""
    blocks = num_blocks(axis, moments)
    size = axis.num_inputs / blocks
    inverse = size**3
    if method.score == "leverage":
        return blocks * (size**3 / 3 + 2 * size**3)
    removing = 2 * (0.55 * shape.hidden * size**2 + 0.42 * size**3)
    weighing = 2.0 * shape.hidden**2 * axis.num_inputs if method.score == "obs-fisher" else 0.0
    return blocks * (inverse + removing) + weighing


def repairs(method: Method) -> float:
    """Whether a repair is solved for."""
    return 1.0 if method.compensate in CLOSED_FORMS else 0.0


def ridge(shape: "Shape", axis: Axis, kept: float, moments: str) -> float:
    """One ridge solution of an axis of which a share is kept."""
    blocks = num_blocks(axis, moments)
    size = axis.num_inputs / blocks
    k = kept * size
    return blocks * (k**3 / 3 + 2 * shape.hidden * k**2 + 2 * shape.hidden * k * (size - k))


def repaired_once(shape: "Shape", method: Method, options: Pruning, moments: str) -> tuple[float, float]:
    """Operations of repairing all axes once in the search: in float64, and products in float32."""
    solves = products = 0.0
    for axis in shape.axes:
        if method.compensate != "ridge" or axis.usage_key:
            solves += ridge(shape, axis, 1 - options.sparsity, moments) * repairs(method)
        else:
            size = axis.num_inputs / num_blocks(axis, moments)
            products += 2.0 * shape.hidden * axis.num_inputs * size * options.sparsity * (1 - options.sparsity)
    return solves, products


def best_ridge(shape: "Shape", axis: Axis, kept: float, moments: str) -> float:
    """The ridge solution whose damping is best on held-out rows, and what the bias alone would leave."""
    blocks, some = num_blocks(axis, moments), num_judged(shape.hidden)
    size = axis.num_inputs / blocks
    k, gone = kept * size, (1 - kept) * size
    once = 2 * some * (2 * gone * k + gone**2 + size**2)
    return blocks * (once + TRIED * (k**3 / 3 + 4 * some * k**2)) + ridge(shape, axis, kept, moments)


def num_judged(outputs: int) -> int:
    """Outputs by which a damping is chosen."""
    return len(range(outputs)[judged(outputs)])


def refitting(shape: "Shape", inputs: float) -> float:
    """Operations of a fit between two streams with its best damping (`compensation/cross.py`)."""
    one, some = 2 * shape.hidden * inputs**2, 2 * num_judged(shape.hidden) * inputs**2  # a solution, or its error
    return (TRIED + 1) * inputs**3 / 3 + 2 * one + (2 * TRIED + 2) * some
