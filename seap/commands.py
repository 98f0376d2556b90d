"""The stages over files, one function per command: what can be refused is refused before anything long starts."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from seap import checkpoint
from seap.arch import describe
from seap.calibration import about_statistics, check_same_model, fingerprint
from seap.calibration import calibrate as measure
from seap.config import Calibration, Pruning
from seap.errors import UserError
from seap.files import check_output, digest, is_current
from seap.mask import compose, load_masks, realised_sparsity, save_masks
from seap.pruning import build_corpora, check, make_masks, needs_text, prune, split_options
from seap.report import Report, choices
from seap.stats import load_statistics, merge, save_statistics
from seap.tasks import load_items, parse_spec


def prune_to_folder(
    name: str,
    out: Path,
    *,
    tasks: Sequence[str] = (),
    stats_files: Sequence[Path] = (),
    mask_file: Path | None = None,
    overwrite: bool = False,
    progress: bool = True,
    loading: Mapping[str, Any] | None = None,
    **options: Any,
) -> Report:
    """`seap prune`: refuse what can be refused, load, prune, and save the folder whole or not at all.

    loading: the keyword arguments of `seap.load`.
    """
    check_output(out, overwrite=overwrite)
    stored = [load_statistics(path) for path in stats_files]
    given, about_mask = load_masks(mask_file) if mask_file else (None, {})
    options |= {name: about_mask[name] for name in ("sparsity", "method") if name in about_mask}
    pruning, calibration = split_options(options)
    check_tasks(tasks, calibration, needed=not stored and needs_text(pruning, given))
    model, tokenizer = checkpoint.load(name, **(loading or {}))
    check_same_model(stats_files, [about for _, about in stored], model)
    if mask_file:
        check_same_model([mask_file], [about_mask], model)
    checkpoint.check_space(out, int(checkpoint.weight_bytes(model) * (1 - pruning.sparsity)))
    report = prune(
        model,
        tokenizer,
        task=list(tasks) or None,
        statistics={about["task"]: part for part, about in stored} or None,
        masks=given,
        progress=progress,
        **options,
    )
    before = checkpoint.previous_masks(name)
    masks = compose(before, report.masks) if before else report.masks
    checkpoint.save(model, tokenizer, masks, report.to_dict(), out)
    return report


def check_tasks(tasks: Sequence[str], options: Calibration, *, needed: bool) -> None:
    """Read the tasks' texts once before the model is loaded, so that bad input is refused at once."""
    if needed and not tasks:
        raise UserError(
            "this run measures activations (for its score or its compensation): add --task NAME, --task NAME=PATH or "
            "--stats FILE"
        )
    for spec in tasks:
        load_items(parse_spec(spec), "train", seed=options.seed)


def calibrate_to_files(
    name: str,
    tasks: Sequence[str],
    out: Path,
    options: Calibration,
    *,
    loading: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """`seap calibrate`: one `OUT/TASK.safetensors` per task; a file with the same key is left as it is."""
    check_tasks(tasks, options, needed=True)
    model, tokenizer = checkpoint.load(name, **(loading or {}))
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
    seed: int = 0,
    loading: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """`seap mask`: scores, budgets and masks from statistics files."""
    stored = [load_statistics(path) for path in stats_files]
    if options.needs_scores_of_activations and not stored:
        raise UserError(f"score {options.resolved().score} needs statistics: name at least one file of seap calibrate")
    model, _ = checkpoint.load(name, **(loading or {}))
    check_same_model(stats_files, [about for _, about in stored], model)
    check(model, options)
    identity = fingerprint(model)
    key = digest([identity, asdict(options), seed, [about["key"] for _, about in stored]])
    if is_current(out, key):
        return load_masks(out)[1] | {"skipped": True}
    masks = make_masks(model, {about["task"]: part for part, about in stored}, options, seed=seed)
    about = {
        "model": model.config._name_or_path,
        "fingerprint": identity,
        "tasks": [about["task"] for _, about in stored],
        "method": options.method,
        "options": asdict(options) | choices(options),
        "sparsity": options.sparsity,
        "realised_sparsity": realised_sparsity(describe(model), masks),
        "seed": seed,
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
            raise UserError(
                f"{path} was made with another model than {stats_files[0]}; only one model's can be added up"
            )
        if about["second_moments"] != abouts[0]["second_moments"]:
            raise UserError(f"{path} and {stats_files[0]} differ in --second-moments; make both with or both without")
    hashes = [about["data_hash"] for about in abouts]
    if len(set(hashes)) < len(hashes):
        raise UserError("two of the files are of the same text, which would count twice; name each part once")
    names = list(dict.fromkeys(about["task"] for about in abouts))
    merged = abouts[0] | {
        "task": task or "+".join(names),
        "num_texts": sum(about["num_texts"] for about in abouts),
        "num_tokens": sum(about["num_tokens"] for about in abouts),
        "data_hash": digest(hashes),
        "parts": sum(about["parts"] for about in abouts),
        "key": digest([about["key"] for about in abouts]),
    }
    save_statistics(out, merge(part for part, _ in stored), merged)
    return merged
