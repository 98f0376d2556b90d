"""The whole way from a model and its tasks to a smaller model: the only file that knows the order of the stages."""

import time
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import partial
from typing import Any, Unpack

import torch

from seap.activations import distributed
from seap.activations.ranks import Ranks, agreed
from seap.activations.stats import Statistics
from seap.allocation import give_back
from seap.compensation.compensate import Repairs, repair_axes
from seap.errors import UserError
from seap.models import solving
from seap.models.arch import describe
from seap.models.axes import Masks
from seap.models.decoders import refuse_wrapped
from seap.models.residency import streamed
from seap.pruning import probe, targets
from seap.pruning.checks import check as check
from seap.pruning.checks import needs_text as needs_text
from seap.pruning.checks import split_options as split_options
from seap.pruning.checks import with_rounding as with_rounding
from seap.pruning.damage import Dense, heard
from seap.pruning.notes import notes_on
from seap.pruning.provenance import note_, origin_of
from seap.pruning.ready import check_in_memory, check_sizes, check_together
from seap.pruning.report import Before, Report, Run, build_report
from seap.pruning.sequential import refit_layers
from seap.pruning.streaming import cut_streamed_
from seap.pruning.surgery import cut_
from seap.pruning.texts import Tasks as Tasks
from seap.pruning.texts import build_corpora as build_corpora
from seap.pruning.vocabulary import check_whole_first, vocabulary_cut
from seap.selection.footprint import Footprint
from seap.selection.keywords import PruneKeywords
from seap.selection.mask import budgets_of
from seap.selection.mixture import check_mixture, pool
from seap.selection.options import Pruning
from seap.selection.ranking import Ranking, rank, with_second_moments
from seap.text.corpus import Corpus
from seap.text.keywords import CalibrationKeywords
from seap.text.options import Calibration
from seap.vocabulary import options as vocabularies


def calibrate(
    model: Any, tokenizer: Any, task: Tasks, *, progress: bool = True, **options: Unpack[CalibrationKeywords]
) -> dict[str, Statistics]:
    """Measure each task's activations: `seap.calibrate(model, tokenizer, "gsm8k", num_texts=200)`.

    options are those of `seap.text.options.Calibration`. Returns task → axis key → Moments.
    """
    settings = Calibration(**options)
    return calibrate_corpora(model, build_corpora(model, tokenizer, task, settings), settings, progress=progress)


def with_what_is_needed(calibration: Calibration, options: Pruning) -> Calibration:
    """With second moments where a stage of the run looks at them."""
    return replace(calibration, second_moments=calibration.second_moments or options.needs_second_moments)


def calibrate_corpora(
    model: Any,
    corpora: Mapping[str, Corpus],
    options: Calibration,
    *,
    progress: bool = True,
    ranks: Ranks = Ranks(),  # noqa: B008
) -> dict[str, Statistics]:
    """The statistics of each."""
    return {
        name: distributed.calibrate(model, corpus, options, ranks, progress=progress)
        for name, corpus in corpora.items()
    }


def make_masks(
    model: Any,
    statistics: Mapping[str, Statistics],
    options: Pruning,
    *,
    general: Statistics | None = None,
    footprint: Footprint | None = None,
    seed: int = 0,
    progress: bool = False,
) -> tuple[Masks, Pruning]:
    """Scores → budgets → masks, and the options with what was chosen on held-out text.

    statistics: task → axis key → Moments (may be empty for scores of weights alone). general: of text to mix in.
    """
    ranking = rank(model, statistics, options, general=general, footprint=footprint, seed=seed, progress=progress)
    return ranking.masks(options.sparsity, progress=progress), ranking.options


def make_repairs(
    model: Any,
    masks: Masks,
    statistics: Mapping[str, Statistics],
    options: Pruning,
    *,
    progress: bool = False,
    ranks: Ranks = Ranks(),  # noqa: B008
) -> Repairs:
    """What the kept weights do about the removed units, layer after layer where the method is sequential."""
    arch, method = describe(model), options.resolved()
    if method.compensate == "none" or all(mask.all() for mask in masks.values()):
        return {}
    solving.settle_(model, options.solve_device)
    pooled = pool(statistics, options)

    def repairs_of(layer: int) -> Repairs:
        return repair_axes(arch, masks, pooled, method.compensate, layer=layer)

    if not method.sequential:
        repairs: Repairs = {}
        for layer in range(len(arch.layers)):
            repairs |= repairs_of(layer)
            give_back()
        return repairs
    size = Calibration.batch_tokens
    return refit_layers(arch, masks, repairs_of, pooled.rows, batch_tokens=size, progress=progress, ranks=ranks)


def prune(
    model: Any,
    tokenizer: Any = None,
    *,
    task: Tasks | None = None,
    statistics: Mapping[str, Statistics] | None = None,
    masks: Masks | None = None,
    ranking: Ranking | None = None,
    general: str | None = None,
    measure_damage: bool = True,
    save_dtype: str | torch.dtype | None = None,
    progress: bool = True,
    ranks: Ranks = Ranks(),  # noqa: B008
    **options: Unpack[PruneKeywords],
) -> Report:
    """Prune a model in place: `seap.prune(model, tokenizer, task="gsm8k=data/gsm8k", sparsity=0.5)`.

    task: `NAME`, `NAME=PATH`, a list of them, or a dict of name → texts. statistics (of `seap.calibrate`) or masks (of
    `seap mask`) take the place of the stages that make them; so does a ranking (of `seap.selection.ranking.rank`, from
    the dense model that this one is a copy of), which serves many sparsities. ranks: the processes that do this
    together, each with a copy of the model; each ends with it pruned (but of a streamed one only rank 0). Other options
    are the fields of `seap.selection.options.Pruning`, `seap.text.options.Calibration` and
    `seap.vocabulary.options.Vocabulary`; with `vocabulary` the tokenizer is made smaller too, in place. Both are
    untouched when anything is refused. measure_damage: see what it does to the loss of a thousand tokens of the task's
    held-out text (`damage.py`). save_dtype: of the weights on
    disk, whose bytes `target_size` is about; by default the model's own.

    Afterwards `model.save_pretrained` and `push_to_hub` work as for any model, and write what is known of the pruning
    too (seap.json, the masks, a card), also when the model was trained in between.
    """
    started = time.perf_counter()
    check_in_memory(model)
    wanted, others = vocabularies.vocabulary_of(options)
    if wanted.is_cut:
        refuse_wrapped(model, f"--vocabulary {wanted.vocabulary}", "leave it out: images have tokens of their own")
    if masks is None and ranking is None:
        targets.check_one_amount(others)
    run = Run(*split_options(others), statistics=dict(ranking.statistics if ranking else statistics or {}))
    run.vocabulary, progress = wanted, progress and ranks.is_first
    check_whole_first(model, run, ranks)
    run.pruning, noted = agreed(lambda: with_rounding(model, run.pruning), ranks)
    targets.look_(model, run, masks, ranking, save_dtype, ranks)
    seen = targets.foreseen(run.footprint, wanted, model.config.vocab_size)
    run.notes += [
        *noted,
        *check(model, run.pruning, masks, seen),
        *(f"{name} has no effect" for name in wanted.unused()),
    ]
    check_together(run.pruning, ranks)
    asked, origin = masks is None or "sparsity" in options, origin_of(model)
    listens = measure_damage and ranks.is_first
    given = masks is not None
    with vocabulary_cut(model, tokenizer, task, general, run, progress=progress, is_masked=given) as finished:
        targets.look_again_(model, run)
        if wanted.is_cut and masks is None and targets.is_met(run):
            report = leave_layers(model, run, started)
        else:
            measure_(run, model, tokenizer, task, masks, general, progress=progress, ranks=ranks)
            how: dict[str, Any] = {"asked": asked, "started": started, "progress": progress, "ranks": ranks}
            heard_now = partial(heard, model, tokenizer, task) if listens else lambda *_: None
            report = cut_layers_(model, run, masks, ranking, heard_now, **how)
        report = replace(finished(report), origin=origin)
        note_(model, report.to_dict(), report.masks, origin)
    return report


def leave_layers(model: Any, run: Run, started: float) -> Report:
    """The report on a model of which only the vocabulary goes; its class stays a stock one."""
    whole = {axis.key: torch.ones(axis.entries, dtype=torch.bool) for axis in describe(model).axes}
    before = Before.of(model, whole)
    took, aimed = time.perf_counter() - started, targets.told(model, run, {})
    return build_report(model, before, whole, run, target=0.0, seconds=took, aimed=aimed)


def cut_layers_(
    model: Any,
    run: Run,
    masks: Masks | None,
    ranking: Ranking | None,
    heard: Callable[[Mapping[str, Statistics], Calibration], Dense | None],
    *,
    asked: bool,
    started: float,
    progress: bool,
    ranks: Ranks,
) -> Report:
    """Choose what stays of the layers, where it isn't given, and cut. asked: whether a sparsity was.

    heard: what the dense model says, for the damage.
    """
    if run.statistics and (masks is None or run.pruning.resolved().compensate != "none"):
        run.statistics = with_second_moments(model, run.statistics, run.pruning, progress=progress)
    if masks is not None:
        made = masks
    else:
        seed = run.calibration.seed
        how: dict[str, Any] = {"general": run.general, "seed": seed, "progress": progress, "ranks": ranks}
        ranking = ranking or rank(model, run.statistics, run.pruning, footprint=run.footprint, **how)
        made = ranking.masks(run.pruning.sparsity, progress=progress)
        targets.check_met(run.footprint, model, made, run.pruning)
        run.statistics, run.notes = ranking.statistics, [*run.notes, *ranking.notes]
        run.pruning = replace(ranking.options, sparsity=run.pruning.sparsity)
        del ranking  # and what the search looked at, unless another sparsity wants it
    give_back()
    before, budgets = Before.of(model, made), budgets_of(describe(model).axes, made)
    dense = heard(run.statistics, run.calibration)
    if streamed(model) is None:
        repairs = make_repairs(model, made, run.statistics, run.pruning, progress=progress, ranks=ranks)
        expected = probe.before_cut(describe(model), made, repairs)
        cut_(model, made, repairs)
        give_back()
        probe.check_cut(model, expected)
    else:
        solving.settle_(model, run.pruning.solve_device)
        source = pool(run.statistics, run.pruning) if run.statistics else Statistics()
        repairs = cut_streamed_(model, made, source, run.pruning.resolved(), progress=progress, ranks=ranks)
    run.notes += notes_on(repairs, run.pruning, before.realised_sparsity, chosen=masks is None)
    target = run.pruning.sparsity if asked else before.realised_sparsity
    found = None if dense is None else dense.damage_to(model)
    took = time.perf_counter() - started
    aimed = targets.told(model, run, budgets)
    return build_report(model, before, made, run, target=target, seconds=took, damage=found, aimed=aimed)


def measure_(
    run: Run,
    model: Any,
    tokenizer: Any,
    task: Tasks | None,
    masks: Masks | None,
    general: str | None,
    *,
    progress: bool,
    ranks: Ranks,
) -> None:
    """Calibrate where the run needs statistics and has none; note what has no effect."""
    settings = run.calibration
    if not run.statistics and needs_text(run.pruning, masks):
        if task is None or tokenizer is None:
            raise UserError("this method measures activations: give a tokenizer and a task (NAME or NAME=PATH)")
        wanted = with_what_is_needed(settings, run.pruning)
        run.corpora = build_corpora(model, tokenizer, task, settings)
        check_mixture(run.pruning, list(run.corpora), general=general is not None)
        run.statistics = calibrate_corpora(model, run.corpora, wanted, progress=progress, ranks=ranks)
        give_back()
        if general is not None and run.pruning.mix:
            [corpus] = build_corpora(model, tokenizer, general, settings).values()
            run.general = distributed.calibrate(model, corpus, wanted, ranks, progress=progress)
        elif general is not None and not run.vocabulary.is_cut:
            run.notes.append("--general has no effect without --mix")
        if settings.second_moments and not run.pruning.needs_second_moments:
            run.notes.append("--second-moments has no effect: no stage of this run uses them")
        return
    for part in run.statistics.values():
        check_sizes(describe(model), part)
    if task is not None:
        run.notes.append("the task's text was not used: nothing here measures activations anew")
    changed = [f.name for f in fields(Calibration) if getattr(settings, f.name) != f.default and f.name != "seed"]
    run.notes += [f"--{name.replace('_', '-')} has no effect: nothing here is measured anew" for name in changed]
