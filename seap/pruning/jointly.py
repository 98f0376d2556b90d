"""How much of the vocabulary goes and how much of the layers, together, where a whole model's size or speed is asked.

Fewer tokens leave more of what is asked to the layers. For a handful of vocabulary sizes both sides are known, in nats
per byte of the task's text:

- what the tokens cost, on held-out text (`vocabulary/measuring.py`);
- what the layers lose: the knapsack's widths for what is left to them, and KL(dense ‖ model cut to those at once) per
  token on held-out calibration rows, times the tokens in a byte.

The size with the least sum is taken: by a part of the held-out text where sizes lie far apart, by all of it where they
are near the best. It is a look, with the whole vocabulary and on little text: units, widths and
repairs in closed form, no search and no refit. What comes after it is measured anew with the tokens that stay.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from seap.activations import calibration as calibrating
from seap.activations.stats import Statistics
from seap.errors import UserError
from seap.methods import MEASURED
from seap.models.modes import evaluation
from seap.pruning.texts import Tasks, build_corpora
from seap.selection.footprint import Footprint, asked
from seap.selection.options import Pruning
from seap.selection.ranking import Ranking, rank
from seap.selection.search import divergence_of
from seap.selection.usage import keep_experts
from seap.selection.within import budgets_for, in_params
from seap.text.options import Calibration
from seap.vocabulary.measuring import Cost, Trial

LOOK_TOKENS = 8192  # of each task's calibration text, at most
COARSE = 8  # sizes that are tried first


@dataclass(frozen=True)
class Left:
    """What is left of the layers beside a vocabulary, and what they lose by it, in nats per token."""

    gone: float  # share of their parameters
    damage: float


@dataclass(frozen=True)
class Layers:
    """What the layers lose where a whole model may take so much, whatever its vocabulary does.

    options: with what was asked. footprint: with the whole vocabulary, of `num_tokens`.
    """

    ranking: Ranking
    options: Pruning
    footprint: Footprint
    num_tokens: int

    def beside(self, tokens: int) -> Left:
        """With so many tokens. Raises UserError, with the nearest that can be, where the layers can't give enough."""
        ranking, arch = self.ranking, self.ranking.arch
        seen = self.footprint.with_output(self.footprint.output * tokens / self.num_tokens)
        if seen.fits({}, self.options.sparsity):
            return Left(0.0, 0.0)
        axes = keep_experts(arch, in_params(arch, self.options, seen), ranking.scores, ranking.usage)
        budgets = budgets_for(arch, self.options, ranking.scores, ranking.curves, seen, axes=axes)
        if not any(axis.usage_key for axis in axes) and not seen.fits(budgets, self.options.sparsity):
            raise seen.refusal(self.options, seen.of(budgets))
        free = {axis.key for axis in ranking.free}
        cut = [axis for axis in axes if axis.key in free]
        stays = sum(budgets[axis.key] * axis.shaped(budgets).unit_params for axis in axes)
        assert ranking.judge is not None and ranking.repair_to is not None
        with evaluation(arch.model):
            damage = divergence_of(ranking.judge, cut, budgets, ranking.repair_to)
        return Left(1 - stays / arch.prunable_params, max(damage, 0.0))


def weighs(options: Pruning) -> bool:
    """Whether damage is known of the layers, against which that of tokens could be held."""
    return options.resolved().allocate in MEASURED


def as_a_look(options: Pruning) -> Pruning:
    """The options with closed forms alone, but for the KL of whole networks."""
    quick: dict[str, Any] = {"effort": "quick", "allocate": "search", "curves": "closed", "sequential": False}
    plain: dict[str, Any] = {"search_evaluations": None, "probe_tokens": None, "fisher_tokens": None, "descents": 0}
    return replace(options, **quick, **plain, mix=0.0, worst_task=False)


def looked_at(
    model: Any,
    tokenizer: Any,
    task: Tasks,
    options: Pruning,
    footprint: Footprint,
    reading: Calibration,
    progress: bool,
) -> Layers:
    """Calibrate on a little of the tasks' text, and know the layers' damage by it. The model stays as it is."""
    most = min(reading.max_tokens or LOOK_TOKENS, LOOK_TOKENS)
    settings, quick = replace(reading, max_tokens=most, second_moments=True), as_a_look(options)
    statistics: dict[str, Statistics] = {
        name: calibrating.calibrate(model, corpus, settings, progress=progress)
        for name, corpus in build_corpora(model, tokenizer, task, settings).items()
    }
    found = rank(model, statistics, quick, footprint=footprint, seed=reading.seed, progress=progress)
    return Layers(found, quick, footprint, model.config.vocab_size)


def choose_together(layers: Callable[[], Layers], trial: Trial, tokens_per_byte: float) -> tuple[int, dict[str, Any]]:
    """How many tokens stay, and what was weighed against what.

    Raises UserError, with the nearest that can be, where not even the fewest tokens leave a target that can be met.
    """
    found = layers()
    beside = functools.cache(found.beside)
    tried: dict[int, dict[str, Any]] = {}
    looked: dict[int, dict[str, Any]] = {}

    def total(size: int) -> float:
        tried[size] = _weighed(size, beside, trial.cost, tokens_per_byte)
        return float(tried[size].get("sum", math.inf))

    def rough(size: int) -> float:
        looked[size] = _weighed(size, beside, trial.rough, tokens_per_byte)
        return float(looked[size].get("sum", math.inf))

    best = least(trial.sizes, total, rough)
    if "sum" not in tried[best]:
        found.beside(trial.sizes[0])  # raises
    return best, {
        "together_with": asked(found.options),
        "tokens_per_byte": tokens_per_byte,
        "tried": [tried[size] for size in sorted(tried)],
        "tried_on_a_part": [looked[size] for size in sorted(looked)],
    }


def _weighed(
    size: int, beside: Callable[[int], Left], cost_of: Callable[[int], Mapping[str, Cost]], tokens_per_byte: float
) -> dict[str, Any]:
    """Of one size; of one whose target can't be met, that alone."""
    try:
        left = beside(size)
    except UserError:
        return {"tokens": size, "can_be_met": False}
    per_byte: Mapping[str, float] = {task: cost.nats_per_byte for task, cost in cost_of(size).items()}
    lost = left.damage * tokens_per_byte
    return {
        "tokens": size,
        "nats_per_byte": per_byte,
        "layers_sparsity": left.gone,
        "layers_nats_per_byte": lost,
        "sum": lost + sum(per_byte.values()) / len(per_byte),
    }


def least(sizes: Sequence[int], total: Callable[[int], float], rough: Callable[[int], float] | None = None) -> int:
    """The size of the least total: a handful over all sizes, then ever nearer to the best; of equals the largest.

    rough: says which of the handful is the best, for less than `total` costs.
    """
    known: dict[int, float] = {}

    def tried(places: Sequence[int]) -> int:
        for place in places:
            if place not in known and 0 <= place < len(sizes):
                known[place] = total(sizes[place])
        return min(known, key=lambda place: (known[place], -place))

    step = -(-len(sizes) // COARSE)
    handful = [*range(0, len(sizes), step), len(sizes) - 1]
    if rough is not None and step > 1:  # what is near the best is tried by `total`
        looked = {place: rough(sizes[place]) for place in handful}
        handful = [min(looked, key=lambda place: (looked[place], -place))]
    best = tried(handful)
    while step > 1:
        step = -(-step // 2)
        best = tried([best - step, best + step])
    return sizes[best]
