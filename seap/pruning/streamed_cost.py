"""What a pruning layer by layer from its files holds at a time, puts on disk and reads. Counted, not measured.

One layer's weights (or the embedding, or the output layer) are in memory at a time, and of what is made of the text no
more than `shelf.LARGE` bytes of each kind; what is more lies in files.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from seap.activations.layerwise import few_logits
from seap.methods import MEASURED, RECONSTRUCTING
from seap.models.options import Streaming
from seap.models.shelf import LARGE
from seap.pruning.cost import Shape
from seap.pruning.memory import FLOAT, LOGITS, Needs, factors_of, logits_of, matrices_of
from seap.pruning.sequential import COPIES, READ_BYTES
from seap.pruning.work import Done, Stage, Text
from seap.selection.options import Pruning
from seap.selection.repairing import REMEMBERED
from seap.selection.slopes import DESCENT, can_descend
from seap.text.options import Calibration


@dataclass
class Kept:
    """Bytes that a stage keeps at a time: in memory, and in files where that is much or was asked for."""

    is_offloading: bool
    memory: float = 0.0
    disk: float = 0.0

    def add_(self, num_bytes: float) -> None:
        """Of what lies on a shelf."""
        if self.is_offloading or num_bytes > LARGE:
            self.disk += num_bytes
        else:
            self.memory += num_bytes


def needs(
    shape: Shape, options: Pruning, text: Mapping[str, Text], calibration: Calibration, streaming: Streaming
) -> Needs:
    """What a pruning with --stream needs."""
    tokens = sum(part.tokens for part in text.values())
    matrices, on_disk = matrices_of(shape, options, calibration, max(len(text), 1))
    place = (streaming.offload_dir or Path(tempfile.gettempdir())).resolve()
    place = next(parent for parent in (place, *place.parents) if parent.is_dir())
    around = float(shape.itemsize * shape.vocabulary * shape.hidden)
    layer = 2.0 * shape.itemsize * shape.layer_params  # as it is and as it becomes
    logits = logits_of(shape, text, calibration)
    stages = _Stages(shape, options, tokens, min(calibration.batch_tokens, max(tokens, 1)), logits, streaming)
    found = [stages.calibration(), stages.sensitivity(), stages.search(), stages.refit()]
    disk = [("second moments", on_disk, Path(tempfile.gettempdir()))] if on_disk else []
    factors = stages.kept()
    factors.add_(factors_of(shape, options, calibration))
    matrices += factors.memory
    if factors.disk:
        disk.append(("factors of second moments", factors.disk, place))
    if states := max(stage.disk for stage in found):
        disk.append(("hidden states and sensitivities", states, place))
    return Needs(max(layer, around) + matrices + max(stage.memory for stage in found), tuple(disk))


@dataclass(frozen=True)
class _Stages:
    """What each stage keeps of the text beside a layer."""

    shape: Shape
    options: Pruning
    tokens: int
    batch: int
    logits: float  # bytes of as many as are looked at together where a gradient is taken of them
    streaming: Streaming

    @property
    def widest(self) -> int:
        """Inputs of the widest consumer."""
        return max((axis.num_inputs for axis in self.shape.arch.axes), default=1)

    def kept(self) -> Kept:
        return Kept(self.streaming.offload_dir is not None)

    def states(self, tokens: float) -> float:
        """Bytes of the hidden states before one layer."""
        return float(self.shape.itemsize * tokens * self.shape.hidden)

    def calibration(self) -> Kept:
        kept, hidden = self.kept(), self.states(self.tokens)
        kept.disk += hidden if kept.is_offloading else 0.0
        kept.memory += (0.0 if kept.is_offloading else hidden) + 6 * self.states(self.batch)
        return kept

    def sensitivity(self) -> Kept:
        """States before every layer, F of every consumer, a batch's logits and one layer's way back."""
        kept, shape = self.kept(), self.shape
        if not self.options.needs_sensitivity:
            return kept
        tokens = min(self.options.spent.fisher_tokens, self.tokens)
        kept.add_(self.states(tokens) * (shape.num_layers + 1))
        kept.add_(FLOAT * len(shape.arch.axes) * float(shape.hidden) ** 2)
        batch = min(self.batch, tokens)
        backward = shape.itemsize * batch * (6.0 * shape.hidden + 6.0 * self.widest)
        root = 3 * 8.0 * shape.hidden**2
        kept.memory += self.states(tokens) + max(self.logits, backward, root)
        return kept

    def search(self) -> Kept:
        """States before every layer, repairs at the latest widths, the dense model's logits and a batch's own; of the
        steps down slopes, the dense and the cut model's states, and a layer's gradients."""
        kept, shape, spent = self.kept(), self.shape, self.options.spent
        if self.options.resolved().allocate != "search":
            return kept
        tokens = min(spent.probe_tokens, self.batch)
        kept.add_(self.states(tokens) * (shape.num_layers + 1))
        kept.add_(REMEMBERED * shape.itemsize * sum(float(shape.hidden) * axis.num_inputs for axis in shape.axes))
        logits = float(FLOAT * tokens * shape.vocabulary)
        few = float(FLOAT * shape.vocabulary * few_logits(shape.vocabulary, tokens))
        kept.add_(logits)
        kept.memory += (LOGITS - 1) * few + self.solving()
        if spent.descents and can_descend(shape.axes):
            tokens = min(DESCENT * spent.probe_tokens, self.tokens)
            kept.add_(2 * self.states(tokens) * (shape.num_layers + 1))
            kept.memory += max(self.logits, 4 * 8.0 * shape.hidden * self.widest)
        return kept

    def refit(self) -> Kept:
        """Both models' states around a layer, what its last consumer reads, and the sums of a fit."""
        kept = self.kept()
        kept.memory += self.solving()
        if self.options.resolved().sequential:
            read = (1 - self.options.sparsity) * self.shape.itemsize * self.tokens * self.widest
            kept.add_(COPIES * self.states(self.tokens) + min(read, READ_BYTES))
            kept.memory += self.solving()
        return kept

    def solving(self) -> float:
        """Bytes of one axis's system and its right side, in float64, once more while it is solved."""
        if self.options.resolved().compensate in ("none", "bias"):
            return 0.0
        k = (1 - self.options.sparsity) * self.widest
        return 2 * 8 * (k**2 + 2 * self.shape.hidden * k)


def reading(
    shape: Shape, options: Pruning, itemsize: int, sparsities: Sequence[float], num_tasks: int, done: Done
) -> list[Stage]:
    """The bytes that each stage reads anew from the files, and writes. itemsize: bytes of a weight there."""
    method, model = options.resolved(), float(shape.params * itemsize)
    consumers = float(itemsize * sum(shape.hidden * axis.num_inputs for axis in shape.axes))
    stages = [] if done.calibrated else [Stage(name="calibrate", read=num_tasks * model)]
    if options.needs_sensitivity and not done.chosen:
        stages.append(Stage(name="sensitivity", read=2 * model))
    if method.score in RECONSTRUCTING and not done.chosen:
        stages.append(Stage(name="scores", read=consumers))
    if method.allocate in MEASURED and not done.chosen:
        stages.append(Stage(name="damage", read=consumers))
    for sparsity in sparsities:
        if method.allocate == "search" and not done.chosen:
            stages.append(Stage(name="search", read=(options.spent.search_evaluations + 2) * model))
        if method.allocate == "search" and not done.chosen and options.spent.descents and can_descend(shape.axes):
            steps = options.spent.descents  # forward and back, after the dense model once
            stages.append(Stage(name="slopes", read=(1 + 2 * steps) * model + 2 * steps * consumers))
        removed = sparsity * shape.arch.prunable_params * itemsize
        stages.append(Stage(name="cut", read=model, written=model - removed))
    return stages
