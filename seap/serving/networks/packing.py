"""Makes the tasks' network files (seap pack): from tasks, from pruned checkpoints, or from masks and statistics."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from seap.activations.calibration import check_same_model, identity
from seap.environment import versions
from seap.errors import UserError
from seap.files import digest
from seap.models import loader
from seap.models.axes import Masks
from seap.models.families import refuse_experts
from seap.pruning import memory
from seap.pruning.commands import options_of_mask
from seap.pruning.cost import Text, merged, pruning_stages, shape_of
from seap.pruning.estimate import Estimate, Given, cheaper, disk_place, rates_for
from seap.pruning.prospect import prospect
from seap.pruning.prune import build_corpora, make_repairs, prune, split_options
from seap.pruning.stages import check_tasks, read_statistics
from seap.pruning.surgery import cut_
from seap.selection.mask import load_masks
from seap.selection.options import Pruning
from seap.selection.ranking import with_second_moments
from seap.serving.networks.network import Network, load_pruned, network_between, save_network
from seap.serving.networks.sharing import share_weights
from seap.text.options import Calibration
from seap.text.tasks import parse_spec

Statistics = dict[str, tuple[Any, dict[str, Any]]]
KEPT = ("tasks", "method", "options", "realised_sparsity", "num_tokens")  # of what made the network


def pack_to_files(
    name: str,
    out: Path,
    *,
    sources: Sequence[str] = (),
    tasks: Sequence[str] = (),
    stats_files: Sequence[Path] = (),
    share: float | None = None,
    loading: Mapping[str, Any] | None = None,
    progress: bool = True,
    ready: Callable[[], None] = lambda: None,
    **options: Any,
) -> list[dict[str, Any]]:
    """`seap pack`: one OUT/NAME.safetensors per task or source. Returns what stands in each file's metadata.

    share: most parameters that a network may own, as a share of the dense model's (`sharing.py`). ready: called once
    nothing is left to be refused but what needs the model.
    """
    named = named_sources(sources)
    wanted = [parse_spec(spec).name for spec in tasks]
    check_names([*named, *wanted], out)
    check_tasks(tasks, needed=False)
    stored = read_statistics(stats_files)
    split_options(options)
    place = dict(loading or {})
    config = loader.load_config(name, trust_remote_code=place.get("trust_remote_code", False))
    refuse_experts(config, "seap pack", "prune once per task, with seap prune")
    ready()
    model, tokenizer = loader.load_for_work(name, **place)
    check_same_model(stats_files, [about for _, about in stored.values()], model)
    made = []
    for source_name, path in named.items():
        made.append((source_name, _from_source(model, path, stored, share, progress=progress)))
    for spec, own in zip(tasks, wanted, strict=True):
        made.append((own, _from_task(model, tokenizer, spec, options, share, progress=progress)))
    return [_write(model, out / f"{own}.safetensors", own, network) for own, network in made]


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
    shape = shape_of(seen.model, pruning, seen.dtype.itemsize)
    texts = seen.text(tasks, calibration) if pruning.needs_text else dict.fromkeys(tasks, Text(0, 1))
    rates = rates_for(seen, shape, texts, calibration)
    stages, needs = [], memory.Needs(float(shape.weight_bytes))
    for task, text in texts.items():
        stages += pruning_stages(
            shape, pruning, {task: text}, moments=calibration.moments, sparsities=[pruning.sparsity]
        )
        needs = max(needs, memory.of(shape, pruning, {task: text}, calibration, stream=False), key=lambda n: n.memory)
    is_own = pruning.resolved().compensate == "ridge"  # else slices of the dense weights, which cost a mask alone
    one = shape.arch.prunable_params * (1 - pruning.sparsity) if is_own else float(sum(a.entries for a in shape.axes))
    written = (len(tasks) + len(sources)) * one * seen.dtype.itemsize
    return Estimate(
        what=f"packing {len(tasks) + len(sources)} networks of {name}",
        stages=tuple((stage, rates.of(stage)) for stage in merged(stages)),
        memory=needs.memory + shape.weight_bytes,  # the dense model and a copy that is cut
        memory_free=memory.free(seen.device),
        disk=(("the networks", written, disk_place(out)), *needs.disk),
        cheaper=cheaper(Given(shape, rates, texts, calibration.moments, [pruning.sparsity]), pruning) if texts else (),
        device=seen.device,
    )


def named_sources(sources: Sequence[str]) -> dict[str, Path]:
    """NAME=PATH or PATH, whose name is then the file's or folder's."""
    found: dict[str, Path] = {}
    for source in sources:
        name, equals, path = source.rpartition("=")
        place = Path(path).expanduser()
        if not place.exists():
            raise UserError(f"{path} doesn't exist; give a pruned folder or a mask file, as PATH or NAME=PATH")
        own = name if equals else place.name.removesuffix(".safetensors")
        if own in found:
            raise UserError(f"two sources are called {own}; name them apart, as NAME=PATH")
        found[own] = place
    return found


def check_names(names: Sequence[str], out: Path) -> None:
    """Refuse no names at all, two equal ones, those that the runtime needs itself, and files that are there."""
    if not names:
        raise UserError("nothing to pack: add --task NAME, or name pruned folders or mask files after the model")
    if len(set(names)) < len(names):
        raise UserError(f"two networks have one name: {', '.join(names)}; name them apart, as NAME=PATH")
    if taken := {"dense", "auto"} & set(names):
        raise UserError(f"no task can be called {taken.pop()}, which has a meaning of its own; name it as NAME=PATH")
    if there := [name for name in names if (out / f"{name}.safetensors").exists()]:
        raise UserError(f"{out / there[0]}.safetensors is there already; delete it or name another --out")


def _from_task(
    model: Any, tokenizer: Any, spec: str, options: Mapping[str, Any], share: float | None, *, progress: bool
) -> Network:
    pruned = copy.deepcopy(model)
    report = prune(pruned, tokenizer, task=spec, progress=progress, **options)
    network = replace(network_between(model, pruned, report.masks), about=report.to_dict())
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


def _write(model: Any, path: Path, task: str, network: Network) -> dict[str, Any]:
    about = {name: network.about[name] for name in KEPT if name in network.about}
    about["own_share"] = network.num_own / sum(p.numel() for p in model.parameters())
    about |= identity(model) | {"task": task, "versions": versions()}
    about["key"] = digest([about["fingerprint"], task, network.about.get("key")])
    save_network(path, network, about)
    return about | {"path": str(path), "bytes": path.stat().st_size}
