"""Pruning a model that is larger than memory: its layers are measured, scored, cut and written one after the other.

The figures are the same as in memory. The loss's sensitivity goes forward and back layer by layer, a trial of the
search forward (`Judge.divergence_with`), and the refit is layer by layer anyway, just before a layer is cut. What runs
the whole model for every axis, width or weight is refused.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from tqdm import tqdm

from seap.activations.ranks import Ranks
from seap.activations.stats import Statistics
from seap.compensation.compensate import Repair, Repairs, repair_axes
from seap.errors import UserError
from seap.files import to_json, write_safetensors
from seap.methods import MEASURED, RUNNING, Method
from seap.models.arch import Arch, describe
from seap.models.axes import Masks
from seap.models.modes import evaluation
from seap.models.residency import modules_of, page_out, read_ahead, ready_, streamed
from seap.pruning.sequential import Streams
from seap.pruning.surgery import biased, check_buildable, cut_layer_, finish_
from seap.selection.mask import check_fits
from seap.selection.options import Pruning
from seap.text.options import Calibration

METADATA = {"format": "pt"}
# what measures with whole networks, one after the other → what to do without it
WHOLE: dict[str, tuple[Callable[[Pruning], bool], str]] = {
    "--curves measured": (
        lambda options: options.resolved().allocate in MEASURED and not options.closed_curves,
        "leave it out for curves in closed form",
    ),
    "--cost milliseconds": (lambda options: options.cost == "milliseconds", "leave it out"),
    "--mix auto": (lambda options: options.mix == "auto", "give --mix a share, such as 0.3"),
    "--worst-task": (lambda options: options.worst_task, "weigh the tasks with --weights"),
    "a score of gradients or of block influence": (
        lambda options: options.resolved().score in RUNNING,
        "use --score obs, or --method flap, wanda-sp or obs",
    ),
    "--allocate whole-layers": (
        lambda options: options.resolved().allocate == "whole-layers",
        "use --allocate uniform",
    ),
    "--method wanda-sp-sequential": (lambda options: options.resolved().behind, "use --method wanda-sp"),
}


def unstreamable(options: Pruning) -> list[str]:
    """Choices that run the whole model for every axis, width or weight."""
    return [name for name, (is_wanted, _) in WHOLE.items() if is_wanted(options)]


def check_streamable(options: Pruning) -> None:
    """Raise UserError for such choices."""
    for name in unstreamable(options):
        raise UserError(f"{name} needs the whole model in memory, which --stream doesn't have; {WHOLE[name][1]}")


@torch.no_grad()
def cut_streamed_(
    model: Any,
    masks: Masks,
    source: Statistics,
    method: Method,
    *,
    progress: bool = True,
    ranks: Ranks = Ranks(),  # noqa: B008
) -> Repairs:
    """Repair, refit and cut a streamed model layer by layer; each is written to the plan's folder and read from there.

    Of several ranks, which refit together, only the first one writes. Returns what the repairs were, without their
    matrices.
    """
    arch, plan = describe(model), streamed(model)
    assert plan is not None
    check_fits(arch, masks)
    check_buildable(arch, masks, () if method.compensate == "none" else masks.keys())
    told: Repairs = {}
    added: set[str] = set()
    with evaluation(model):
        streams = None
        if method.sequential and not all(mask.all() for mask in masks.values()):
            streams = Streams.start(arch, masks, source.rows, batch_tokens=Calibration.batch_tokens, ranks=ranks)
        for layer in tqdm(range(len(arch.layers)), desc="cut", unit="layer", disable=not progress, leave=False):
            read_ahead(value for one in arch.layers[layer : layer + 2] for value in one.parameters())
            before = ready_(modules_of(arch, layer), plan)
            repairs = repair_axes(arch, masks, source, method.compensate, layer=layer)
            repairs = repairs if streams is None else streams.refitted(layer, repairs)
            cut_layer_(arch, layer, masks, repairs)
            page_out(value for _, _, value in before)
            added |= biased(repairs)
            told |= {key: Repair(torch.empty(0), about=repair.about) for key, repair in repairs.items()}
            if ranks.is_first:
                path = plan.shards / f"layer-{layer}.safetensors"
                _to_file_(arch.layers[layer], f"{arch.family.layers}.{layer}.", path, plan.save_dtype)
            else:
                arch.layers[layer].to("meta")
    finish_(arch, masks, added)
    return told


def _to_file_(layer: nn.Module, prefix: str, path: Path, dtype: torch.dtype) -> None:
    """Write a layer in the dtype it is saved in, and have it lie there from now on."""
    write_safetensors(path, layer.state_dict(prefix=prefix), METADATA, dtype=dtype)
    with safe_open(path, framework="pt") as file:
        for name in layer.state_dict():
            place, _, leaf = name.rpartition(".")
            module, stored = layer.get_submodule(place), file.get_tensor(prefix + name)
            if leaf in module._parameters:
                module._parameters[leaf] = nn.Parameter(stored, requires_grad=False)
            else:
                module._buffers[leaf] = stored


def save_streamed(model: Any, folder: Path) -> None:
    """What `save_pretrained` writes: config and weights, the finished layers' files moved into the folder."""
    arch, plan = describe(model), streamed(model)
    assert plan is not None
    model.config.dtype = plan.save_dtype
    model.config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
    files = [plan.shards / f"layer-{layer}.safetensors" for layer in range(len(arch.layers))]
    for index, (name, value) in enumerate(around(arch).items()):
        files.append(plan.shards / f"around-{index}.safetensors")
        write_safetensors(files[-1], {name: value}, METADATA, dtype=plan.save_dtype, written=page_out)
    where: dict[str, str] = {}
    total = 0
    for index, file in enumerate(files):
        name = f"model-{index + 1:05}-of-{len(files):05}.safetensors"
        os.replace(file, folder / name)
        with safe_open(folder / name, framework="pt") as opened:
            where |= dict.fromkeys(opened.keys(), name)
        total += (folder / name).stat().st_size
    index_ = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
    (folder / "model.safetensors.index.json").write_text(to_json(index_, indent=2) + "\n")


def around(arch: Arch) -> dict[str, Tensor]:
    """The weights beside the layers, by their name in a checkpoint; tied ones once."""
    found: dict[int, tuple[str, Tensor]] = {}
    for name, value in arch.model.state_dict(keep_vars=True).items():
        if not name.startswith(f"{arch.family.layers}."):
            found.setdefault(id(value), (name, value))
    return dict(found.values())
