"""The whole way from a model and its tasks to a smaller model: the only file that knows the order of the stages."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from seap import calibration as calibrating
from seap.allocate import allocate, is_protected, least_kept
from seap.arch import Arch, Axis, choose_axes, describe
from seap.compensate import UNTESTED_DAMPING, Repair, Repairs, kept_inputs, mean_bias, repair_axes, ridge, weight_of
from seap.config import MEASURED, Calibration, Method, Pruning
from seap.corpus import Corpus, build_corpus, longest_sequence
from seap.damage import Judge, RepairTo, measure_curves, probe_rows
from seap.errors import UserError
from seap.mask import Masks, check_fits, choose_units
from seap.report import Before, Report, Run, build_report
from seap.score import Scores, mix, score_inputs
from seap.search import search
from seap.sequential import refit_layers
from seap.stats import Statistics, merge
from seap.surgery import check_in_memory, cut_
from seap.tasks import load_items, parse_spec, spec_source

Tasks = str | Sequence[str] | Mapping[str, Sequence[str]]


def build_corpora(model: Any, tokenizer: Any, tasks: Tasks, options: Calibration) -> dict[str, Corpus]:
    """The corpus of each task, given as `NAME`, `NAME=PATH`, several of them, or a dict of name → texts."""
    seq_len = longest_sequence(model, options)
    if not isinstance(tasks, Mapping):
        specs = [parse_spec(spec) for spec in ([tasks] if isinstance(tasks, str) else tasks)]
        names = [spec.name for spec in specs]
        if len(set(names)) < len(names):
            raise UserError(f"two tasks have one name: {', '.join(names)}; name them apart, as NAME=PATH")
        texts = {s.name: [item.text for item in load_items(s, "train")] for s in specs}
        sources = {spec.name: spec_source(spec) for spec in specs}
    else:
        if any(isinstance(given, str) for given in tasks.values()):
            raise UserError("task as a dict maps each name to a list of texts, got one text; put it in a list")
        texts = {name: list(given) for name, given in tasks.items()}
        sources = dict.fromkeys(texts, "given in memory")
    return {
        name: build_corpus(name, given, tokenizer, options, source=sources[name], seq_len=seq_len)
        for name, given in texts.items()
    }


def calibrate(
    model: Any, tokenizer: Any, task: Tasks, *, progress: bool = True, **options: Any
) -> dict[str, Statistics]:
    """Measure each task's activations: `seap.calibrate(model, tokenizer, "gsm8k", num_texts=200)`.

    options are those of `seap.config.Calibration`. Returns task → axis key → Moments.
    """
    settings = Calibration(**options)
    corpora = build_corpora(model, tokenizer, task, settings)
    return {name: calibrating.calibrate(model, corpus, settings, progress=progress) for name, corpus in corpora.items()}


def check_mixture(options: Pruning, names: Sequence[str]) -> None:
    """Refuse tasks that the mask can't be made of, and weights that name none of them or leave nothing."""
    if options.resolved().mask == "task" and len(names) > 1:
        raise UserError(
            f"a task mask is of one task, got {', '.join(names)}; use --method seap-gen or --mask general "
            "for one mask that serves them all, or prune once per task"
        )
    weights = options.weights or {}
    if names and set(weights) - set(names):
        strange = ", ".join(sorted(set(weights) - set(names)))
        raise UserError(f"--weights names {strange}, the tasks are {', '.join(names)}")
    if weights and names and not any(weights.get(name, 1.0) for name in names):
        raise UserError("--weights are all 0, which leaves nothing to score by; give one task a weight above 0")


def combine_scores(
    arch: Arch, method: Method, statistics: Mapping[str, Statistics], options: Pruning, seed: int
) -> Scores:
    """One score per input: of the one task, mixed over several, or of all text pooled."""
    check_mixture(options, list(statistics))
    if method.mask in ("general", "general-raw") and statistics:
        each = {task: score_inputs(arch, part, method.score, seed=seed) for task, part in statistics.items()}
        return mix(each, options.weights, normalise=method.mask == "general")
    pooled = merge(statistics.values()) if statistics else None
    return score_inputs(arch, pooled, method.score, seed=seed)


def make_masks(
    model: Any, statistics: Mapping[str, Statistics], options: Pruning, *, seed: int = 0, progress: bool = False
) -> Masks:
    """Scores → budgets → masks. statistics: task → axis key → Moments (may be empty for scores of weights alone)."""
    arch, method = describe(model), options.resolved()
    statistics = with_second_moments(model, statistics, options, progress=progress)
    scores = combine_scores(arch, method, statistics, options, seed)
    if method.allocate not in MEASURED or not options.sparsity:
        return choose_units(arch.axes, scores, allocate(arch, options, scores))
    pooled = merge(statistics.values())
    axes = choose_axes(arch, options.axes)
    least = {axis.key: least_kept(axis, options) for axis in axes}
    rows = probe_rows(pooled.rows, options.probe_tokens, seed)
    repair_to = _repairing(arch, method, scores, pooled)
    judge = Judge.on(arch, rows, batch_tokens=Calibration.batch_tokens)
    free = [axis for axis in axes if not is_protected(axis.layer, len(arch.layers), options)]
    curves = measure_curves(judge, free, least, options.round_to, repair_to, progress=progress)
    budgets = allocate(arch, options, scores, curves)
    if method.allocate == "search":
        trials = options.search_evaluations
        found = search(
            judge, free, budgets, least, options.round_to, repair_to, evaluations=trials, seed=seed, progress=progress
        )
        budgets |= found
    return choose_units(arch.axes, scores, budgets)


def _repairing(arch: Arch, method: Method, scores: Scores, pooled: Statistics) -> RepairTo:
    """How an axis cut to a width is compensated while damage is measured; each answer is computed once."""
    known: dict[tuple[str, int], tuple[Tensor, Repair | None]] = {}

    def repair_to(axis: Axis, width: int) -> tuple[Tensor, Repair | None]:
        if (axis.key, width) not in known:
            keep = kept_inputs(axis, choose_units([axis], scores, {axis.key: width})[axis.key])
            weight, repair = weight_of(arch, axis), None
            if method.compensate == "ridge":
                repair = ridge(weight, pooled[axis.key], keep, UNTESTED_DAMPING)
            elif method.compensate == "bias":
                repair = mean_bias(weight, pooled[axis.key], keep)
            known[axis.key, width] = keep, repair
        return known[axis.key, width]

    return repair_to


def make_repairs(
    model: Any, masks: Masks, statistics: Mapping[str, Statistics], options: Pruning, *, progress: bool = False
) -> Repairs:
    """What the kept weights do about the removed units, layer after layer where the method is sequential."""
    arch, method = describe(model), options.resolved()
    if method.compensate == "none" or all(mask.all() for mask in masks.values()):
        return {}
    pooled = merge(statistics.values())
    repairs = repair_axes(arch, masks, pooled, method.compensate)
    if not method.sequential:
        return repairs
    return refit_layers(arch, masks, repairs, pooled.rows, batch_tokens=Calibration.batch_tokens, progress=progress)


def with_second_moments(
    model: Any, statistics: Mapping[str, Statistics], options: Pruning, *, progress: bool = False
) -> dict[str, Statistics]:
    """Statistics fit for these choices: second moments are measured on the same rows where they are missing.

    Raises UserError for statistics without rows, as seap before 0.2 wrote them.
    """
    method = options.resolved()
    rows_needed = method.allocate in MEASURED or method.sequential or options.needs_second_moments
    ready = dict(statistics)
    for task, part in statistics.items():
        if rows_needed and not part.rows:
            raise UserError(f"the statistics of {task} hold no token rows; make them again with seap calibrate")
        if options.needs_second_moments and not part.has_second_moments:
            corpus = Corpus(task, part.rows, "statistics")
            ready[task] = calibrating.calibrate(model, corpus, Calibration(second_moments=True), progress=progress)
    return ready


def prune(
    model: Any,
    tokenizer: Any = None,
    *,
    task: Tasks | None = None,
    statistics: Mapping[str, Statistics] | None = None,
    masks: Masks | None = None,
    progress: bool = True,
    **options: Any,
) -> Report:
    """Prune a model in place: `seap.prune(model, tokenizer, task="gsm8k=data/gsm8k", sparsity=0.5)`.

    task: `NAME`, `NAME=PATH`, a list of them, or a dict of name → texts. statistics (of `seap.calibrate`) or masks (of
    `seap mask`) take the place of the stages that make them. Other options are the fields of `seap.config.Pruning` and
    `seap.config.Calibration`. The model is untouched when anything is refused.

    Afterwards `model.save_pretrained` and `push_to_hub` work as for any model.
    """
    started = time.perf_counter()
    run = Run(*split_options(options), statistics=dict(statistics or {}))
    run.notes += check(model, run.pruning, masks)
    measure_(run, model, tokenizer, task, masks, progress=progress)
    if run.statistics and (masks is None or run.pruning.resolved().compensate != "none"):
        run.statistics = with_second_moments(model, run.statistics, run.pruning, progress=progress)
    seed = run.calibration.seed
    made = make_masks(model, run.statistics, run.pruning, seed=seed, progress=progress) if masks is None else masks
    repairs = make_repairs(model, made, run.statistics, run.pruning, progress=progress)
    run.notes += notes_on(repairs, run.pruning)
    before = Before.of(model, made)
    cut_(model, made, repairs)
    asked = masks is None or "sparsity" in options
    target = run.pruning.sparsity if asked else before.realised_sparsity
    return build_report(model, before, made, run, target=target, seconds=time.perf_counter() - started)


def notes_on(repairs: Repairs, options: Pruning) -> list[str]:
    """Where reconstruction fell back on the bias."""
    fell_back = [key for key, repair in repairs.items() if repair.about == "bias"]
    if options.resolved().compensate != "ridge" or not fell_back:
        return []
    return [f"reconstruction was no better than the bias on held-out text for {', '.join(fell_back)}"]


def measure_(run: Run, model: Any, tokenizer: Any, task: Tasks | None, masks: Masks | None, *, progress: bool) -> None:
    """Calibrate where the run needs statistics and has none; note what has no effect."""
    settings = run.calibration
    wanted = replace(settings, second_moments=settings.second_moments or run.pruning.needs_second_moments)
    if not run.statistics and needs_text(run.pruning, masks):
        if task is None or tokenizer is None:
            raise UserError("this method measures activations: give a tokenizer and a task (NAME or NAME=PATH)")
        run.corpora = build_corpora(model, tokenizer, task, settings)
        check_mixture(run.pruning, list(run.corpora))
        for name, corpus in run.corpora.items():
            run.statistics[name] = calibrating.calibrate(model, corpus, wanted, progress=progress)
        if settings.second_moments and not run.pruning.needs_second_moments:
            run.notes.append("--second-moments has no effect: no stage of this run uses them")
        return
    for part in run.statistics.values():
        check_sizes(describe(model), part)
    if task is not None:
        run.notes.append("the task's text was not used: nothing here measures activations anew")
    changed = [f.name for f in fields(Calibration) if getattr(settings, f.name) != f.default and f.name != "seed"]
    run.notes += [f"--{name.replace('_', '-')} has no effect: nothing here is measured anew" for name in changed]


def check_sizes(arch: Arch, statistics: Statistics) -> None:
    """Raise UserError unless the statistics have this model's axes."""
    expected = {axis.key: axis.num_inputs for axis in arch.axes}
    found = {key: moments.mean.numel() for key, moments in statistics.items()}
    if expected != found:
        key = sorted(dict(expected.items() ^ found.items()))[0]
        got, own = found.get(key, "no"), expected.get(key, "no")
        raise UserError(f"the statistics aren't this model's: {key} has {got} inputs in them, {own} in the model")


def split_options(options: Mapping[str, Any]) -> tuple[Pruning, Calibration]:
    """Keyword arguments → the two dataclasses that own them."""
    ours, theirs = ({f.name for f in fields(kind)} for kind in (Pruning, Calibration))
    strange = options.keys() - ours - theirs
    if strange:
        raise TypeError(f"unknown options {sorted(strange)}; known: {sorted(ours | theirs)}")
    pruning = Pruning(**{name: value for name, value in options.items() if name in ours})
    return pruning, Calibration(**{name: value for name, value in options.items() if name in theirs})


def needs_text(options: Pruning, masks: Masks | None) -> bool:
    """Whether any stage of this run looks at activations."""
    return options.resolved().compensate != "none" if masks is not None else options.needs_text


def check(model: Any, options: Pruning, masks: Masks | None = None) -> list[str]:
    """Refuse what can't be done before any text is read; return what the user should know about this run."""
    check_in_memory(model)
    arch = describe(model)
    if masks is None:
        allocate(arch, options, {axis.key: torch.zeros(axis.num_inputs, dtype=torch.float64) for axis in arch.axes})
    else:
        check_fits(arch, masks)
    notes = [f"{name} has no effect with these choices" for name in options.unused()]
    if not arch.can_cut_heads and options.axes is None and options.sparsity > 0:
        notes.append(
            f"only MLP channels are cut: the heads of {arch.family.model_type} stay, {arch.family.heads_refused}"
        )
    if getattr(model.config, "seap", None):
        notes.append("the model is already pruned; the sparsity is of what is left of it")
    return notes
