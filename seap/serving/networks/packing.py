"""Makes the tasks' network files (seap pack): from tasks, from pruned checkpoints, or from masks and statistics."""

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from seap.activations.calibration import check_measured, check_same_model, identity
from seap.disk.claim import claimed_each
from seap.disk.digests import weight_digests
from seap.disk.place import at_home
from seap.environment import versions
from seap.errors import UserError
from seap.files import digest, is_current, read_about
from seap.methods import CLOSED_FORMS
from seap.models import loader
from seap.models.axes import Masks
from seap.models.families import refuse_experts
from seap.pruning import memory
from seap.pruning.commands import options_of_mask
from seap.pruning.cost import pruning_stages, shape_of
from seap.pruning.estimate import Estimate, Given, cheaper, disk_place, rates_for
from seap.pruning.prospect import prospect
from seap.pruning.prune import build_corpora, make_repairs, prune, split_options
from seap.pruning.stages import check_tasks, read_statistics
from seap.pruning.surgery import cut_
from seap.pruning.targets import as_planned
from seap.pruning.vocabulary import chosen
from seap.pruning.work import Text, merged
from seap.schema import needed
from seap.selection.mask import load_masks
from seap.selection.options import Pruning
from seap.selection.ranking import with_second_moments
from seap.selection.whole_layers import refuse_whole_layers
from seap.serving.networks.amounts import check_words
from seap.serving.networks.network import Network, load_pruned, network_between, save_network
from seap.serving.networks.sharing import share_weights
from seap.text.options import Calibration
from seap.text.sources import sources_of
from seap.text.tasks import parse_spec
from seap.vocabulary.options import Vocabulary, vocabulary_of

Statistics = dict[str, tuple[Any, dict[str, Any]]]
KEPT = ("tasks", "method", "options", "realised_sparsity", "num_tokens", "vocabulary")  # of what made the network


def pack_to_files(
    name: str,
    out: Path,
    *,
    sources: Sequence[str] = (),
    tasks: Sequence[str] = (),
    stats_files: Sequence[Path] = (),
    share: float | None = None,
    overwrite: bool = False,
    loading: Mapping[str, Any] | None = None,
    progress: bool = True,
    ready: Callable[[], None] = lambda: None,
    **options: Any,
) -> list[dict[str, Any]]:
    """`seap pack`: one OUT/NAME.safetensors per task or source. Returns what stands in each file's metadata.

    share: most parameters that a network may own, as a share of the dense model's (`sharing.py`). A file that is there
    with the same key is left as it is, so that an interrupted run goes on where it stopped. ready:
    called once nothing is left to be refused but what needs the model.
    """
    check_words(options, tasks)
    named = named_sources(sources)
    wanted = [parse_spec(spec).name for spec in tasks]
    check_names([*named, *wanted])
    files = [f"{own}.safetensors" for own in (*named, *wanted)]
    reads = sources_of(name, tasks, [*named.values(), *stats_files])
    with claimed_each(out, files, "network", overwrite=overwrite, inputs=reads):
        work = _Packing(out, share, overwrite, options, progress)
        return _pack_claimed(name, work, named, tasks, stats_files, dict(loading or {}), ready)


@dataclass(frozen=True)
class _Packing:
    """How networks are made and written."""

    out: Path
    share: float | None
    overwrite: bool
    options: Mapping[str, Any]
    progress: bool


def _pack_claimed(
    name: str,
    work: _Packing,
    named: Mapping[str, Path],
    tasks: Sequence[str],
    stats_files: Sequence[Path],
    place: Mapping[str, Any],
    ready: Callable[[], None],
) -> list[dict[str, Any]]:
    """`pack_to_files`, once its outputs are known to be fit."""
    check_tasks(tasks, needed=False)
    stored = read_statistics(stats_files)
    pruning, _ = split_options(vocabulary_of(work.options)[1])
    refuse_whole_layers(pruning.resolved().allocate == "whole-layers", "seap pack")
    if pruning.drop != "none":
        raise UserError(f"--drop {pruning.drop}: networks of one model in memory keep all sub-blocks; leave it out")
    config = loader.load_config(name, trust_remote_code=place.get("trust_remote_code", False))
    if work.share is not None:
        refuse_experts(config, "--share", "leave it out: each network then has what it keeps of the experts")
    ready()
    model, tokenizer = loader.load_for_work(name, **place)
    check_same_model(stats_files, [about for _, about in stored.values()], model)
    check_measured(stats_files, [part for part, _ in stored.values()], model)
    options, share, progress = work.options, work.share, work.progress
    shared = [name for name in (*named, *map(_name_of, tasks))]
    makers: list[tuple[Any, Callable[[], Network]]] = [
        (
            [_content(path), share, [about["key"] for _, about in stored.values()]],
            functools.partial(_from_source, model, path, stored, share, progress=progress),
        )
        for path in named.values()
    ]
    for spec in tasks:
        rows = build_corpora(model, tokenizer, spec, split_options(vocabulary_of(options)[1])[1])
        told = [sorted(corpus.data_hash for corpus in rows.values()), share, {**options}]
        makers.append((told, functools.partial(_from_task, model, tokenizer, spec, options, share, progress=progress)))
    keys = [_key(model, own, told) for own, (told, _) in zip(shared, makers, strict=True)]
    paths = [work.out / f"{own}.safetensors" for own in shared]
    there = [is_current(path, key, overwrite=work.overwrite) for path, key in zip(paths, keys, strict=True)]
    made = []
    for own, path, key, is_there, (_, make) in zip(shared, paths, keys, there, makers, strict=True):
        about = read_about(path)[1] if is_there else _write(model, path, own, make(), key)
        made.append(about | {"path": str(path), "bytes": path.stat().st_size, "skipped": is_there})
    return made


def _name_of(spec: str) -> str:
    return parse_spec(spec).name


def _key(model: Any, task: str, told: Any) -> str:
    """What decides a network's file, known before it is made. told: of its source, and the options."""
    return digest([identity(model)["fingerprint"], str(model.dtype), task, told, versions()])


def _content(path: Path) -> Any:
    """What a pruned folder or a mask file says of itself."""
    if path.is_file():
        return read_about(path)[1].get("key")
    return weight_digests(path)


def plan_pack(
    name: str,
    out: Path,
    *,
    sources: Sequence[str],
    tasks: Sequence[str],
    pruning: Pruning,
    calibration: Calibration,
    loading: Mapping[str, Any] | None = None,
) -> Estimate:
    """`seap pack --plan`: one pruning per task; a source that is made already costs its file alone."""
    seen = prospect(name, loading)
    pruning = as_planned(seen.model, pruning, seen.saved, Vocabulary())
    shape = shape_of(seen.model, pruning, seen.dtype.itemsize, seen.device)
    texts = seen.text(tasks, calibration) if pruning.needs_text else dict.fromkeys(tasks, Text(0, 1))
    rates = rates_for(seen, shape, texts, calibration)
    stages, needs = [], memory.Needs(float(shape.weight_bytes))
    for task, text in texts.items():
        stages += pruning_stages(
            shape, pruning, {task: text}, moments=calibration.moments, sparsities=[pruning.sparsity]
        )
        needs = max(needs, memory.of(shape, pruning, {task: text}, calibration), key=lambda n: n.memory)
    is_own = pruning.resolved().compensate in CLOSED_FORMS  # else slices of the dense weights, which cost a mask alone
    one = shape.arch.prunable_params * (1 - pruning.sparsity) if is_own else float(sum(a.entries for a in shape.axes))
    written = (len(tasks) + len(sources)) * one * seen.dtype.itemsize
    return Estimate(
        what=f"packing {len(tasks) + len(sources)} networks of {name}",
        stages=tuple((stage, rates.of(stage)) for stage in merged(stages)),
        memory=needs.memory + shape.weight_bytes,  # the dense model and a copy that is cut
        memory_free=memory.free(seen.device),
        disk=(("the networks", written, disk_place(out)), *needs.disk),
        cheaper=cheaper(Given(shape, rates, texts, calibration.moments, [pruning.sparsity]), pruning) if texts else (),
        planning=seen.looking,
        device=seen.device,
    )


def named_sources(sources: Sequence[str]) -> dict[str, Path]:
    """NAME=PATH or PATH, whose name is then the file's or folder's."""
    found: dict[str, Path] = {}
    for source in sources:
        name, equals, path = source.rpartition("=")
        place = at_home(path)
        if not place.exists():
            raise UserError(f"{path} doesn't exist; give a pruned folder or a mask file, as PATH or NAME=PATH")
        own = name if equals else place.name.removesuffix(".safetensors")
        if own in found:
            raise UserError(f"two sources are called {own}; name them apart, as NAME=PATH")
        found[own] = place
    return found


def check_names(names: Sequence[str]) -> None:
    """Refuse no names at all, two equal ones, and those that the runtime needs itself."""
    if not names:
        raise UserError("nothing to pack: add --task NAME, or name pruned folders or mask files after the model")
    if len(set(names)) < len(names):
        raise UserError(f"two networks have one name: {', '.join(names)}; name them apart, as NAME=PATH")
    if taken := {"dense", "auto"} & set(names):
        raise UserError(f"no task can be called {taken.pop()}, which has a meaning of its own; name it as NAME=PATH")


def _from_task(
    model: Any, tokenizer: Any, spec: str, options: Mapping[str, Any], share: float | None, *, progress: bool
) -> Network:
    pruned, (words, options) = copy.deepcopy(model), vocabulary_of(options)
    report = prune(pruned, tokenizer, task=spec, progress=progress, **options)
    network = replace(network_between(model, pruned, report.masks), about=report.to_dict())
    if words.is_cut:
        choice, _ = chosen(model, tokenizer, spec, None, words, split_options(options)[1], progress=progress)
        told = {**network.about, "vocabulary": choice.about}
        network = replace(network, vocabulary=torch.tensor(choice.kept), about=told)
    if share is None:
        return network
    [corpus] = build_corpora(model, tokenizer, spec, split_options(options)[1]).values()
    return _shared(model, pruned, network, corpus.rows, share, progress=progress)


def _from_source(model: Any, path: Path, stored: Statistics, share: float | None, *, progress: bool) -> Network:
    """The network of a pruned folder, or of a mask file with repairs where its method has them."""
    if path.is_dir():
        pruned, masks, about = load_pruned(str(path), model)
        repairing = True
    else:
        masks, about = load_masks(path)
        needed(path, about, "options", "tasks", "method")
        check_same_model([path], [about], model)
        pruned, repairing = _cut_and_repaired(model, path, masks, about, stored, progress=progress)
    network = replace(network_between(model, pruned, masks), about=about)
    if share is None or not repairing:
        return network
    rows = [row for task in about["tasks"] if task in stored for row in stored[task][0].rows]
    if not rows:
        raise UserError(
            f"{path}: --share needs the text of {', '.join(about['tasks'])}; add --stats FILE of seap calibrate"
        )
    return _shared(model, pruned, network, rows, share, progress=progress)


def _cut_and_repaired(
    model: Any, path: Path, masks: Masks, about: Mapping[str, Any], stored: Statistics, *, progress: bool
) -> tuple[Any, bool]:
    """A mask's pruned model, and whether its method reconstructs."""
    options, _ = split_options(options_of_mask({}, about))
    statistics = {task: part for task, (part, _) in stored.items() if task in about["tasks"]}
    repairing = options.resolved().compensate != "none"
    if repairing and statistics.keys() < set(about["tasks"]):
        raise UserError(
            f"{path}: its method, {about['method']}, reconstructs, which needs the statistics of "
            f"{', '.join(about['tasks'])}; add --stats FILE"
        )
    if repairing:
        statistics = with_second_moments(model, statistics, options, progress=progress)
    pruned = copy.deepcopy(model)
    cut_(pruned, masks, make_repairs(model, masks, statistics, options, progress=progress))
    return pruned, repairing


def _shared(
    model: Any, pruned: Any, network: Network, rows: Sequence[Sequence[int]], share: float, *, progress: bool
) -> Network:
    options: dict[str, Any] = {"share": share, "batch_tokens": Calibration.batch_tokens, "progress": progress}
    return share_weights(model, pruned, network, rows, **options)


def _write(model: Any, path: Path, task: str, network: Network, key: str) -> dict[str, Any]:
    about = {name: network.about[name] for name in KEPT if name in network.about}
    about["own_share"] = network.num_own / sum(p.numel() for p in model.parameters())
    about |= identity(model) | {"task": task, "versions": versions(), "key": key}
    save_network(path, network, about)
    return about
