"""Where a network's weights come from: views of the dense ones where they are contiguous slices, packed copies else.

A `Piece` says, for one linear of one network, which slices of the (reordered) dense weight it is. With one slice the
linear's weight becomes a view, which costs no memory; with a few, up to `max_slices`, its forward adds or joins the
slices' products; with more, or where reconstruction gave the linear its own weight, it needs a packed copy.
Shapes: C inputs, O outputs, k kept inputs.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from seap.arch import Arch, Axis, Slice
from seap.network import Network, weight_key
from seap.order import slices_of

Assignment = tuple[dict[str, Any], str, Any]  # a module's dict, the entry's name, its value
Assignments = list[Assignment]
Bounds = list[tuple[int, int]]


@dataclass(frozen=True)
class Piece:
    """One linear of one network."""

    axis: Axis
    part: Slice
    rows: Tensor  # int64: what is kept along part.dim, in the reordered weight
    bounds: Bounds  # the same as slices
    own_weight: bool  # reconstruction gave the linear its own
    own_bias: bool

    def is_packed(self, max_slices: int) -> bool:
        return self.own_weight or len(self.bounds) > max_slices


def pieces_of(arch: Arch, network: Network, order: dict[str, Tensor]) -> Iterator[Piece]:
    """Every linear that a network changes. order: axis key → permutation of its units."""
    for axis in arch.axes:
        keep = network.masks[axis.key][order[axis.key]]
        for part in axis.slices:
            own = weight_key(axis, part) in network.weights, part.consumer and axis.key in network.biases
            if not keep.all() or any(own):
                rows = part.indices(keep)
                yield Piece(axis, part, rows, slices_of(rows), *own)


def packed_bytes(arch: Arch, piece: Piece, max_slices: int) -> int:
    """What a piece costs while its network is resident."""
    linear = arch.linear(piece.axis.layer, piece.part.module)
    weight, bias = linear.weight, linear.bias
    size = weight.element_size()
    outputs = weight.shape[1 - piece.part.dim]
    num = len(piece.rows) * outputs if piece.is_packed(max_slices) else 0
    if piece.own_bias:
        num += outputs
    elif bias is not None and not piece.part.consumer and len(piece.bounds) > 1:
        num += len(piece.rows)
    return num * size


@torch.no_grad()
def assignments_of(
    arch: Arch, piece: Piece, network: Network, order: dict[str, Tensor], max_slices: int
) -> Assignments:
    """What to set in the linear's dicts for this network; packs what has to be packed."""
    linear, part = arch.linear(piece.axis.layer, piece.part.module), piece.part
    parameters, bias = linear._parameters, linear.bias
    if bias is not None and not part.consumer:
        bias = _frozen(_taken(bias, 0, piece.rows, piece.bounds))
    if piece.own_bias:
        bias = _frozen(network.biases[piece.axis.key].to(linear.weight))
    sets: Assignments = [(parameters, "bias", bias)]
    if piece.own_weight:
        weight = _own_weight(arch, piece, network, order[piece.axis.key])
        return [*sets, (parameters, "weight", _frozen(weight))]
    if piece.is_packed(max_slices) or len(piece.bounds) == 1:
        return [*sets, (parameters, "weight", _frozen(_taken(linear.weight, part.dim, piece.rows, piece.bounds)))]
    return [*sets, (vars(linear), "forward", _in_slices(arch, piece, bias))]


def _frozen(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.detach(), requires_grad=False)


def _taken(values: Tensor, dim: int, rows: Tensor, bounds: Bounds) -> Tensor:
    """A view where there is one slice, else a copy."""
    if len(bounds) == 1:
        return values.narrow(dim, bounds[0][0], bounds[0][1] - bounds[0][0])
    return values.index_select(dim, rows.to(values.device))


def _own_weight(arch: Arch, piece: Piece, network: Network, order: Tensor) -> Tensor:
    """The linear's own weight, its units moved from the dense order to the runtime's."""
    part = piece.part
    dense = part.indices(order)[piece.rows]
    places = torch.searchsorted(part.indices(network.masks[piece.axis.key]), dense)
    weight = network.weights[weight_key(piece.axis, part)].index_select(1 if part.consumer else 0, places)
    weight = weight.to(arch.linear(piece.axis.layer, part.module).weight)
    return weight.t().contiguous() if arch.family.transposed else weight.contiguous()


def _in_slices(arch: Arch, piece: Piece, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """A forward over slices of the dense weight (O, C): joined along the outputs, or added up for a consumer."""
    weight = arch.weight(piece.axis.layer, piece.part.module).detach()
    dim = 1 if piece.part.consumer else 0
    parts = [weight.narrow(dim, a, b - a) for a, b in piece.bounds]
    sizes = [b - a for a, b in piece.bounds]

    def joined(x: Tensor) -> Tensor:
        found = torch.cat([functional.linear(x, part) for part in parts], -1)
        return found if bias is None else found + bias

    def added(x: Tensor) -> Tensor:
        inputs = x.split(sizes, -1)
        found = functional.linear(inputs[0], parts[0], bias)
        for values, part in zip(inputs[1:], parts[1:], strict=True):
            found = found + functional.linear(values, part)
        return found

    return added if piece.part.consumer else joined
