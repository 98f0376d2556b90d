"""What is known of a model's units before a sparsity is chosen: their scores, and damage where it is measured.

One ranking serves many sparsities: the scores and the damage curves don't depend on it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import Tensor

from seap.activations import calibration as calibrating
from seap.activations.layerwise import split_rows
from seap.activations.ranks import Ranks, agreed, gathered
from seap.activations.stats import Statistics
from seap.allocation import give_back
from seap.errors import UserError
from seap.methods import MEASURED
from seap.models import solving
from seap.models.arch import Arch, choose_axes, describe
from seap.models.axes import Axis, Masks
from seap.scoring.first_order import loss_of
from seap.scoring.score import Scores
from seap.scoring.sensitivity import measure_sensitivity
from seap.selection.behind import masks_behind
from seap.selection.budgets import Budgets, is_protected, least_kept, may_go, variants
from seap.selection.curves import closed_curves
from seap.selection.damage import Costs, Curves, Judge, RepairTo, drawn_rows, measure_curves, probe_rows
from seap.selection.footprint import Footprint, footprint_of
from seap.selection.mask import choose_units
from seap.selection.mixture import (
    QuickNetworks,
    add_general,
    check_mixture,
    choose_share,
    choose_weights,
    combine_scores,
    pool,
)
from seap.selection.nested import Nests
from seap.selection.options import Pruning
from seap.selection.repairing import repairing
from seap.selection.search import search
from seap.selection.slopes import DESCENT, Slopes, can_descend
from seap.selection.steps import removal_order
from seap.selection.usage import keep_experts
from seap.selection.whole_layers import with_blocks
from seap.selection.within import budgets_for, in_params
from seap.text.corpus import Corpus
from seap.text.options import Calibration


@dataclass
class Ranking:
    """Scores of a dense model's units and, where damage is measured, what measures it and what it found."""

    arch: Arch
    options: Pruning
    seed: int
    statistics: dict[str, Statistics]
    scores: Scores
    judge: Judge | None = None
    curves: Curves | None = None
    repair_to: RepairTo | None = None
    slopes: Slopes | None = None
    footprint: Footprint | None = None  # where the options count something else than parameters
    notes: tuple[str, ...] = ()  # what was chosen on held-out text
    known: dict[float, Masks] = field(default_factory=dict)
    ranks: Ranks = field(default_factory=Ranks)  # that rank together

    @property
    def free(self) -> list[Axis]:
        """The axes that may be cut, with all their experts."""
        num_layers = len(self.arch.layers)
        axes = choose_axes(self.arch, self.options.cut_axes)
        return [axis for axis in axes if not is_protected(axis.layer, num_layers, self.options)]

    @cached_property
    def usage(self) -> Statistics | None:
        """How the experts are used, of all tasks together."""
        keys = [axis.usage_key for axis in self.arch.axes if axis.usage_key]
        if not keys or not self.statistics:
            return None
        parts = {task: Statistics({key: part[key] for key in keys}) for task, part in self.statistics.items()}
        return pool(parts, self.options)

    @property
    def variants(self) -> list[Axis]:
        """The free axes, each with every number of query heads that it may keep."""
        return [own for axis in self.free for own in variants(axis, self.options)]

    @property
    def least(self) -> dict[str, int]:
        return {axis.key: least_kept(axis, self.options) for axis in self.free}

    @property
    def may_go(self) -> set[str]:
        """Keys of the free axes that may lose all their units."""
        return {axis.key for axis in self.free if may_go(self.arch, axis, self.options)}

    def masks(self, sparsity: float, *, progress: bool = False) -> Masks:
        """Budgets and masks for one sparsity."""
        if sparsity not in self.known:
            self.known[sparsity] = self._masks(replace(self.options, sparsity=sparsity), progress)
        return self.known[sparsity]

    def _masks(self, asked: Pruning, progress: bool) -> Masks:
        options = in_params(self.arch, asked, self.footprint)
        method, scores = options.resolved(), self._in_steps(options, progress)
        axes = keep_experts(self.arch, options, scores, self.usage)
        budgets = self._allocated(asked, axes, self.curves, scores)
        if method.allocate == "whole-layers":
            return with_blocks(choose_units(axes, scores, budgets))
        if method.behind:
            rows = pool(self.statistics, options).rows
            return masks_behind(self.arch, rows, method.score, axes, budgets, progress=progress)
        if self.judge is not None and self.repair_to is not None and method.allocate == "search":
            start = _of(self.free, budgets)
            budgets |= search(
                self.judge,
                [axis for axis in axes if axis.key in start],
                start,
                self.least,
                options.round_to,
                self.repair_to,
                evaluations=options.spent.search_evaluations if options.sparsity else 0,
                seed=self.seed,
                progress=progress,
                curves=self.curves,
                allocated=lambda costs: _of(self.free, self._allocated(asked, axes, costs, scores)),
                slopes=self.slopes,
                descents=options.spent.descents,
                fits=lambda tried: self._fits(tried, asked),
            )
        return choose_units(axes, scores, budgets)

    def _fits(self, budgets: Budgets, asked: Pruning) -> bool:
        """Whether these widths take no more than they may; of experts, which go whole too, that isn't known by them."""
        if self.footprint is None or any(axis.usage_key for axis in self.arch.axes):
            return True
        return self.footprint.fits(budgets, asked.sparsity)

    def _in_steps(self, options: Pruning, progress: bool) -> Scores:
        """The scores; where units go in steps, those of the order in which they go."""
        if options.resolved().allocate != "iterative":
            return self.scores

        def rescore(masks: Masks) -> Scores:
            if all(mask.all() for mask in masks.values()):
                return self.scores
            return combine_scores(self.arch, options.resolved(), self.statistics, options, self.seed, masks=masks)

        return removal_order(self.arch, self.free, options, rescore, progress=progress)

    def _allocated(self, options: Pruning, axes: Sequence[Axis], costs: Costs | None, scores: Scores) -> Budgets:
        """The same on all ranks, whatever a solver's luck on each."""
        return agreed(lambda: budgets_for(self.arch, options, scores, costs, self.footprint, axes=axes), self.ranks)


def _of(axes: Sequence[Axis], budgets: Budgets) -> Budgets:
    keys = [key for axis in axes for key in (axis.key, axis.heads_key)]
    return {key: budgets[key] for key in keys if key in budgets}


def rank(
    model: Any,
    statistics: Mapping[str, Statistics],
    options: Pruning,
    *,
    general: Statistics | None = None,
    seed: int = 0,
    progress: bool = False,
    footprint: Footprint | None = None,
    ranks: Ranks = Ranks(),  # noqa: B008
) -> Ranking:
    """Score the units and, for `damage` and `search`, measure each axis's curve on held-out rows.

    statistics: task → axis key → Moments; may be empty for scores of weights alone. general: of the text to mix in. The
    options' sparsity is used only where weights or a share of general text are chosen, as they are for the networks of
    that sparsity. The ranking's own options and statistics are with what was chosen. footprint: of the model, where the
    options count something else than parameters; by default it is looked at here, with no more vocabulary than there
    is. ranks: that rank together, the statistics being those of all.
    """
    arch = describe(model)
    solving.settle_(model, options.solve_device)
    check_mixture(options, list(statistics), general=general is not None)
    ready = with_second_moments(model, statistics, options, progress=progress)
    ready, options, notes = _settled(model, ready, options, general, seed=seed, progress=progress)
    method = options.resolved()
    sensitivity = _sensitivity(arch, ready, options, seed, progress, ranks) if options.needs_sensitivity else {}
    give_back()
    own = [axis for axis in arch.axes if ranks.owns(axis.layer)]
    scores = combine_scores(arch, method, ready, options, seed, sensitivity, own, progress=progress)
    give_back()
    notes = (*notes, *loss_of(method.score, [part.contrast for part in ready.values()]))
    made = Ranking(arch, options, seed, ready, gathered(scores, ranks), notes=notes, ranks=ranks)
    if options.cost != "params":
        made.footprint = footprint or agreed(lambda: footprint_of(model, options), ranks)
    if method.allocate in MEASURED:
        pooled = pool(ready, options)
        nests = Nests(arch, made.variants, made.scores, pooled, method.compensate)
        made.repair_to = repairing(arch, method, made.scores, pooled, nests)
        if not options.closed_curves or method.allocate == "search":
            rows = probe_rows(pooled.rows, options.spent.probe_tokens, seed)
            made.judge = Judge.on(arch, rows, batch_tokens=Calibration.batch_tokens, ranks=ranks)
        made.curves = _curves(made, nests, sensitivity, progress)
        made.slopes = _slopes(made, nests)
        give_back()
    return made


def _slopes(made: Ranking, nests: Nests) -> Slopes | None:
    """What the search descends, where it does."""
    options, method = made.options, made.options.resolved()
    if method.allocate != "search" or not options.spent.descents or not can_descend(made.free):
        return None
    assert made.curves is not None
    rows = drawn_rows(split_rows(nests.statistics.rows)[0], DESCENT * options.spent.probe_tokens, made.seed)
    judge = Judge.on(made.arch, rows, batch_tokens=Calibration.batch_tokens, ranks=made.ranks, remembers=False)
    return Slopes(judge, made.free, made.curves, nests)


def _curves(made: Ranking, nests: Nests, sensitivity: Mapping[str, Tensor], progress: bool) -> Curves:
    """The damage curve of every free axis, as the options say how."""
    options, arch, least, step = made.options, made.arch, made.least, made.options.round_to
    assert made.repair_to is not None
    if not options.closed_curves:
        assert made.judge is not None
        gone = made.may_go
        return measure_curves(made.judge, made.variants, least, step, made.repair_to, may_go=gone, progress=progress)
    gone, given = made.may_go, (made.scores, nests.statistics, sensitivity, nests.compensate)
    own = [axis for axis in made.variants if made.ranks.owns(axis.layer)]
    kept = nests if options.resolved().allocate == "search" else None
    found = closed_curves(arch, own, least, step, *given, may_go=gone, nests=kept)
    return gathered(found, made.ranks)


def _settled(
    model: Any,
    statistics: dict[str, Statistics],
    options: Pruning,
    general: Statistics | None,
    *,
    seed: int,
    progress: bool,
) -> tuple[dict[str, Statistics], Pruning, tuple[str, ...]]:
    """Statistics with general text mixed in, options with weights and share chosen, and what there is to say of it."""

    def make_masks(parts: Mapping[str, Statistics], quick: Pruning) -> Masks:
        return rank(model, parts, quick, seed=seed).masks(quick.sparsity)

    if general is not None and options.mix:
        [(task, own)] = statistics.items()
        general = with_second_moments(model, {"general": general}, options, progress=progress)["general"]
        if options.mix != "auto":
            return {task: add_general(own, general, options.mix)}, options, ()
        networks = QuickNetworks.on(model, statistics, options, make_masks, seed)
        share, note = choose_share(networks, task, own, general)
        return {task: add_general(own, general, share)}, replace(options, mix=share), (note,)
    if options.worst_task and options.resolved().mask in ("general", "general-raw"):
        networks = QuickNetworks.on(model, statistics, options, make_masks, seed)
        chosen, note = choose_weights(networks, statistics, progress=progress)
        return statistics, replace(options, weights=chosen, worst_task=False), (note,)
    return statistics, options, ()


def _sensitivity(
    arch: Arch, statistics: Mapping[str, Statistics], options: Pruning, seed: int, progress: bool, ranks: Ranks
) -> Mapping[str, Tensor]:
    rows = tuple(row for part in statistics.values() for row in part.rows)
    return measure_sensitivity(
        arch,
        rows,
        num_tokens=options.spent.fisher_tokens,
        seed=seed,
        batch_tokens=Calibration.batch_tokens,
        progress=progress,
        ranks=ranks,
    )


def with_second_moments(
    model: Any, statistics: Mapping[str, Statistics], options: Pruning, *, progress: bool = False
) -> dict[str, Statistics]:
    """Statistics fit for these choices: second moments are measured on the same rows where they are missing.

    Raises UserError for statistics without rows, as seap before 0.2 wrote them.
    """
    rows_needed = options.needs_rows or options.needs_second_moments
    normed = {axis.normed_key for axis in describe(model).axes if axis.normed_key}
    ready = dict(statistics)
    for task, part in statistics.items():
        if rows_needed and not part.rows:
            raise UserError(f"the statistics of {task} hold no token rows; make them again with seap calibrate")
        if options.needs_second_moments and not (part.has_second_moments and normed <= {*part}):
            corpus = Corpus(task, part.rows, "statistics", contrast=part.contrast)
            ready[task] = calibrating.calibrate(model, corpus, Calibration(second_moments=True), progress=progress)
    return ready
