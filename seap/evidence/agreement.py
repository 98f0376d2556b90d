"""How far masks agree: between tasks, between two halves of a task's text, and between some of it and all of it.

Moments add up, so one pass measures disjoint spans of a corpus, and the mask of any union of them is a sum away.
Agreement is Jaccard, |A ∩ B| / |A ∪ B| of the units kept, averaged over layers; beside it stands what random masks of
the same widths would give, since two masks that keep half of the units share a third of their union by chance.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations, pairwise
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from seap.activations.calibration import calibrate
from seap.activations.stats import Statistics, merge
from seap.models.arch import Arch, describe
from seap.models.axes import AXIS_NAMES, Axis, Masks
from seap.selection.mask import realised_sparsity
from seap.selection.options import Pruning
from seap.selection.ranking import rank
from seap.text.corpus import Corpus
from seap.text.options import Calibration

Span = tuple[int, int]  # rows [start, end) of a corpus


def ladder(num_texts: int) -> list[int]:
    """1, 2, 4 … and all texts."""
    return [1 << i for i in range((num_texts - 1).bit_length())] + [num_texts]


def halves(num_texts: int) -> tuple[Span, Span]:
    """Two halves of equal size; of an odd number the last text is in neither."""
    half = num_texts // 2
    return (0, half), (half, 2 * half)


@dataclass(frozen=True)
class Measured:
    """A task's moments, kept apart for disjoint spans of its corpus's rows."""

    corpus: Corpus
    parts: dict[Span, Statistics]

    @property
    def num_texts(self) -> int:
        return len(self.corpus.rows)

    @property
    def whole(self) -> Span:
        return (0, self.num_texts)

    @property
    def spans(self) -> list[Span]:
        """Every span that a mask is made of: the ladder's and the two halves."""
        return list(dict.fromkeys([*((0, n) for n in ladder(self.num_texts)), *halves(self.num_texts)]))

    def statistics(self, span: Span) -> Statistics:
        """Of the rows of one of `spans`."""
        return merge(part for (start, end), part in self.parts.items() if span[0] <= start and end <= span[1])

    def num_tokens(self, span: Span) -> int:
        return sum(len(row) for row in self.corpus.rows[slice(*span)])


def measure(
    model: Any, corpora: Mapping[str, Corpus], options: Calibration, *, progress: bool = True
) -> dict[str, Measured]:
    """One pass over each corpus; its parts end where the ladder's rungs and the halves do.

    options.second_moments: whether the scores of the masks to come look at them.
    """
    total = sum(corpus.num_tokens for corpus in corpora.values())
    found = {}
    with tqdm(total=total, desc="measure", unit="token", disable=not progress, leave=False) as bar:
        for name, corpus in corpora.items():
            measured = Measured(corpus, {})
            ends = sorted({0, *(end for span in measured.spans for end in span)})
            for start, end in pairwise(ends):
                part = replace(corpus, rows=corpus.rows[start:end])
                measured.parts[start, end] = calibrate(model, part, options, progress=False)
                bar.update(part.num_tokens)
            found[name] = measured
    return found


@dataclass(frozen=True)
class MaskTable:
    """The masks of every task at every sparsity, from every span of its text."""

    arch: Arch
    measured: Mapping[str, Measured]
    sparsities: tuple[float, ...]
    masks: dict[tuple[str, float, Span], Masks]

    @property
    def cases(self) -> Iterator[tuple[str, float, Measured]]:
        return ((task, s, part) for task, part in self.measured.items() for s in self.sparsities)

    def full(self, task: str, sparsity: float) -> Masks:
        """From all of the task's text."""
        return self.masks[task, sparsity, self.measured[task].whole]

    @property
    def axes(self) -> list[tuple[str, list[Axis]]]:
        return axes_by_name(self.arch)


def axes_by_name(arch: Arch) -> list[tuple[str, list[Axis]]]:
    """Each kind of axis that the family lets be cut, with the axis of every layer."""
    named = [(name, [axis for axis in arch.axes if axis.name == name]) for name in AXIS_NAMES]
    return [(name, axes) for name, axes in named if axes]


def masks_of_spans(
    model: Any,
    measured: Mapping[str, Measured],
    options: Pruning,
    sparsities: Sequence[float],
    *,
    progress: bool = True,
) -> MaskTable:
    """The masks of every span, from sums of the parts' moments; one ranking serves all sparsities."""
    jobs = [(task, span) for task, found in measured.items() for span in found.spans]
    masks: dict[tuple[str, float, Span], Masks] = {}
    for task, span in tqdm(jobs, desc="masks", unit="span", disable=not progress, leave=False):
        ranking = rank(model, {task: measured[task].statistics(span)}, options)
        masks |= {(task, sparsity, span): ranking.masks(sparsity) for sparsity in sparsities}
    return MaskTable(describe(model), measured, tuple(sparsities), masks)


def jaccard(first: Tensor, second: Tensor) -> float:
    """|A ∩ B| / |A ∪ B| of the units that two masks (U,) keep; 1 where neither keeps any."""
    union = int((first | second).sum())
    return int((first & second).sum()) / union if union else 1.0


@lru_cache(maxsize=65536)
def expected_jaccard(units: int, first: int, second: int) -> float:
    """Mean Jaccard of two random masks that keep `first` and `second` of the units.

    Exact: Σ_k P(k) · k / (first + second − k), the number k of common units being hypergeometric.
    """
    if first + second == 0:
        return 1.0
    common = torch.arange(max(0, first + second - units), min(first, second) + 1, dtype=torch.float64)
    log_p = _log_choose(first, common) + _log_choose(units - first, second - common)
    return float((log_p.softmax(0) * common / (first + second - common)).sum())


def _log_choose(n: int, k: Tensor) -> Tensor:
    return math.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)


def shared_params(axes: Sequence[Axis], first: Masks, second: Masks) -> float:
    """Jaccard of the parameters that two masks keep, over all axes together: each counts by its size."""
    pairs = [(first[axis.key], second[axis.key], axis.entry_params) for axis in axes]
    return sum(int((a & b).sum()) * size for a, b, size in pairs) / sum(
        int((a | b).sum()) * size for a, b, size in pairs
    )


def agreement(axes: Sequence[Axis], first: Masks, second: Masks) -> list[float]:
    """Jaccard of two masks in each layer."""
    return [jaccard(first[axis.key], second[axis.key]) for axis in axes]


def by_chance(axes: Sequence[Axis], first: Masks, second: Masks) -> list[float]:
    """Expected Jaccard in each layer of random masks as wide as these two."""
    return [expected_jaccard(a.entries, int(first[a.key].sum()), int(second[a.key].sum())) for a in axes]


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def overlaps(table: MaskTable) -> list[dict[str, Any]]:
    """What the tasks' masks have in common, per axis and sparsity: `jaccard` [task][task], `per_layer` over pairs."""
    found = []
    for sparsity in table.sparsities:
        masks = [table.full(task, sparsity) for task in table.measured]
        pairs = list(combinations(masks, 2))
        for name, axes in table.axes:
            layers = [mean(layer) for layer in zip(*(agreement(axes, *pair) for pair in pairs), strict=True)]
            chance = [mean(layer) for layer in zip(*(by_chance(axes, *pair) for pair in pairs), strict=True)]
            found.append(
                {
                    "axis": name,
                    "sparsity": sparsity,
                    "tasks": list(table.measured),
                    "jaccard": [[mean(agreement(axes, a, b)) for b in masks] for a in masks],
                    "per_layer": layers,
                    "expected": mean(chance),
                    "expected_per_layer": chance,
                }
            )
    return found


def stabilities(table: MaskTable) -> list[dict[str, Any]]:
    """Whether one half of a task's texts gives the mask of the other half; `same_fraction` is of units, kept or not."""
    found = []
    for task, sparsity, part in table.cases:
        spans = halves(part.num_texts)
        first, second = (table.masks[task, sparsity, span] for span in spans)
        for name, axes in table.axes:
            same = sum(int((first[axis.key] == second[axis.key]).sum()) for axis in axes)
            found.append(
                {
                    "task": task,
                    "axis": name,
                    "sparsity": sparsity,
                    "num_texts": part.num_texts // 2,
                    "num_tokens": [part.num_tokens(span) for span in spans],
                    "jaccard": mean(agreement(axes, first, second)),
                    "same_fraction": same / sum(axis.entries for axis in axes),
                    "expected": mean(by_chance(axes, first, second)),
                }
            )
    return found


def enough(table: MaskTable) -> list[dict[str, Any]]:
    """Agreement of the mask of a task's first 1, 2, 4 … texts with that of all of them, which hold the first ones.

    `jaccard` is of the parameters kept, all axes together; `by_axis` of the units, the mean over layers.
    """
    found = []
    for task, sparsity, part in table.cases:
        full = table.full(task, sparsity)
        for num_texts in ladder(part.num_texts):
            masks = table.masks[task, sparsity, (0, num_texts)]
            found.append(
                {
                    "task": task,
                    "sparsity": sparsity,
                    "num_texts": num_texts,
                    "num_tokens": part.num_tokens((0, num_texts)),
                    "jaccard": shared_params(table.arch.axes, masks, full),
                    "by_axis": {name: mean(agreement(axes, masks, full)) for name, axes in table.axes},
                }
            )
    return found


def realised(table: MaskTable) -> list[dict[str, Any]]:
    """The sparsity that each task's mask really has."""
    return [
        {"task": task, "sparsity": sparsity, "realised": realised_sparsity(table.arch, table.full(task, sparsity))}
        for task, sparsity, _ in table.cases
    ]
