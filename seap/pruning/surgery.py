"""Surgery: cuts the removed units out of a model, in place, and makes it a model that saves and reloads.

What forward, cache and config need to know about the new widths isn't listed here: each layer is built once more,
empty, by its family's own constructor with the new widths, and its attributes are copied. The same constructor builds
it when the checkpoint is loaded, so the two can't differ.
"""

import contextlib
import copy
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from seap.compensation.compensate import Repair, Repairs, map_inputs
from seap.errors import UserError, first_line
from seap.models import modeling_seap
from seap.models.arch import Arch, describe
from seap.models.axes import ATTENTION, MLP, Axis, Masks, Slice
from seap.models.blocks import BLOCK_OF, behind, blocks_of
from seap.models.families import width_keys
from seap.models.layer_config import layer_width_values, whole_values
from seap.pruning.ready import check_in_memory
from seap.pruning.whole_layers import drop_layers_
from seap.selection.mask import budgets_of, check_fits
from seap.selection.whole_layers import dropped_layers

_PLAIN = (int, float, bool, str, tuple, type(None))


@torch.no_grad()
def cut_(model: Any, masks: Masks, repairs: Repairs | None = None) -> Arch:
    """Remove what the masks don't keep and repair the consumers. Returns the model seen anew.

    Nothing changes, to the bit, where a mask keeps all and there is no repair. Raises UserError when the masks aren't
    this model's, or when its layers couldn't be built again as cut: then the model is as it was. What fails after that
    says that the model isn't.
    """
    arch = describe(model)
    check_in_memory(model)
    check_fits(arch, masks)
    if dropped_layers(masks):
        assert not repairs, "whole layers go without a repair"
        with partly_cut():
            return drop_layers_(arch, masks)
    added = biased(repairs or {})
    check_buildable(arch, masks, added)
    with partly_cut():
        for layer in range(len(arch.layers)):
            cut_layer_(arch, layer, masks, repairs or {})
        return finish_(arch, masks, added)


def biased(repairs: Repairs) -> set[str]:
    """The keys of the axes whose consumer gets a bias; behind a norm nothing is added (`normed.py`)."""
    return {key for key, repair in repairs.items() if repair.bias.any()}


@contextlib.contextmanager
def partly_cut() -> Iterator[None]:
    """Whatever fails inside leaves a model that is cut in part, and its error says so."""
    try:
        yield
    except Exception as error:
        raise UserError(
            f"the cut failed half-way ({type(error).__name__}: {first_line(error)}): the model in memory is cut in "
            "part; load it again"
        ) from error
    except BaseException as error:
        error.add_note("the model in memory is cut in part; load it again")
        raise


def check_buildable(arch: Arch, masks: Masks, added: Collection[str]) -> None:
    """Raise UserError unless the layers' own constructor makes what the cut will make, weight by weight.

    added: the keys of the axes whose consumer gets a bias.
    It doesn't where an option of the config gives a layer weights that the family's row doesn't know.
    """
    config = copy.deepcopy(arch.model.config)
    try:
        _write_config_(arch, config, masks, added)
        for index in range(len(arch.layers)):
            built = dict(arch.built(config, index).named_parameters())
            for name, shape in _shapes_after(arch, index, masks, added).items():
                if name not in built or built[name].shape != shape:
                    made = tuple(built[name].shape) if name in built else "none"
                    raise UserError(
                        f"layer {index} can't be cut as asked: its {name} would have the shape {tuple(shape)}, and "
                        f"transformers builds {made}; an option of this config isn't in the row of "
                        f"{arch.family.model_type} yet: try --axes channels"
                    )
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"the layers of {type(arch.model).__name__} can't be built as cut ({type(error).__name__}: "
            f"{first_line(error)}), so nothing was cut; give the model as transformers loads it"
        ) from error


def _shapes_after(arch: Arch, index: int, masks: Masks, repaired: Collection[str]) -> dict[str, torch.Size]:
    """Parameter name → shape once the layer is cut; without those of experts, which are cut in one go."""
    shapes = {name: parameter.shape for name, parameter in arch.layers[index].named_parameters()}
    for axis in arch.layer_axes(index):
        if axis.usage_key:
            layout = arch.experts_of(axis).layout
            inside = (f"{layout.module}.", f"{layout.router}.")
            shapes = {name: shape for name, shape in shapes.items() if not name.startswith(inside)}
            continue
        for part in axis.slices:
            kept = len(part.indices(axis.laid_out(axis.mask_of(masks))))
            names = [(part.module, part.dim)] if part.values else [(f"{part.module}.weight", part.dim)]
            if not part.values and not part.consumer:
                names.append((f"{part.module}.bias", 0))
            for name, dim in names:
                if name in shapes:
                    shapes[name] = torch.Size(kept if i == dim else n for i, n in enumerate(shapes[name]))
    blocks, written = blocks_of(arch, index), _written_after(arch, index, masks, repaired)
    needed = {name for kind, block in blocks.items() if kind not in written for name in block["passes"]}
    for kind, size in written.items():
        consumer = blocks[kind]["consumer"]
        away = (f"{consumer.rpartition('.')[0] or consumer}.", *(f"{n}." for n in {*blocks[kind]["passes"]} - needed))
        shapes = {name: shape for name, shape in shapes.items() if not name.startswith(away)}
        shapes[f"{consumer}.weight"] = torch.Size([size])
    return shapes


def _written_after(arch: Arch, layer: int, masks: Masks, repaired: Collection[str]) -> dict[str, int]:
    """The sub-blocks that a layer hasn't got once it is cut → the length of the vector that stays of each."""
    now = {BLOCK_OF[axis.name]: axis for axis in arch.layer_axes(layer) if not masks[axis.key].any()}
    found = {}
    for kind, block in blocks_of(arch, layer).items():
        if kind not in now and (arch.has(layer, kind) or not arch.makes(layer, kind)):
            continue
        consumer = arch.linear(layer, block["consumer"])
        if consumer.weight.dim() == 1:  # it is gone already
            found[kind] = consumer.weight.numel()
        else:
            writes = consumer.bias is not None or now[kind].key in repaired
            found[kind] = arch.weight(layer, block["consumer"]).shape[0] if writes else 0
    return found


@torch.no_grad()
def cut_layer_(arch: Arch, layer: int, masks: Masks, repairs: Repairs) -> None:
    """Cut one layer's weights; the model runs again once all layers are cut and it is finished (`finish_`)."""
    for axis in arch.layer_axes(layer):
        if masks[axis.key].any():
            cut = _cut_experts_ if axis.usage_key else _cut_linears_
            cut(arch, axis, axis.mask_of(masks), repairs.get(axis.key))
    if any(not masks[axis.key].any() for axis in arch.layer_axes(layer)):
        _drop_blocks_(arch, layer, masks, repairs)


def _drop_blocks_(arch: Arch, layer: int, masks: Masks, repairs: Repairs) -> None:
    """Take whole sub-blocks out of a layer; what stays of one is its consumer's bias, with the repair's."""
    written, blocks = _written_after(arch, layer, masks, biased(repairs)), blocks_of(arch, layer)
    keys = {BLOCK_OF[axis.name]: axis.key for axis in arch.layer_axes(layer) if axis.name in BLOCK_OF}
    vectors = {}
    for kind, size in written.items():
        consumer = arch.linear(layer, blocks[kind]["consumer"])
        vector = consumer.weight
        if vector.dim() > 1:
            repair = repairs.get(keys[kind])
            vector = torch.zeros(size, dtype=torch.float64)
            for part in (consumer.bias, None if repair is None else repair.bias):
                vector = vector if part is None else vector + part.cpu().double()
            norm = behind(arch, layer, kind)
            vector = vector if norm is None or not size else norm(vector.to(consumer.weight))
        vectors[kind] = _like(consumer.weight, vector.to(consumer.weight))
    modeling_seap.drop_(arch.layers[layer], blocks, written)
    for kind, vector in vectors.items():
        arch.linear(layer, blocks[kind]["consumer"]).weight = vector


def _cut_linears_(arch: Arch, axis: Axis, mask: Tensor, repair: Repair | None) -> None:
    if repair is not None and repair.bias.any():
        _add_bias_(arch, axis, repair)
    if not mask.all():
        for part in axis.slices:
            _slice_linear_(arch.linear(axis.layer, part.module), part, axis.laid_out(mask))
    if repair is not None and repair.weight is not None:
        arch.weight(axis.layer, axis.consumer).copy_(repair.weight)
    if repair is not None and repair.inputs is not None:
        for module in axis.producers:
            weight = arch.weight(axis.layer, module)
            weight.copy_(map_inputs(weight, repair.inputs))


def _cut_experts_(arch: Arch, axis: Axis, mask: Tensor, repair: Repair | None) -> None:
    experts = arch.experts_of(axis)
    if repair is not None or not mask.all():
        experts.replace_(experts.cut(mask, None if repair is None else repair.weight))


def finish_(arch: Arch, masks: Masks, repaired: Collection[str]) -> Arch:
    """Tell config and layers of their new widths. repaired: the keys of the axes whose consumer got a bias."""
    model = arch.model
    _write_config_(arch, model.config, masks, repaired)
    _copy_attributes_(arch)
    model.__dict__.pop("_seap_files", None)  # of an earlier pruning
    modeling_seap.adopt_(model)
    if model.base_model is not model:
        modeling_seap.adopt_(model.base_model)
    return describe(model)


def _slice_linear_(linear: Any, part: Slice, mask: Tensor) -> None:
    keep = part.indices(mask.to(linear.weight.device))
    linear.weight = _like(linear.weight, linear.weight.index_select(part.dim, keep))
    if linear.bias is not None and not part.consumer:
        linear.bias = _like(linear.bias, linear.bias.index_select(0, keep))


def _like(old: Tensor, new: Tensor) -> nn.Parameter:
    return nn.Parameter(new.contiguous(), requires_grad=old.requires_grad)


def _add_bias_(arch: Arch, axis: Axis, repair: Repair) -> None:
    consumer = arch.consumer(axis)
    modeling_seap.add_bias_(consumer, repair.bias.numel())
    consumer.bias.copy_((consumer.bias.cpu().double() + repair.bias.cpu()).to(consumer.bias))


def _write_config_(arch: Arch, config: Any, masks: Masks, repaired: Collection[str]) -> None:
    """Per-layer widths for transformers, and under `seap` what modeling_seap.py needs to build the layers."""
    budgets = budgets_of(arch.axes, masks)
    layers = range(len(arch.layers))
    added: dict[str, list[int]] = {
        path: list(i) for path, i in (getattr(config, "seap", None) or {}).get("added_bias", {}).items()
    }
    for axis in arch.axes:
        if not masks[axis.key].any():  # nothing is left that has a bias
            added[axis.consumer] = [layer for layer in added.get(axis.consumer, []) if layer != axis.layer]
        elif axis.key in repaired and not axis.usage_key and axis.layer not in added.setdefault(axis.consumer, []):
            added[axis.consumer].append(axis.layer)
    config.seap = _told_of_layers(arch, config, budgets) | {"added_bias": added}
    for name, value in whole_values(arch).items():  # of the first layer that has an attention by now
        setattr(config, name, value)
    _write_blocks_(arch, config, {i: _written_after(arch, i, masks, repaired) for i in layers})
    auto = {"AutoModelForCausalLM": "SeapForCausalLM", "AutoModel": "SeapModel"}
    config.auto_map = {name: f"modeling_seap.{target}" for name, target in auto.items()}
    config.architectures = ["SeapForCausalLM"]
    modeling_seap.name_what_it_needs_(config)


def _told_of_layers(arch: Arch, config: Any, budgets: dict[str, int]) -> dict[str, Any]:
    """What `modeling_seap.py` needs to know of the layers; their widths go into `per_layer_config` where they can."""
    family, layout = arch.family, arch.family.experts
    names = arch.layer_classes
    told: dict[str, Any] = {"widths": list(width_keys(family)), "layer_class": [*names] if len(names) > 1 else names[0]}
    widths = [layer_width_values(arch, budgets, layer) for layer in range(len(arch.layers))]
    if layout is not None:
        told["expert_width"] = layout.channels_key
    if layout is not None and layout.resized:
        told["resized"] = layout.resized
        if not hasattr(config, layout.shared_key):
            setattr(config, layout.shared_key, 0)  # of the layers that have no experts
    said = getattr(config, family.channels_key, None)
    if isinstance(said, list):  # of every layer, which its stock class reads
        setattr(config, family.channels_key, [own.get(family.channels_key, said[i]) for i, own in enumerate(widths)])
    if family.sizes_by_type:
        return told | {"layers": widths}
    config.allow_global_per_layer_attribute_access = True
    config.per_layer_config = dict(enumerate(widths))
    return told


def _write_blocks_(arch: Arch, config: Any, written: Mapping[int, Mapping[str, int]]) -> None:
    """What `modeling_seap.py` needs to build layers without a sub-block, and the same as `nemotron-nas` says it."""
    if not any(written.values()):
        return
    config.seap["blocks"] = blocks_of(arch, 0)
    config.seap["written"] = {
        kind: [layer for layer, sizes in written.items() if sizes.get(kind)] for kind in (ATTENTION, MLP)
    }
    config.block_configs = [
        {"attention": {"no_op": ATTENTION in sizes}, "ffn": {"no_op": MLP in sizes}} for sizes in written.values()
    ]


def _copy_attributes_(arch: Arch) -> None:
    for index, layer in enumerate(arch.layers):
        for path, name, value in layer_attributes(arch, arch.model.config, index):
            setattr(layer.get_submodule(path), name, value)


def layer_attributes(arch: Arch, config: Any, index: int) -> Iterator[tuple[str, str, Any]]:
    """Path, name and value of all that a layer built from this config holds beside its weights."""
    for path, module in arch.built(config, index).named_modules():
        for name, value in vars(module).items():
            plain = isinstance(value, _PLAIN) and not name.startswith("_") and name != "training"
            if plain or name == "config":
                yield path, name, value
