"""What of a task's network is no linear: the experts' fused weights, and parameters with a value for each head.

Which channels stay differs from expert to expert, so that a network has packed copies of what it keeps of them, where
its linears may be slices of the dense weights (`placement.py`). Its file holds the experts' last linears where
reconstruction changed them, and nothing but the mask where it didn't.
Shapes: D hidden size, E experts, U channels of each, n experts kept, w channels of each kept.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from seap.errors import UserError
from seap.models.arch import Arch
from seap.models.axes import Axis, Masks, Slice

if TYPE_CHECKING:
    from seap.serving.networks.placement import Assignments


@dataclass(frozen=True)
class ExpertPiece:
    """All experts of one layer of one network."""

    axis: Axis
    mask: Tensor  # bool (E·U,)
    weights: Mapping[str, Tensor]  # the network's own by axis key, (D, n·w) of its last linears; read when needed
    bytes: int  # what they cost while the network is resident

    def dense(self, arch: Arch) -> "Assignments":
        """Every entry that they set, as it is in the dense model."""
        experts = arch.experts_of(self.axis)
        return [(inside, name, inside[name]) for inside, name in _places(experts.layer, experts.paths)]

    @torch.no_grad()
    def assignments(self, arch: Arch) -> "Assignments":
        """What to set for the network."""
        experts = arch.experts_of(self.axis)
        new = experts.cut(self.mask, self.weights.get(self.axis.key))
        places = zip(_places(experts.layer, [*new]), new.values(), strict=True)
        return [(inside, name, _like(inside[name], value)) for (inside, name), value in places]


@dataclass(frozen=True)
class ValuesPiece:
    """A parameter with some values for each unit of an axis, such as attention sinks."""

    axis: Axis
    part: Slice
    rows: Tensor  # int64: what is kept of it, in the runtime's order
    bytes: int

    def dense(self, arch: Arch) -> "Assignments":
        place = arch.linear(self.axis.layer, self.part.module)
        return [(place.owner._parameters, place.name, place.weight)]

    def assignments(self, arch: Arch) -> "Assignments":
        [(inside, name, values)] = self.dense(arch)
        return [(inside, name, _like(values, values.detach().index_select(0, self.rows.to(values.device))))]


def packed_pieces(
    arch: Arch, masks: Masks, weights: Mapping[str, Tensor], order: Mapping[str, Tensor]
) -> list[ExpertPiece | ValuesPiece]:
    """All that a network changes of such. weights: by axis key, (D, n·w) of experts. order: as of `placement.py`."""
    found: list[ExpertPiece | ValuesPiece] = []
    for axis in arch.axes:
        mask = axis.kept_of(masks)
        for part in axis.slices if not mask.all() else ():
            if part.values:
                rows = part.indices(mask[order[axis.key]])
                size = arch.linear(axis.layer, part.module).weight.element_size()
                found.append(ValuesPiece(axis, part, rows, len(rows) * size))
        if axis.usage_key and (not mask.all() or axis.key in weights):
            experts = arch.experts_of(axis)
            chosen = int(mask.view(axis.experts, axis.units).any(1).sum())
            size = int(mask.sum()) * axis.entry_params * experts[experts.layout.down].element_size()
            size += chosen * sum(experts[path][0].nbytes for path in experts.by_expert)
            found.append(ExpertPiece(axis, mask, weights, size))
    return found


def experts_between(arch: Arch, cut: Arch, axis: Axis, mask: Tensor) -> Tensor | None:
    """The last linears (D, n·w) that a pruned model's experts have of their own; None where they are the dense ones'.

    Raises UserError where anything else of them isn't what the mask keeps of the dense ones.
    """
    dense, own = arch.experts_of(axis), cut.experts_of(axis)
    last = dense.layout.down
    for path, kept in dense.cut(mask).items():
        same = own[path].shape == kept.shape and torch.equal(own[path].to(kept).cpu(), kept.cpu())
        if own[path].shape != kept.shape or (path != last and not same):
            raise not_of_this_model(arch, axis, path)
        if path == last and not same:
            return own.consumer_weight().detach().clone()
    return None


def not_of_this_model(arch: Arch, axis: Axis, path: str) -> UserError:
    """Weights at a path that are no part of the dense model's."""
    return UserError(
        f"{arch.name_of(axis)} {path} of the pruned model isn't what its mask keeps of this dense one; name the model "
        "that it was pruned from, in the same dtype"
    )


def _places(layer: nn.Module, paths: list[str]) -> list[tuple[dict[str, Any], str]]:
    """Of every parameter, the dict that holds it and its name there."""
    found: list[tuple[dict[str, Any], str]] = []
    for owner, _, name in (path.rpartition(".") for path in paths):
        module = layer.get_submodule(owner)
        found.append((module._buffers if name in module._buffers else module._parameters, name))
    return found


def _like(old: Tensor, new: Tensor) -> Tensor:
    return nn.Parameter(new.contiguous(), requires_grad=False) if isinstance(old, nn.Parameter) else new.contiguous()
