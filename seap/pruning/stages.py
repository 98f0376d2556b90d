"""The first stages over files, one function per command: calibrate, mask, merge."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from seap.activations import actors
from seap.activations.calibration import (
    about_statistics,
    check_measured,
    check_room,
    check_same_model,
    identity,
    too_large,
)
from seap.activations.distributed import calibrate, share
from seap.activations.ranks import Ranks, agreed, joined, local_device
from seap.activations.stats import Statistics, load_statistics, merge, save_statistics
from seap.disk.claim import claimed, claimed_each
from seap.environment import versions
from seap.errors import UserError, at_least
from seap.files import digest, is_current
from seap.models import loader
from seap.models.arch import describe
from seap.models.options import Streaming
from seap.models.sizes import dtype_on_disk
from seap.pruning.prune import build_corpora, check, make_masks, with_rounding
from seap.pruning.report import choices
from seap.pruning.targets import check_countable, check_met
from seap.schema import needed
from seap.selection.footprint import footprint_of, settled
from seap.selection.mask import load_masks, realised_sparsity, save_masks
from seap.selection.mixture import check_mixture
from seap.selection.options import Pruning
from seap.text.corpus import Corpus
from seap.text.options import Calibration
from seap.text.sources import sources_of
from seap.text.tasks import apart, load_items, parse_spec


def read_statistics(paths: Sequence[Path]) -> dict[str, tuple[Statistics, dict[str, Any]]]:
    """Statistics files by task. Raises UserError for two of one task."""
    stored: dict[str, tuple[Statistics, dict[str, Any]]] = {}
    for path in paths:
        part, about = load_statistics(path)
        needed(path, about, "num_tokens", "key")
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
    for spec in apart(map(parse_spec, tasks)):
        load_items(spec, "train")


def calibrate_to_files(
    name: str,
    tasks: Sequence[str],
    out: Path,
    options: Calibration,
    *,
    shard: Ranks | None = None,
    num_actors: int | None = None,
    loading: Mapping[str, Any] | None = None,
    streaming: Streaming = Streaming(),  # noqa: B008
    overwrite: bool = False,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """`seap calibrate`: one `OUT/TASK.safetensors` per task; a file with the same key is left as it is.

    shard: only this part of the rows, to be merged with the others. num_actors: spread over so many of Ray's. Under
    torchrun each process takes its part and rank 0 writes.
    """
    ranks = Ranks.here()
    check_spread(ranks, shard, num_actors)
    names = [f"{parse_spec(spec).name}.safetensors" for spec in dict.fromkeys(tasks)]
    writes = names if ranks.rank == 0 else []
    with claimed_each(out, writes, "stats", overwrite=overwrite, inputs=sources_of(name, tasks)):
        return _calibrate_claimed(
            name,
            tasks,
            out,
            options,
            ranks,
            shard=shard,
            num_actors=num_actors,
            loading=loading,
            streaming=streaming,
            overwrite=overwrite,
            progress=progress,
        )


def _calibrate_claimed(
    name: str,
    tasks: Sequence[str],
    out: Path,
    options: Calibration,
    ranks: Ranks,
    *,
    shard: Ranks | None,
    num_actors: int | None,
    loading: Mapping[str, Any] | None,
    streaming: Streaming,
    overwrite: bool,
    progress: bool,
) -> list[dict[str, Any]]:
    """`calibrate_to_files`, once its outputs are known to be fit."""
    check_tasks(tasks, needed=True)
    place = dict(loading or {})
    place["device"] = local_device(place.get("device", "auto"))
    with joined(ranks), loader.loaded(name, out, place, None, streaming) as (model, tokenizer):
        corpora = build_corpora(model, tokenizer, list(tasks), options)
        if shard is not None:
            corpora = {task: part_of(corpus, shard) for task, corpus in corpora.items()}
        planned = {task: about_statistics(model, corpus, options) for task, corpus in corpora.items()}
        there = agreed(lambda: {task: _is_there(out, task, about, overwrite) for task, about in planned.items()}, ranks)
        missing = {task: corpus for task, corpus in corpora.items() if not there[task]}
        if ranks.rank == 0:
            check_room(describe(model), missing, options, out)
        if num_actors is None:
            for task, corpus in missing.items():
                found = calibrate(model, corpus, options, ranks, progress=progress)
                if ranks.rank == 0:
                    save_statistics(out / f"{task}.safetensors", found, planned[task])
        on_disk = num_actors is not None and too_large(describe(model), options)
    del model, tokenizer  # the actors have their own
    if missing and num_actors is not None:
        work = actors.Work(name, options, place, streaming)
        for task, found in actors.calibrate(work, missing, num_actors, on_disk=on_disk, progress=progress):
            save_statistics(out / f"{task}.safetensors", found, planned[task])
    return [
        about | {"path": str(out / f"{task}.safetensors"), "skipped": there[task]} for task, about in planned.items()
    ]


def _is_there(out: Path, task: str, about: Mapping[str, Any], overwrite: bool) -> bool:
    return is_current(out / f"{task}.safetensors", about["key"], overwrite=overwrite)


def check_spread(ranks: Ranks, shard: Ranks | None, num_actors: int | None) -> None:
    """Raise UserError for ways to spread calibration that don't go together."""
    if ranks.size > 1 and shard is not None:
        raise UserError("--shard is for processes that know nothing of each other; leave it out under torchrun")
    if num_actors is None:
        return
    if ranks.size > 1:
        raise UserError("--ray starts its own processes; run it without torchrun")
    at_least("ray", num_actors, 1)
    actors.check_ray()


def part_of(corpus: Corpus, shard: Ranks) -> Corpus:
    """A shard of a corpus. Raises UserError when it is empty."""
    rows = share(corpus.rows, shard)
    if not rows:
        raise UserError(
            f"shard {shard.rank}/{shard.size} of {corpus.name}'s {len(corpus.rows)} rows is empty; use fewer shards"
        )
    return replace(corpus, rows=rows)


def mask_to_file(
    name: str,
    stats_files: Sequence[Path],
    out: Path,
    options: Pruning,
    *,
    general: Path | None = None,
    seed: int = Calibration.seed,
    overwrite: bool = False,
    loading: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """`seap mask`: scores, budgets and masks from statistics files. general: those of text to mix in."""
    with claimed(out, "mask", overwrite=overwrite, inputs=sources_of(name, (), [*stats_files, general])):
        return _mask_claimed(name, stats_files, out, options, general, seed, overwrite, loading or {})


def _mask_claimed(
    name: str,
    stats_files: Sequence[Path],
    out: Path,
    options: Pruning,
    general: Path | None,
    seed: int,
    overwrite: bool,
    loading: Mapping[str, Any],
) -> dict[str, Any]:
    """`mask_to_file`, once its output is known to be fit."""
    stored = read_statistics(stats_files)
    if options.needs_scores_of_activations and not stored:
        raise UserError(f"score {options.resolved().score} needs statistics: name at least one file of seap calibrate")
    check_mixture(options, list(stored), general=general is not None)
    mixed_in = read_statistics([general] if general else [])
    model, _ = loader.load_for_work(name, **loading)
    abouts = [about for _, about in [*stored.values(), *mixed_in.values()]]
    read_from = [*stats_files, *([general] if general else [])]
    check_same_model(read_from, abouts, model)
    check_measured(read_from, [part for part, _ in [*stored.values(), *mixed_in.values()]], model)
    options, _ = with_rounding(model, options)
    footprint = None
    if options.cost != "params":
        check_countable(model, options)
        footprint = footprint_of(model, options, dtype_on_disk(model))
        options = settled(options, footprint)
    check(model, options, footprint=footprint)
    made_with = identity(model)
    key = digest([made_with["fingerprint"], options.deciding, seed, [about["key"] for about in abouts]])
    if is_current(out, key, overwrite=overwrite):
        return load_masks(out)[1] | {"skipped": True}
    statistics = {task: part for task, (part, _) in stored.items()}
    beside = next((part for part, _ in mixed_in.values()), None)
    masks, options = make_masks(model, statistics, options, general=beside, footprint=footprint, seed=seed)
    check_met(footprint, model, masks, options)
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


def merge_files(
    stats_files: Sequence[Path], out: Path, *, task: str | None = None, overwrite: bool = False
) -> dict[str, Any]:
    """`seap merge`: the sum of several statistics files of one model."""
    if len(stats_files) < 2:
        raise UserError("name at least two statistics files to merge")
    stored = [load_statistics(path) for path in stats_files]
    abouts = [about for _, about in stored]
    for path, about in zip(stats_files, abouts, strict=True):
        needed(path, about, "fingerprint", "second_moments", "parts", "num_rows", "num_tokens", "key")
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
    with claimed(out, "stats", overwrite=overwrite, inputs=sources_of(None, (), stats_files)):
        if not is_current(out, merged["key"], overwrite=overwrite):
            save_statistics(out, merge(part for part, _ in stored), merged)
    return merged
