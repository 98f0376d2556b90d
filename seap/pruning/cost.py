"""What a pruning will run: its stages, each as so much work, from the model's shape and the options alone.

Nothing here measures or runs anything; `rates.py` says what a unit of each kind of work takes here. The counts follow
the code of each stage and leave out what grows with nothing. Shapes: T tokens, D hidden size, V vocabulary, L layers,
C inputs of a consumer, O its outputs, k inputs kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from seap.activations.calibration import num_blocks
from seap.activations.layerwise import HELD_PERIOD
from seap.methods import FIRST_ORDER, MEASURED, RECONSTRUCTING, RUNNING, Method
from seap.models.arch import Arch, choose_axes, describe, embedding_params
from seap.models.axes import CHANNELS, Axis
from seap.pruning.operations import best_ridge, closed_form, refitting, removal, repaired_once, repairs, ridge
from seap.pruning.work import NOTHING, Done, Stage, Text, merged
from seap.selection.budgets import is_protected, least_kept, may_go, variants
from seap.selection.damage import probe_widths
from seap.selection.options import Pruning
from seap.selection.slopes import DESCENT, can_descend

HALF_OF_A_MATRIX = 0.53  # of second moments that is computed, in tiles from the diagonal on


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A model as far as its cost goes. Made from a model without weights."""

    arch: Arch
    axes: tuple[Axis, ...]  # that are cut
    hidden: int
    vocabulary: int
    active: float  # parameters of the layers that a token goes through
    params: int
    itemsize: int  # bytes of a weight in the work's dtype
    solve_device: str = "auto"
    device: str = "cpu"  # of the work

    @property
    def num_layers(self) -> int:
        return len(self.arch.layers)

    @property
    def layer_params(self) -> float:
        """Of one layer, all its experts."""
        return (self.params - embedding_params(self.arch.model)) / self.num_layers

    @property
    def weight_bytes(self) -> int:
        return self.params * self.itemsize


def shape_of(model: Any, options: Pruning, itemsize: int, device: str = "cpu") -> Shape:
    """Of a model, which may be on the meta device. device: where it will be."""
    arch = describe(model)
    free = [a for a in choose_axes(arch, options.cut_axes) if not is_protected(a.layer, len(arch.layers), options)]
    params = sum(p.numel() for p in model.parameters())
    idle = 0.0
    for layer in range(len(arch.layers)):
        experts = arch.experts(layer)
        if experts is not None:
            share = 1 - experts.per_token / experts.num_experts
            idle += share * experts.num_experts * experts.num_channels * experts.channel_params
    active = params - embedding_params(model) - idle
    own: dict[str, Any] = {"hidden": model.config.hidden_size, "vocabulary": model.config.vocab_size}
    own |= {"solve_device": options.solve_device, "device": device}
    return Shape(arch=arch, axes=tuple(free), active=active, params=params, itemsize=itemsize, **own)


def pruning_stages(
    shape: Shape,
    options: Pruning,
    text: Mapping[str, Text],
    *,
    sparsities: Sequence[float],
    moments: str = "full",
    done: Done = NOTHING,
) -> list[Stage]:
    """What pruning to each of the sparsities runs, one calibration and ranking for all. text: task → its text."""
    method = options.resolved()
    tokens = sum(t.tokens for t in text.values())
    padding = sum(t.tokens * t.padding for t in text.values()) / max(tokens, 1)
    pooled = Text(tokens, sum(t.batches for t in text.values()))
    stages = []
    if pooled.tokens and not done.calibrated:
        stages.append(calibration(shape, pooled, moments if options.needs_second_moments else None))
    if not done.chosen:
        stages += ranking(shape, method, options, pooled, moments)
    for sparsity in [s for s in sparsities if s]:
        part = replace(options, sparsity=sparsity)
        stages += [] if done.chosen else choosing(shape, method, part, pooled, moments)
        stages += repairing(shape, method, part, pooled, moments)
    return merged(stage.padded(padding) for stage in stages)


def calibration(shape: Shape, text: Text, moments: str | None) -> Stage:
    """One pass over the text, with second moments unless `moments` is None."""
    products = 0.0
    for axis in shape.arch.axes if moments else ():
        products += 2 * HALF_OF_A_MATRIX * axis.num_inputs**2 / num_blocks(axis, moments or "full")
    passes = text.batches * shape.num_layers
    return Stage(name="calibrate", forward=text.tokens, passes=passes, moments=text.tokens * products)


def ranking(shape: Shape, method: Method, options: Pruning, text: Text, moments: str) -> list[Stage]:
    """What is known before a sparsity: sensitivity, scores, gradients, damage."""
    stages = []
    if options.needs_sensitivity:
        part = text.of(min(options.spent.fisher_tokens, text.tokens * (1 - 1 / HELD_PERIOD)))
        outer = sum(2.0 * part.tokens * shape.hidden**2 for _ in shape.arch.axes)
        stages.append(
            Stage(
                name="sensitivity",
                forward=2 * part.tokens,
                backward=part.tokens,
                backward_positions=part.tokens,
                passes=4 * part.batches * shape.num_layers,
                moments=outer,
                solves=len(shape.arch.axes) * shape.hidden**3 / 3,
            )
        )
    if method.score in RUNNING:
        stages.append(running(shape, method, text))
    if method.score in RECONSTRUCTING:
        heads = [axis for axis in shape.arch.axes if options.heads == "query" and axis.queries > 1]  # once more by head
        solves = sum(removal(shape, axis, method, moments) for axis in (*shape.arch.axes, *heads))
        stages.append(Stage(name="scores", solves=solves))
    if options.closed_curves:
        found = [closed_form(shape, own, moments) for axis in shape.axes for own in variants(axis, options)]
        solves, products = (sum(part) for part in zip(*found, strict=True)) if found else (0.0, 0.0)
        stages.append(Stage(name="damage", solves=solves, moments=products))
    elif method.allocate in MEASURED:
        stages.append(_probes(shape, method, options, text, moments))
    return stages


def running(shape: Shape, method: Method, text: Text) -> Stage:
    """A score for which the model runs on the text: block influence, or gradients of all weights of the layers."""
    if method.score not in FIRST_ORDER:
        return Stage(name="influence", forward=text.tokens, passes=text.batches * shape.num_layers)
    tokens = float(text.tokens)
    return Stage(
        name="gradients",
        forward=2 * tokens,
        backward=2 * tokens,  # of the inputs and of the weights
        backward_positions=tokens,
        passes=4 * text.batches * shape.num_layers,
    )


def _probes(shape: Shape, method: Method, options: Pruning, text: Text, moments: str) -> Stage:
    """The damage of every axis at some widths: the layers from it on, the output layer, KL over the vocabulary."""
    part = probed(options, text)
    forward, probes, solves = float(part.tokens), 0, 0.0
    for axis in [own for each in shape.axes for own in variants(each, options)]:
        gone = axis.curve_key == axis.key and may_go(shape.arch, axis, options)
        widths = probe_widths(axis, least_kept(axis, options), max(options.round_to, 1), may_go=gone)
        probes += len(widths)
        forward += len(widths) * part.tokens * (1 - axis.layer / shape.num_layers)
        whole = axis.units * axis.queries / axis.heads
        solves += sum(ridge(shape, axis, width / whole, moments) for width in widths) * repairs(method)
    return Stage(
        name="damage",
        forward=forward,
        positions=(probes + 1) * part.tokens,
        passes=forward / max(part.tokens, 1) * part.batches * shape.num_layers,
        solves=solves,
    )


def probed(options: Pruning, text: Text) -> Text:
    """The held-out text that damage is measured on."""
    return text.of(min(options.spent.probe_tokens, text.tokens / HELD_PERIOD))


def choosing(shape: Shape, method: Method, options: Pruning, text: Text, moments: str) -> list[Stage]:
    """What each sparsity costs before anything is cut: widths, the search for better ones, and steps."""
    stages = []
    if method.allocate == "iterative":
        stages.append(replace(running(shape, method, text).times(options.spent.steps - 1), name="steps"))
    if method.behind:
        forward, passes = text.tokens * (2 - options.sparsity), 2 * text.batches * shape.num_layers
        stages.append(Stage(name="layers", forward=forward, passes=passes))
    if method.allocate in MEASURED:
        step = max(options.round_to, 1)
        each = [own for axis in shape.axes for own in variants(axis, options)]
        variables = sum(own.units / (step if own.unit_inputs == 1 else 1) for own in each)
        stages.append(Stage(name="widths", variables=variables))
    if method.allocate == "search":
        part, trials = probed(options, text), options.spent.search_evaluations + 1
        whole = _whole_trials(options)  # of the others two axes differ
        solves, products = repaired_once(shape, method, options, moments)
        times = whole + 2 * (trials - whole) / max(len(shape.axes), 1)
        passes = trials * part.batches * shape.num_layers
        tokens = trials * part.tokens
        forward = tokens * (1 - options.sparsity * _channels(shape))  # channels that go are not run
        forward += part.tokens * options.closed_curves  # the dense model, once; measured curves have run it
        if options.spent.descents and can_descend(shape.axes):
            stages.append(_descents(shape, options, text, moments))
        stages.append(
            Stage(
                name="search",
                forward=forward,
                positions=tokens,
                passes=passes,
                moments=times * products,
                solves=times * solves,
            )
        )
    return stages


def _whole_trials(options: Pruning) -> float:
    """Trials in which all widths differ: the first, steps down slopes, and half of the rest, which tilt all curves."""
    steps = 1.5 * options.spent.descents
    return 1 + steps + max(options.spent.search_evaluations - steps, 0) / 2


def _descents(shape: Shape, options: Pruning, text: Text, moments: str) -> Stage:
    """Slopes of all axes, some times: forward and back with all channels, and a product with each axis's factor."""
    steps = options.spent.descents
    part = text.of(min(DESCENT * options.spent.probe_tokens, text.tokens * (1 - 1 / HELD_PERIOD)))
    products = 0.0
    for axis in shape.axes:
        products += 2.0 * part.tokens * shape.hidden * axis.num_inputs
        size = axis.num_inputs / num_blocks(axis, moments)
        products += len(variants(axis, options)) * shape.hidden * axis.num_inputs * size  # with a triangle
    return Stage(
        name="slopes",
        forward=(1 + 2 * steps) * part.tokens,  # the dense model once
        backward=steps * part.tokens,
        positions=(1 + steps) * part.tokens,
        backward_positions=steps * part.tokens,
        passes=(1 + 4 * steps) * part.batches * shape.num_layers,
        moments=steps * products,
    )


def _channels(shape: Shape) -> float:
    """The share of channels in the parameters that a token goes through."""
    return min(sum(axis.params for axis in shape.axes if axis.name == CHANNELS) / max(shape.active, 1), 1.0)


def repairing(shape: Shape, method: Method, options: Pruning, text: Text, moments: str) -> list[Stage]:
    """What each sparsity costs once it is known what stays: repairs, and the refit layer after layer."""
    kept, stages = 1 - options.sparsity, []
    if method.compensate == "ridge":
        solves = sum(best_ridge(shape, axis, kept, moments) for axis in shape.axes)
        stages.append(Stage(name="repair", solves=solves))
    if method.compensate == "nystrom":
        stages.append(Stage(name="repair", solves=sum(ridge(shape, axis, kept, moments) for axis in shape.axes)))
    if method.sequential:
        stages.append(_refit(shape, text, kept))
    return stages


def _refit(shape: Shape, text: Text, kept: float) -> Stage:
    """Layer after layer: the dense layer, the pruned one in parts, moments between the two, some dampings each."""
    moments = solves = 0.0
    for axis in shape.axes:
        k = kept * axis.num_inputs
        size, outputs = (shape.hidden, shape.hidden), (k, shape.hidden)
        for inputs, targets in (size, outputs):
            moments += 2.0 * text.tokens * (inputs**2 + targets * inputs)
            solves += refitting(shape, inputs)
    passes, channels = 4 * text.batches * shape.num_layers, _channels(shape)
    heads = 2.7 * (1 - channels)  # up to what their consumer reads, then twice for what the channels' linears read
    forward = text.tokens * (1 + heads + kept * channels)
    return Stage(name="refit", forward=forward, passes=passes, moments=moments, solves=solves)
