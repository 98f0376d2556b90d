"""What a whole model takes at any widths: bytes on disk, memory of weights and KV cache, or milliseconds of a token.

It is a sum: what stays in any case, the embedding and the output layer, and a curve for every axis, which counts what
goes with a whole sub-block too (its part of the KV cache, its norm, its calls). Bytes and memory are counted, of
weights in the dtype that is saved; milliseconds are measured here (`timing.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch

from seap.errors import UserError
from seap.methods import CLOSED_FORMS
from seap.models.arch import Arch, describe, embedding_params
from seap.models.axes import ATTENTION, KV_GROUPS, Axis
from seap.models.blocks import cached_tokens
from seap.models.heads import num_groups, size_of_key
from seap.models.sizes import ENTRY, saved_bytes
from seap.selection.options import Pruning
from seap.selection.targets import WORDS, Cost
from seap.selection.timing import output_milliseconds, token_times
from seap.shares import written_size


class Taken(Protocol):
    """What an axis takes at widths."""

    @property
    def units(self) -> int: ...

    def at(self, widths: Sequence[int]) -> list[float]: ...


@dataclass(frozen=True)
class Line:
    """So much for every unit, and once for a bias where some are gone."""

    units: int
    each: float
    bias: float = 0.0

    def at(self, widths: Sequence[int]) -> list[float]:
        return [width * self.each + (self.bias if width < self.units else 0.0) for width in widths]


@dataclass(frozen=True)
class Footprint:
    """What a model takes, in all and by part. dense: before anything went, its whole vocabulary included.

    Query heads that go from the groups that stay are counted too.
    """

    cost: Cost
    dense: float
    fixed: float
    output: float  # embedding and output layer, of the vocabulary that is there
    curves: Mapping[str, Taken]  # axis key → what it takes
    size: int = 0  # bytes of a parameter, where bytes are counted
    heads: Mapping[str, tuple[str, int, float]] = field(default_factory=dict)  # key → heads key, heads, what one takes

    def of(self, budgets: Mapping[str, int]) -> float:
        """With so many units of each axis; all of those that aren't named."""
        widths = {key: budgets.get(key, curve.units) for key, curve in self.curves.items()}
        taken = sum(curve.at([widths[key]])[0] for key, curve in self.curves.items())
        for key, (heads_key, queries, _) in self.heads.items():
            taken -= self._of_heads(key, widths[key], budgets.get(heads_key, queries))
        return self.fixed + self.output + taken

    def taken(self, choices: Sequence[tuple[Axis, int]]) -> list[float]:
        """By one axis with so many query heads a group, and so many units."""
        key = choices[0][0].key
        found = self.curves[key].at([width for _, width in choices])
        gone = [self._of_heads(key, width, axis.heads) for axis, width in choices]
        return [value - own for value, own in zip(found, gone, strict=True)]

    def _of_heads(self, key: str, width: int, heads: int) -> float:
        """What groups that stay no longer take, with so many query heads each."""
        _, queries, each = self.heads.get(key, ("", 0, 0.0))
        return width * (queries - heads) * each

    def most(self, sparsity: float) -> float:
        """What a model may take of which this share of the dense one is to go."""
        return (1 - sparsity) * self.dense

    def fits(self, budgets: Mapping[str, int], sparsity: float) -> bool:
        return self.of(budgets) <= self.most(sparsity) * (1 + 1e-12)

    def with_output(self, output: float) -> "Footprint":
        """The same with another vocabulary."""
        return replace(self, output=output)

    def said(self, value: float) -> str:
        """`199.9 MB` or `31.20 ms`"""
        return f"{value:.4g} ms" if self.cost == "milliseconds" else written_size(value)

    def refusal(self, options: Pruning, nearest: float, why: str = "") -> UserError:
        """Of a target that can't be met. nearest: what can."""
        what, instead = asked(options), "lower --sparsity"
        if options.target_size is not None:
            instead = f"ask for at least {written_size(nearest)}"
        elif options.target_speed is not None:
            instead = f"ask for at most {self.dense / nearest:.2f}x"
        return UserError(
            f"{what} can't be met: of {WORDS[self.cost]} ({self.said(self.dense)} of the dense model) at least "
            f"{self.said(nearest)} stays, {self.said(self.most(options.sparsity))} was asked{why}; {instead}, or let "
            "more go (--vocabulary auto, --drop both, --min-channels, --protect-first and -last)"
        )


def asked(options: Pruning) -> str:
    """How a target was asked for: `--target-size 200 MB`"""
    if options.target_size is not None:
        return f"--target-size {written_size(float(options.target_size))}"
    if options.target_speed is not None:
        return f"--target-speed {float(options.target_speed):g}x"
    return f"--sparsity {options.sparsity:g} with --cost {options.cost}"


def footprint_of(model: Any, options: Pruning, dtype: torch.dtype | None = None) -> Footprint:
    """What a model takes now, of what the options count. dtype: of the weights on disk, by default the model's own."""
    arch = describe(model)
    if options.cost == "milliseconds":
        curves, fixed = token_times(arch, context=options.context, batch=options.batch)
        output = output_of(model, options, dtype)
        whole = fixed + output + sum(curve.at([curve.units])[0] for curve in curves.values())
        heads = {a.key: (a.heads_key, a.queries, curves[a.key].head) for a in arch.axes if a.heads_key}
        return Footprint(options.cost, whole, fixed, output, curves, heads=heads)
    size = (dtype or model.dtype).itemsize
    output = output_of(model, options, dtype)
    cached = [_cached(arch, layer, options, size) for layer in range(len(arch.layers))]
    lines = {axis.key: _line(arch, axis, options, size, cached[axis.layer]) for axis in arch.axes}
    fixed = saved_bytes(model, dtype) - output - sum(axis.params * size for axis in arch.axes)
    if options.cost == "memory":
        free = {axis.layer for axis in arch.axes if axis.name == KV_GROUPS}
        fixed += num_groups(arch.model.config) * sum(own for layer, own in enumerate(cached) if layer not in free)
    whole = fixed + output + sum(line.at([line.units])[0] for line in lines.values())
    heads = {a.key: (a.heads_key, a.queries, float(a.head_params * size)) for a in arch.axes if a.heads_key}
    return Footprint(options.cost, whole, fixed, output, lines, size, heads)


def output_of(model: Any, options: Pruning, dtype: torch.dtype | None = None) -> float:
    """Embedding and output layer as they are now."""
    if options.cost == "milliseconds":
        return output_milliseconds(model, options.batch)
    return embedding_params(model) * (dtype or model.dtype).itemsize


def _line(arch: Arch, axis: Axis, options: Pruning, size: int, cached: float) -> Line:
    """Bytes of an axis; with its part of the KV cache where that is counted."""
    consumer = arch.consumer(axis)
    how = options.resolved().compensate
    adds_bias = how != "none" and not axis.usage_key and not (axis.is_normed and how in CLOSED_FORMS)
    new = adds_bias and getattr(consumer, "bias", None) is None
    bias = arch.weight(axis.layer, axis.consumer).shape[0] * size + ENTRY
    keeps_cache = options.cost == "memory" and axis.name == KV_GROUPS
    return Line(axis.units, axis.unit_params * size + (cached if keeps_cache else 0.0), bias if new else 0.0)


def _cached(arch: Arch, layer: int, options: Pruning, size: int) -> float:
    """Bytes of keys and values of one KV group of a layer, where they are counted."""
    if options.cost != "memory" or not arch.has(layer, ATTENTION):
        return 0.0
    tokens = cached_tokens(arch.model.config, layer, options.context)
    return 2.0 * size_of_key(arch) * tokens * options.batch * size


def settled(options: Pruning, footprint: Footprint) -> Pruning:
    """With the sparsity that a target stands for: a share of what the dense model takes.

    Raises UserError for a size that the dense model has already.
    """
    if options.target_size is not None:
        share = 1 - float(options.target_size) / footprint.dense
        if share <= 0:
            raise UserError(
                f"{asked(options)}: the model's weights take {written_size(footprint.dense)} already; ask for less"
            )
        return replace(options, sparsity=share)
    if options.target_speed is not None:
        return replace(options, sparsity=1 - 1 / float(options.target_speed))
    return options
