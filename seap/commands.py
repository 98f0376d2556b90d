"""The stages over files, one function per command: what can be refused is refused before anything long starts."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch

from seap import checkpoint
from seap.arch import describe
from seap.calibration import about_statistics, check_same_model, identity
from seap.calibration import calibrate as measure
from seap.config import Calibration, Evaluation, Pruning
from seap.config_promise import Promise
from seap.config_streaming import Streaming
from seap.environment import versions
from seap.errors import UserError
from seap.evaluate import evaluate, load_test, prepare
from seap.files import check_output, digest, folder_beside, is_current, write_json
from seap.likeness import Reference
from seap.mask import Masks, compose, load_masks, realised_sparsity, save_masks
from seap.mixture import check_mixture
from seap.promised import load_tests, prune_to_promise
from seap.pruning import build_corpora, check, make_masks, needs_text, prune, split_options
from seap.report import Report, choices
from seap.stats import Statistics, load_statistics, merge, save_statistics
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
    needed = not stored and needs_text(pruning, given)
    check_tasks(tasks, needed=needed)
    names = [parse_spec(spec).name for spec in tasks] if needed else list(stored)
    check_mixture(pruning, names, general=general is not None)
    if general is not None:
        load_items(parse_spec(general), "train")
    if promise is not None:
        if pruning.mix:
            raise UserError("--mix can't be combined with a promise yet; give a --sparsity, or leave --mix out")
        if mask_file:
            raise UserError("--mask-file has its sparsity already, so no promise can choose it; leave one of them out")
        if streaming.stream:
            raise UserError("a promise is measured with the whole model in memory; give a --sparsity with --stream")
        load_tests(tasks, promise, evaluation or Evaluation())
    if streaming.stream:
        check_streamable(pruning)
    with _loaded(name, out, loading or {}, save_dtype, streaming) as (model, tokenizer):
        check_same_model(stats_files, [about for _, about in stored.values()], model)
        if mask_file:
            check_same_model([mask_file], [about_mask], model)
        least = 0.0 if promise is not None else pruning.sparsity
        checkpoint.check_space(out, int(checkpoint.weight_bytes(model) * (1 - least)))
        made_with, before = identity(model), checkpoint.previous(name, model)
        statistics = {task: part for task, (part, _) in stored.items()} or None
        if promise is not None:
            asked = {name: value for name, value in options.items() if name != "sparsity"}
            asked |= {"promise": promise, "evaluation": evaluation}
            report = prune_to_promise(model, tokenizer, task=tasks, statistics=statistics, progress=progress, **asked)
        else:
            task = list(tasks) or None
            report = prune(
                model,
                tokenizer,
                task=task,
                statistics=statistics,
                masks=given,
                general=general,
                progress=progress,
                **options,
            )
        if mask_file:
            tokens = report.num_tokens or about_mask["num_tokens"]
            report = replace(report, tasks=tuple(about_mask["tasks"]), num_tokens=tokens)
        if not streaming.stream:
            model.to(getattr(torch, save_dtype) if save_dtype else model.config.dtype or model.dtype)
        save_pruned(model, tokenizer, report, out, made_with, before)
        return report


@contextlib.contextmanager
def _loaded(
    name: str, out: Path, loading: Mapping[str, Any], save_dtype: str | None, streaming: Streaming
) -> Iterator[tuple[Any, Any]]:
    """Model and tokenizer, in memory or to be streamed with a folder beside `out` for what is finished."""
    if not streaming.stream:
        checkpoint.check_memory(name)
        yield checkpoint.load_for_work(name, **loading)
        return
    with folder_beside(out) as shards:
        yield checkpoint.load_streamed(
            name, shards, offload_dir=streaming.offload_dir, save_dtype=save_dtype, **loading
        )


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


def read_statistics(paths: Sequence[Path]) -> dict[str, tuple[Statistics, dict[str, Any]]]:
    """Statistics files by task. Raises UserError for two of one task."""
    stored: dict[str, tuple[Statistics, dict[str, Any]]] = {}
    for path in paths:
        part, about = load_statistics(path)
        if about["task"] in stored:
            raise UserError(f"two files are of task {about['task']}; add them up first: seap merge … --out FILE")
        stored[about["task"]] = part, about
    return stored


def check_tasks(tasks: Sequence[str], *, needed: bool) -> None:
    """Read the tasks' texts once before the model is loaded, so that bad input is refused at once."""
    if needed and not tasks:
        raise UserError(
            "this run measures activations (for its score or its compensation): add --task NAME, --task NAME=PATH or "
            "--stats FILE"
        )
    for spec in tasks:
        load_items(parse_spec(spec), "train")


def calibrate_to_files(
    name: str,
    tasks: Sequence[str],
    out: Path,
    options: Calibration,
    *,
    loading: Mapping[str, Any] | None = None,
    streaming: Streaming = Streaming(),  # noqa: B008
    progress: bool = True,
) -> list[dict[str, Any]]:
    """`seap calibrate`: one `OUT/TASK.safetensors` per task; a file with the same key is left as it is."""
    check_tasks(tasks, needed=True)
    with _loaded(name, out, loading or {}, None, streaming) as (model, tokenizer):
        return _calibrate_to_files(model, tokenizer, tasks, out, options, progress=progress)


def _calibrate_to_files(
    model: Any, tokenizer: Any, tasks: Sequence[str], out: Path, options: Calibration, *, progress: bool
) -> list[dict[str, Any]]:
    corpora = build_corpora(model, tokenizer, list(tasks), options)
    entries = []
    planned = {task: about_statistics(model, corpus, options) for task, corpus in corpora.items()}
    there = {task: is_current(out / f"{task}.safetensors", about["key"]) for task, about in planned.items()}
    for task, corpus in corpora.items():
        path = out / f"{task}.safetensors"
        if not there[task]:
            save_statistics(path, measure(model, corpus, options, progress=progress), planned[task])
        entries.append(planned[task] | {"path": str(path), "skipped": there[task]})
    return entries


def mask_to_file(
    name: str,
    stats_files: Sequence[Path],
    out: Path,
    options: Pruning,
    *,
    general: Path | None = None,
    seed: int = Calibration.seed,
    loading: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """`seap mask`: scores, budgets and masks from statistics files. general: those of text to mix in."""
    stored = read_statistics(stats_files)
    if options.needs_scores_of_activations and not stored:
        raise UserError(f"score {options.resolved().score} needs statistics: name at least one file of seap calibrate")
    check_mixture(options, list(stored), general=general is not None)
    mixed_in = read_statistics([general] if general else [])
    model, _ = checkpoint.load_for_work(name, **(loading or {}))
    abouts = [about for _, about in [*stored.values(), *mixed_in.values()]]
    check_same_model([*stats_files, *([general] if general else [])], abouts, model)
    check(model, options)
    made_with = identity(model)
    key = digest([made_with["fingerprint"], asdict(options), seed, [about["key"] for about in abouts]])
    if is_current(out, key):
        return load_masks(out)[1] | {"skipped": True}
    statistics = {task: part for task, (part, _) in stored.items()}
    beside = next((part for part, _ in mixed_in.values()), None)
    masks, options = make_masks(model, statistics, options, general=beside, seed=seed)
    about = {
        **made_with,
        "tasks": list(stored),
        "num_tokens": sum(about["num_tokens"] for about in abouts),
        "method": options.method,
        "options": asdict(options) | choices(options),
        "sparsity": options.sparsity,
        "realised_sparsity": realised_sparsity(describe(model), masks),
        "seed": seed,
        "versions": versions(),
        "key": key,
    }
    save_masks(out, masks, about)
    return about | {"skipped": False}


def merge_files(stats_files: Sequence[Path], out: Path, *, task: str | None = None) -> dict[str, Any]:
    """`seap merge`: the sum of several statistics files of one model."""
    if len(stats_files) < 2:
        raise UserError("name at least two statistics files to merge")
    stored = [load_statistics(path) for path in stats_files]
    abouts = [about for _, about in stored]
    for path, about in zip(stats_files, abouts, strict=True):
        if about["fingerprint"] != abouts[0]["fingerprint"]:
            raise UserError(f"{path} was made with another model or dtype than {stats_files[0]}; only one's add up")
        if about["second_moments"] != abouts[0]["second_moments"]:
            raise UserError(f"{path} and {stats_files[0]} differ in --second-moments; make both with or both without")
    parts = [part for about in abouts for part in about["parts"]]
    if len(set(parts)) < len(parts):
        raise UserError("two of the files hold the same text, which would count twice; name each part once")
    names = list(dict.fromkeys(about["task"] for about in abouts))
    merged = abouts[0] | {
        "task": task or "+".join(names),
        "num_rows": sum(about["num_rows"] for about in abouts),
        "num_tokens": sum(about["num_tokens"] for about in abouts),
        "data_hash": digest(sorted(parts)),
        "parts": parts,
        "key": digest([*sorted(about["key"] for about in abouts), task]),
    }
    if not is_current(out, merged["key"]):
        save_statistics(out, merge(part for part, _ in stored), merged)
    return merged


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
