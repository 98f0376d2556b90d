"""Pruning a model that is larger than memory: its layers are measured, scored, cut and written one after the other.

The figures are the same as in memory. What needs the whole model many times (search, measured damage, the loss's
sensitivity, the refit) is refused.
"""

import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from tqdm import tqdm

from seap.compensation.compensate import Repair, Repairs, Source, repair_axes
from seap.errors import UserError
from seap.files import to_json, write_safetensors
from seap.methods import MEASURED
from seap.models.arch import Arch, describe
from seap.models.axes import Masks
from seap.models.residency import modules_of, page_out, read_ahead, ready_, streamed
from seap.pruning.surgery import check_buildable, cut_layer_, finish_
from seap.selection.mask import check_fits
from seap.selection.options import Pruning

METADATA = {"format": "pt"}
LAYER_BY_LAYER = "--score obs --allocate logistic --no-sequential"


def check_streamable(options: Pruning) -> None:
    """Raise UserError for choices that run the whole model again and again."""
    method = options.resolved()
    wanted = {
        f"--score {method.score}": method.score == "obs-fisher",
        f"--allocate {method.allocate}": method.allocate in MEASURED,
        "--sequential": method.sequential,
        "--cost milliseconds": options.cost == "milliseconds",
        "--mix auto": options.mix == "auto",
        "--worst-task": options.worst_task,
    }
    refused = [name for name, is_wanted in wanted.items() if is_wanted]
    if refused:
        raise UserError(
            f"{', '.join(refused)} needs the whole model in memory, which --stream doesn't have; add {LAYER_BY_LAYER}, "
            "or choose --method seap-paper, flap or wanda-sp"
        )


@torch.no_grad()
def cut_streamed_(model: Any, masks: Masks, source: Source, compensate: str, *, progress: bool = True) -> Repairs:
    """Repair and cut a streamed model layer by layer; each is written to the plan's folder and read from there on.

    Returns what the repairs were, without their matrices.
    """
    arch, plan = describe(model), streamed(model)
    assert plan is not None
    check_fits(arch, masks)
    check_buildable(arch, masks, {} if compensate == "none" else dict.fromkeys(masks, Repair(torch.empty(0))))
    told: Repairs = {}
    for layer in tqdm(range(len(arch.layers)), desc="cut", unit="layer", disable=not progress, leave=False):
        read_ahead(value for one in arch.layers[layer : layer + 2] for value in one.parameters())
        before = ready_(modules_of(arch, layer), plan)
        repairs = repair_axes(arch, masks, source, compensate, layer=layer)
        cut_layer_(arch, layer, masks, repairs)
        page_out(value for _, _, value in before)
        told |= {key: Repair(torch.empty(0), about=repair.about) for key, repair in repairs.items()}
        path = plan.shards / f"layer-{layer}.safetensors"
        _to_file_(arch.layers[layer], f"{arch.family.layers}.{layer}.", path, plan.save_dtype)
    finish_(arch, masks, told.keys())
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
