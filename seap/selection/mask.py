"""Masks: which units of each axis stay. True keeps."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seap.activations.checks import axis_keyed
from seap.errors import UserError
from seap.files import read_tensors, write_tensors
from seap.models.arch import Arch
from seap.models.axes import BLOCK, KV_GROUPS, QUERY_HEADS, Axis, Masks
from seap.models.blocks import check_gone
from seap.scoring.score import Scores, unit_scores
from seap.selection.whole_layers import dropped_layers
from seap.shown import html_table


def choose_units(axes: Sequence[Axis], scores: Scores, budgets: Mapping[str, int]) -> Masks:
    """Keep the best-scored units of each axis, as many as its budget; among equals the first ones.

    Of experts, those of each expert that stays; of KV groups whose budget says so, the best query heads of each.
    """
    masks: Masks = {}
    for axis in (axis.shaped(budgets) for axis in axes):
        mask = unit_places(axis, scores) < budgets.get(axis.key, axis.units)
        if axis.kept is not None:
            mask[[expert for expert in range(axis.experts) if expert not in axis.kept]] = False
        if axis.heads < axis.queries:
            masks[axis.heads_key] = mask.flatten()
            mask = mask.view(axis.units, axis.queries).any(1)
        masks[axis.key] = mask.flatten()
    return masks


def unit_places(axis: Axis, scores: Scores) -> Tensor:
    """int64 (E, U): the place of each unit among its expert's, the best first; without experts there is one part.

    Of KV groups with fewer query heads, (1, G·Q): its group's place for each head that stays, G for the others.
    """
    own = unit_scores(axis, scores[axis.key]).view(axis.experts, axis.units)
    places = _places(own)
    if axis.heads == axis.queries:
        return places
    heads = unit_scores(axis.each_head(), scores[axis.key]).view(axis.units, axis.queries)
    return places.view(-1, 1).where(_places(heads) < axis.heads, axis.units).view(1, -1)


def _places(scores: Tensor) -> Tensor:
    """int64 (N, U): the place of each in its row, the highest first, among equals the first one."""
    order = torch.sort(scores, dim=1, descending=True, stable=True).indices
    return torch.empty_like(order).scatter_(1, order, torch.arange(scores.shape[1]).expand_as(order).contiguous())


def kept_experts(axis: Axis, mask: Tensor) -> tuple[int, ...]:
    """The experts of which a mask keeps something; (0,) for the other axes, which have one part."""
    return tuple(mask.view(axis.experts, axis.units).any(1).nonzero().flatten().tolist())


def budgets_of(axes: Sequence[Axis], masks: Masks) -> dict[str, int]:
    """Units kept by axis key, experts kept by their usage key; query heads of each group, where any are cut."""
    budgets, by_head = {}, any(axis.heads_key in masks for axis in axes if axis.heads_key)
    for axis in axes:
        experts = len(kept_experts(axis, masks[axis.key]))
        if axis.usage_key:
            budgets[axis.usage_key] = experts
        budgets[axis.key] = int(masks[axis.key].sum()) // max(experts, 1)
        if by_head and axis.heads_key and budgets[axis.key]:
            own = masks.get(axis.heads_key)
            budgets[axis.heads_key] = axis.queries if own is None else int(own.sum()) // budgets[axis.key]
    return budgets


def removed_params(axes: Sequence[Axis], masks: Masks) -> int:
    """Parameters that the masks take away."""
    return sum(axis.removed_params(axis.mask_of(masks)) for axis in axes)


def realised_sparsity(arch: Arch, masks: Masks) -> float:
    """Removed over all prunable parameters; protected layers and uncuttable heads count in the latter."""
    with_layers = sum(arch.uncut_params(layer) for layer in dropped_layers(masks))
    return (removed_params(arch.axes, masks) + with_layers) / arch.prunable_params


def check_fits(arch: Arch, masks: Masks) -> None:
    """Raise UserError unless the masks are this model's: the same axes, the same numbers of units.

    An axis may lose all its units where its whole sub-block can go, or its layer, of which one at least stays.
    """
    sizes = {axis.key: axis.entries for axis in arch.axes}
    found = {key: mask.numel() for key, mask in masks.items() if not key.endswith(f".{BLOCK}")}
    sizes |= {axis.heads_key: axis.units * axis.queries for axis in arch.axes if axis.heads_key in found}
    for key in sorted(sizes.keys() | found.keys()):
        if sizes.get(key) != found.get(key):
            raise UserError(
                f"the mask doesn't fit the model: {key} has {found.get(key, 'no')} units in the mask, "
                f"{sizes.get(key, 'no')} in the model"
            )
    dropped = dropped_layers(masks)
    if dropped and not dropped < set(range(len(arch.layers))):
        raise UserError(f"the mask removes the layers {sorted(dropped)} of {len(arch.layers)}; at least 1 must remain")
    check_gone(arch, masks, whole_layers=dropped)
    _check_heads(arch, masks)
    for axis in [axis for axis in arch.axes if axis.usage_key and axis.layer not in dropped]:
        check_experts(arch, axis, len(kept_experts(axis, masks[axis.key])))
        counts = masks[axis.key].view(axis.experts, axis.units).sum(1)
        if len(set(counts.tolist()) - {0}) > 1:
            raise UserError(
                f"{axis.key}: the mask keeps {counts.tolist()} channels of the experts; all that stay need equally many"
            )


def _check_heads(arch: Arch, masks: Masks) -> None:
    """Raise UserError unless single query heads are those of the groups that stay, equally many of each."""
    for axis in [axis for axis in arch.axes if axis.heads_key in masks]:
        counts = masks[axis.heads_key].view(axis.units, axis.queries).sum(1)
        if not torch.equal(counts > 0, masks[axis.key].to(counts.device)):
            raise UserError(f"{axis.heads_key}: the groups that keep query heads aren't those that {axis.key} keeps")
        if len(set(counts.tolist()) - {0}) > 1:
            raise UserError(
                f"{axis.heads_key}: the mask keeps {counts.tolist()} query heads of the groups; all that stay need "
                "equally many"
            )


def check_experts(arch: Arch, axis: Axis, count: int) -> None:
    """Raise UserError unless so many experts are enough for the router, and are there."""
    experts = arch.experts_of(axis)
    needed = experts.least
    if not needed <= count <= axis.experts:
        why = f"the router sends every token to {experts.per_token}"
        if experts.groups > 1:
            why = f"the router chooses among {experts.groups} groups of equally many, so all stay"
        elif needed > experts.per_token:
            why = f"the router values them by its best {needed}"
        raise UserError(
            f"layer {axis.layer} experts: {count} of {axis.experts} would stay, but {why}; "
            f"keep from {needed} to {axis.experts}, as --experts {needed}"
        )


def compose(before: Masks, after: Masks) -> Masks:
    """Masks of the original model from those of a first and of a second pruning."""
    composed = {}
    for key, first in before.items():
        if key.endswith(f".{QUERY_HEADS}"):
            continue
        composed[key] = first.clone()
        if first.any():  # what is gone already has no axis any more
            composed[key][first] = after[key]
        if key.endswith(f".{KV_GROUPS}"):
            composed |= _composed_heads(key.removesuffix(KV_GROUPS) + QUERY_HEADS, first, before, after, key)
    return composed


def _composed_heads(name: str, groups: Tensor, before: Masks, after: Masks, key: str) -> Masks:
    """Which query heads stay of a layer, under their key, where either pruning cut some."""
    first, second = before.get(name), after.get(name)
    if first is None and second is None:
        return {}
    if not groups.any():
        return {} if first is None else {name: first.clone()}
    if first is None:
        assert second is not None
        first = groups.repeat_interleave(second.numel() // after[key].numel())
    if second is None:
        second = after[key].repeat_interleave(int(first.sum()) // after[key].numel())
    composed = first.clone()
    composed[first] = second
    return {name: composed}


class ShownMasks(dict[str, Tensor]):
    """Masks that show in a notebook what each layer keeps."""

    def _repr_html_(self) -> str:
        axes = list(dict.fromkeys(key.rpartition(".")[2] for key in self))
        layers = sorted({int(key.split(".")[1]) for key in self})
        rows = [[str(layer), *(self._kept(layer, axis) for axis in axes)] for layer in layers]
        return html_table("Units kept", ["layer", *(axis.replace("_", " ") for axis in axes)], rows)

    def _kept(self, layer: int, axis: str) -> str:
        """`176 of 352  ██████░░░░░░`"""
        mask = self.get(f"layers.{layer}.{axis}")
        if mask is None:
            return ""
        bar = round(12 * float(mask.float().mean()))
        return f"{int(mask.sum())} of {mask.numel()}  {'█' * bar}{'░' * (12 - bar)}"


def save_masks(path: Path, masks: Masks, about: Mapping[str, Any]) -> None:
    write_tensors(path, "mask", masks, about)


def load_masks(path: Path) -> tuple[Masks, dict[str, Any]]:
    """Masks and their metadata. Raises UserError for tensors that are none."""
    masks, about = read_tensors(path, "mask")
    check_masks(path, masks)
    return ShownMasks(masks), about


def check_masks(path: Path, masks: Mapping[str, Tensor]) -> None:
    """Raise UserError unless all are one-dimensional, of bools, and called after an axis."""
    axis_keyed(path, masks)
    for key, mask in masks.items():
        if mask.dtype != torch.bool or mask.dim() != 1 or not mask.numel():
            raise UserError(f"{path}: {key} has type {mask.dtype} and shape {tuple(mask.shape)}; a mask is of bools")
    if not masks:
        raise UserError(f"{path}: it has no masks; make it again, with seap mask")
