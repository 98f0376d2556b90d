"""Prune and eval over files: what can be refused is refused before anything long starts."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch

from seap import checkpoint
from seap.calibration import check_same_model, identity
from seap.config import Calibration, Evaluation, Pruning
from seap.config_promise import Promise
from seap.config_streaming import Streaming
from seap.errors import UserError
from seap.evaluate import evaluate, load_test, prepare
from seap.files import check_output, write_json
from seap.likeness import Reference
from seap.mask import Masks, compose, load_masks
from seap.mixture import check_mixture
from seap.promised import load_tests, prune_to_promise
from seap.pruning import needs_text, prune, split_options
from seap.report import Report
from seap.stages import check_tasks, read_statistics
from seap.streaming import check_streamable
from seap.tasks import load_items, parse_spec


def prune_to_folder(
    name: str,
    out: Path,
    *,
    tasks: Sequence[str] = (),
    stats_files: Sequence[Path] = (),
    mask_file: Path | None = None,
    general: str | None = None,
    overwrite: bool = False,
    progress: bool = True,
    loading: Mapping[str, Any] | None = None,
    save_dtype: str | None = None,
    promise: Promise | None = None,
    evaluation: Evaluation | None = None,
    streaming: Streaming = Streaming(),  # noqa: B008
    **options: Any,
) -> Report:
    """`seap prune`: refuse what can be refused, load, prune, and save the folder whole or not at all.

    loading: the keyword arguments of `seap.load`. save_dtype: of the weights on disk; by default that of `loading`, the
    checkpoint's own where that is auto. promise: in place of a sparsity, measured as `evaluation` says.
    """
    check_output(out, overwrite=overwrite, source=checkpoint.resolve_model(name))
    stored = read_statistics(stats_files)
    given, about_mask = load_masks(mask_file) if mask_file else (None, {})
    options = options_of_mask(options, about_mask) if mask_file else options
    pruning, _ = split_options(options)
    check_texts(tasks, pruning, needed=not stored and needs_text(pruning, given), stored=stored, general=general)
    if promise is not None:
        check_promisable(pruning, mask_file, streaming)
        load_tests(tasks, promise, evaluation or Evaluation())
    if streaming.stream:
        check_streamable(pruning)
    with checkpoint.loaded(name, out, loading or {}, save_dtype, streaming) as (model, tokenizer):
        check_same_model(stats_files, [about for _, about in stored.values()], model)
        if mask_file:
            check_same_model([mask_file], [about_mask], model)
        least = 0.0 if promise is not None else pruning.sparsity
        checkpoint.check_space(out, int(checkpoint.weight_bytes(model) * (1 - least)))
        made_with, before = identity(model), checkpoint.previous(name, model)
        statistics = {task: part for task, (part, _) in stored.items()} or None
        shared: dict[str, Any] = {"statistics": statistics, "progress": progress}
        if promise is not None:
            asked = {name: value for name, value in options.items() if name != "sparsity"}
            asked |= {"promise": promise, "evaluation": evaluation}
            report = prune_to_promise(model, tokenizer, task=tasks, **shared, **asked)
        else:
            task = list(tasks) or None
            report = prune(model, tokenizer, task=task, masks=given, general=general, **shared, **options)
        if mask_file:
            tokens = report.num_tokens or about_mask["num_tokens"]
            report = replace(report, tasks=tuple(about_mask["tasks"]), num_tokens=tokens)
        if not streaming.stream:
            model.to(getattr(torch, save_dtype) if save_dtype else model.config.dtype or model.dtype)
        save_pruned(model, tokenizer, report, out, made_with, before)
        return report


def check_texts(
    tasks: Sequence[str], pruning: Pruning, *, needed: bool, stored: Collection[str], general: str | None
) -> None:
    """Refuse texts that can't be read or mixed; `needed` says whether the tasks' are, `stored` names statistics."""
    check_tasks(tasks, needed=needed)
    names = [parse_spec(spec).name for spec in tasks] if needed else list(stored)
    check_mixture(pruning, names, general=general is not None)
    if general is not None:
        load_items(parse_spec(general), "train")


def check_promisable(pruning: Pruning, mask_file: Path | None, streaming: Streaming) -> None:
    """Refuse what a promise can't be combined with."""
    if pruning.mix:
        raise UserError("--mix can't be combined with a promise yet; give a --sparsity, or leave --mix out")
    if mask_file:
        raise UserError("--mask-file has its sparsity already, so no promise can choose it; leave one of them out")
    if streaming.stream:
        raise UserError("a promise is measured with the whole model in memory; give a --sparsity with --stream")


def options_of_mask(options: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
    """A mask's own options in place of this run's. Raises UserError for an option that the mask has settled."""
    settled = {name: value for name, value in about["options"].items() if name in {f.name for f in fields(Pruning)}}
    defaults = asdict(Pruning())
    for name, value in options.items():
        if name in settled and name != "compensate" and value not in (defaults[name], settled[name]):
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"{flag} {value} has no effect with --mask-file, whose mask is made already; leave it out")
    if settled["axes"] is not None:
        settled["axes"] = tuple(settled["axes"])
    own = {name: value for name, value in options.items() if name not in settled}
    compensate = options.get("compensate") or settled["compensate"]
    return settled | own | {"compensate": compensate, "mix": 0.0, "worst_task": False}


def save_pruned(
    model: Any,
    tokenizer: Any,
    report: Report,
    out: Path,
    made_with: Mapping[str, Any],
    before: tuple[Masks, Mapping[str, Any]] | None,
) -> None:
    """Save a checkpoint whose masks are over the original model's units, whatever was pruned before."""
    told, masks = report.to_dict(), report.masks
    about: dict[str, Any] = {**made_with, "seed": told["calibration"]["seed"]}
    told_too = ("tasks", "method", "options", "realised_sparsity", "num_tokens", "versions", "key")
    about |= {name: told[name] for name in told_too} | {"sparsity": report.target_sparsity}
    if before is not None:
        masks = compose(before[0], report.masks)
        kept = sum(int(mask.sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())
        earlier = {name: before[1].get(name) for name in ("model", "tasks", "method", "realised_sparsity")}
        told["pruned_before"] = about["pruned_before"] = earlier | {"units_kept_of_original": kept}
    checkpoint.save(model, tokenizer, masks, told | {"mask": about}, out)


def evaluate_tasks(
    name: str,
    tasks: Sequence[str],
    options: Evaluation,
    *,
    dense: str | None = None,
    loading: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """`seap eval`: one row per task, its tests read before the model is loaded."""
    if not tasks:
        raise UserError("nothing to measure: add --task NAME or --task NAME=PATH, or --harness TASKS")
    tests = [load_test(spec, options) for spec in tasks]
    model, tokenizer = checkpoint.load_for_work(name, **(loading or {}))
    reference = checkpoint.load_for_work(dense, **(loading or {}))[0] if dense else None
    if reference is not None and reference.config.vocab_size != model.config.vocab_size:
        raise UserError(f"--dense {dense} has another vocabulary than {name}; name the model it was pruned from")
    exams = [prepare(test, model, tokenizer, options) for test in tests]
    like = None if reference is None else Reference(reference, limit=0)  # each test comes once: nothing to keep
    return [evaluate(model, exam, reference=like) for exam in exams]


def run_harness(
    name: str, names: Sequence[str], *, data: Path | None, loading: Mapping[str, Any] | None = None, **limits: Any
) -> list[dict[str, Any]]:
    """`seap eval --harness`: standard tasks by lm-evaluation-harness."""
    from seap import harness

    harness.check(names, data, **limits)
    model, tokenizer = checkpoint.load_for_work(name, **(loading or {}))
    return harness.evaluate(model, tokenizer, names, data=data, **limits)


def analyze_tasks(
    name: str,
    tasks: Sequence[str],
    out: Path,
    calibration: Calibration,
    *,
    loading: Mapping[str, Any] | None = None,
    progress: bool = True,
    **options: Any,
) -> dict[str, Any]:
    """`seap analyze`: hidden states, activations, overlap and stability of masks, in one result file."""
    from seap.analyze import analyze, check_specs

    check_specs(tasks)
    model, tokenizer = checkpoint.load_for_work(name, **(loading or {}))
    result = analyze(model, tokenizer, list(tasks), calibration=calibration, progress=progress, **options)
    write_json(out, result)
    return result
