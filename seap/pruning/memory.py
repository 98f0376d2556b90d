"""What a pruning holds at a time, in bytes: the stage with the most decides. Counted, not measured."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from seap.activations.calibration import num_blocks
from seap.activations.layerwise import few_logits, few_wide, widest
from seap.activations.stats import IN_MEMORY_BYTES
from seap.allocation import KEPT_END
from seap.grants import granted_memory
from seap.methods import CLOSED_FORMS, FIRST_ORDER, MEASURED
from seap.models.loader import free_memory
from seap.models.shelf import leaves_memory
from seap.pruning.cost import Shape
from seap.pruning.probe import ROOM
from seap.pruning.sequential import COPIES, READ_BYTES
from seap.pruning.work import Text
from seap.selection.budgets import variants
from seap.selection.nested import nested_bytes
from seap.selection.options import Pruning
from seap.selection.repairing import REMEMBERED
from seap.selection.slopes import DESCENT
from seap.text.options import Calibration
from seap.vocabulary.measuring import LOGITS as BATCH_LOGITS

LOGITS = 5  # copies of a batch's logits at a time, where there is a gradient; 4 without
DESCENDING = 3  # in a step down slopes: what the dense model says, as it is made, and some rows'
FITTING = 16  # bytes for each pair of a consumer's inputs where it is fitted anew: two sums in float32, and a factor
DAMAGE = 20  # where its damage is worked out: a factor, its copy in float32, and what is read of two kinds of rows
SOLVED = 5  # matrices as a consumer's weight in float64 on the way to a new one
RUN = 6  # of a batch, numbers as many as a layer's widest: its MLP's linears and what stands between them
FLOAT = 4  # bytes of activations and logits
LIBRARIES = 4e8  # Python, torch, transformers


@dataclass(frozen=True)
class Needs:
    """Bytes of memory at most, and files on temporary disk."""

    memory: float
    disk: tuple[tuple[str, float, Path], ...] = ()


def of(shape: Shape, options: Pruning, text: Mapping[str, Text], calibration: Calibration) -> Needs:
    """What a pruning in memory needs; layer by layer see `streamed_cost.py`."""
    method, spent, tokens = options.resolved(), options.spent, sum(part.tokens for part in text.values())
    matrices, on_disk = matrices_of(shape, options, calibration, max(len(text), 1))
    hidden = float(FLOAT * tokens * shape.hidden)
    batch = min(calibration.batch_tokens, max(tokens, 1))
    sensitivities = FLOAT * len(shape.arch.axes) * float(shape.hidden) ** 2
    running = float(RUN * FLOAT * few_wide(shape.arch, batch) * max(widest(shape.arch.axes), shape.hidden))
    stages = [(hidden + running + _on_the_way(on_disk, matrices), 0.0)]
    if on_disk:
        stages.append(_held(shape, matrices, sensitivities))
    if options.needs_sensitivity:
        states = FLOAT * min(spent.fisher_tokens, tokens) * shape.hidden * (shape.num_layers + 1)
        looked = max(logits_of(shape, text, calibration), running)
        stages.append(_held(shape, looked + sensitivities, states, sensitivities))
    if method.score in FIRST_ORDER:
        stages.append((_gradients(shape, text, calibration), 0.0))
    if method.allocate == "search" or (method.allocate in MEASURED and not options.closed_curves):
        stages.append(_search(shape, options, tokens, batch))
    if method.sequential:
        repairs = sum(FLOAT * shape.hidden * a.num_inputs * (1 - options.sparsity) for a in shape.axes)
        wide = float(widest(shape.axes))
        read = FLOAT * tokens * (shape.hidden + wide * (1 - options.sparsity))
        read = read if shape.device == "cpu" and leaves_memory(COPIES * hidden) else min(read, READ_BYTES)
        solved = FITTING * wide**2 + SOLVED * 8.0 * shape.hidden * wide
        run = FITTING / 2 * wide**2 + running
        stages.append(_held(shape, max(solved, run), COPIES * hidden + read, repairs))
    factors = factors_of(shape, options, calibration)
    away = leaves_memory(factors, on_host=True)
    files = {
        "second moments": on_disk,
        "factors of second moments": away * factors,
        "hidden states and repairs": max(disk for _, disk in stages),
    }
    held = shape.weight_bytes + (0.0 if on_disk else matrices) + (not away) * factors
    most = max(memory for memory, _ in stages)
    left = _weights_left(shape, options)  # cut in place, and in the end, when nothing lies free, loaded beside it
    most = max(most + min(KEPT_END, most), (1 + ROOM) * left - shape.weight_bytes)
    place = Path(tempfile.gettempdir())
    return Needs(LIBRARIES + held + most, tuple((what, part, place) for what, part in files.items() if part))


def _held(shape: Shape, memory: float, *shelves: float) -> tuple[float, float]:
    """Bytes in memory and on disk, with shelves of so much, which of a model on a GPU are there too."""
    disk = sum(part for part in shelves if shape.device == "cpu" and leaves_memory(part))
    return memory + sum(shelves) - disk, disk


def of_tokens(shape: Shape) -> Needs:
    """What it needs to take tokens alone: no layer is looked at, and logits are those of held-out text."""
    logits = float((LOGITS - 1) * FLOAT * BATCH_LOGITS)
    looked = logits + min(KEPT_END, logits)  # which goes back before what was saved is loaded
    return Needs(LIBRARIES + shape.weight_bytes + max(looked, ROOM * shape.weight_bytes))


def _weights_left(shape: Shape, options: Pruning) -> float:
    """Bytes of the cut model, which is copied, or loaded again to be looked at."""
    share = shape.arch.prunable_params * shape.weight_bytes / max(shape.params, 1)
    return shape.weight_bytes - options.sparsity * share


def _gradients(shape: Shape, text: Mapping[str, Text], calibration: Calibration) -> float:
    """States before every layer, one layer's weights and gradients, and the logits of some rows."""
    tokens = sum(part.tokens for part in text.values())
    states = FLOAT * tokens * shape.hidden * (shape.num_layers + 2)
    return states + logits_of(shape, text, calibration) + 4 * FLOAT * shape.layer_params


def logits_of(shape: Shape, text: Mapping[str, Text], calibration: Calibration) -> float:
    """Logits of as many rows as are looked at together where a gradient is taken of them."""
    tokens, rows = (sum(getattr(part, name) for part in text.values()) for name in ("tokens", "rows"))
    longest = min(2 * tokens / max(rows, 1), calibration.seq_len)
    return LOGITS * FLOAT * shape.vocabulary * max(few_logits(shape.vocabulary, tokens), longest)


def matrices_of(shape: Shape, options: Pruning, calibration: Calibration, tasks: int) -> tuple[float, float]:
    """Bytes of second moments in memory, and on disk where they are too large (`calibration.too_large`).

    Then those in memory are one layer's, while it is worked on.
    """
    if not options.needs_second_moments:
        return 0.0, 0.0
    entries = [axis.num_inputs**2 / num_blocks(axis, calibration.moments) for axis in shape.arch.axes]
    if 16 * sum(entries) <= IN_MEMORY_BYTES:
        return 16 * sum(entries) * tasks, 0.0
    return DAMAGE * max(entries), 8 * sum(entries) * tasks


def _on_the_way(on_disk: float, matrices: float) -> float:
    """Bytes of the second moments that a layer's text goes into, of those that lie on disk afterwards."""
    return 8 / DAMAGE * matrices if on_disk else 0.0


def factors_of(shape: Shape, options: Pruning, calibration: Calibration) -> float:
    """Bytes of what the search's repairs are made of (`selection/nested.py`)."""
    if options.resolved().allocate != "search" or not options.needs_second_moments:
        return 0.0
    each = [own for axis in shape.axes for own in variants(axis, options)]
    return nested_bytes(shape.arch, each, lambda axis: num_blocks(axis, calibration.moments))


def _search(shape: Shape, options: Pruning, tokens: int, batch: int) -> tuple[float, float]:
    """What the dense model says, its states, the repairs that are kept, a layer that is cut, and a trial's logits or a
    step down slopes: logits of a batch, a layer's gradients and a factor, and both models' states."""
    spent, searches = options.spent, options.resolved().allocate == "search"
    probed, repairs, wide = min(spent.probe_tokens, batch), 0.0, 0.0
    states = FLOAT * shape.hidden * (shape.num_layers + 1.0)
    if options.resolved().compensate in CLOSED_FORMS:
        kept = 1 - (options.sparsity if options.closed_curves else 0.5)  # measured at every width
        repairs = REMEMBERED * sum(FLOAT * shape.hidden * axis.num_inputs * kept for axis in shape.axes)
        wide = max((8.0 * shape.hidden * axis.num_inputs for axis in shape.axes), default=0.0)
    cut = FLOAT * shape.layer_params * (1 - options.sparsity) + wide
    shelves = [FLOAT * probed * float(shape.vocabulary), probed * states, repairs]
    trial, descending = (LOGITS - 1) * _few_logits(shape, probed), 0.0
    if searches and spent.descents:
        further = min(DESCENT * spent.probe_tokens, tokens)
        descending = DESCENDING * _few_logits(shape, further) + 4 * wide
        shelves += [further * states, further * states]
    return _held(shape, cut + max(trial, descending), *shelves)


def _few_logits(shape: Shape, tokens: int) -> float:
    return float(FLOAT * shape.vocabulary * few_logits(shape.vocabulary, tokens))


def free(device: str) -> float:
    """Bytes that a run may take."""
    if device.startswith("cuda"):
        return float(torch.cuda.mem_get_info(torch.device(device))[0])
    return float(min(free_memory(), granted_memory()))


def smaller(options: Pruning) -> str:
    """The option with which a run takes less memory."""
    from seap.pruning.streaming import unstreamable

    without = unstreamable(options)
    return "--stream" + (f" without {', '.join(without)}" if without else "")
