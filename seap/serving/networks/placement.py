"""Where a network's weights come from: views of the dense ones where they are contiguous slices, packed copies else.

A `Piece` says, for one linear of one network, which slices of the (reordered) dense weight it is. With one slice the
linear's weight becomes a view, which costs no memory; with several, of `min_slice_bytes` in the mean, its forward adds
or joins the slices' products; with smaller ones, whose calls would cost more than they save, or where reconstruction
gave the linear its own weight, it needs a packed copy. A correction of low rank is added by the forward, or goes into
the copy. Shapes: C inputs, O outputs, k kept inputs, r rank.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from seap.models.arch import Arch
from seap.models.axes import Axis, Slice
from seap.models.layouts import Layouts
from seap.models.prepack import product_of
from seap.serving.networks.network import Network, weight_key
from seap.serving.networks.order import slices_of

Assignment = tuple[dict[str, Any], str, Any]  # a module's dict, the entry's name, its value
Assignments = list[Assignment]
Bounds = list[tuple[int, int]]
ABSENT = object()  # the value of an entry that isn't there
Correction = tuple[Tensor, Tensor]  # left (O, r), right (r, C)


@dataclass(frozen=True)
class Piece:
    """One linear of one network."""

    axis: Axis
    part: Slice
    rows: Tensor  # int64: what is kept along part.dim, in the reordered weight
    bounds: Bounds  # the same as slices
    own_weight: bool  # reconstruction gave the linear its own
    own_bias: bool
    rank: int  # of the correction to the dense weight; 0 is none
    packed: bool  # held as a copy
    bytes: int  # what it costs while its network is resident

    def dense(self, arch: Arch) -> Assignments:
        """Every entry that it may set, as it is in the dense model."""
        linear = arch.linear(self.axis.layer, self.part.module)
        found: Assignments = [(linear._parameters, name, linear._parameters[name]) for name in ("weight", "bias")]
        return [*found, (vars(linear), "forward", vars(linear).get("forward", ABSENT))]

    @property
    def key(self) -> str:
        return weight_key(self.axis, self.part)


def pieces_of(arch: Arch, network: Network, order: Mapping[str, Tensor], min_slice_bytes: int) -> Iterator[Piece]:
    """Every linear that a network changes; `packed.py` has the rest. order: axis key → permutation of its units."""
    for axis in (axis for axis in arch.axes if not axis.usage_key):
        keep = axis.kept_of(network.masks)[order[axis.key]]
        for part in (part for part in axis.slices if not part.values):
            key = weight_key(axis, part)
            if not keep.all() or key in network.weights or key in network.left or _has_bias(network, axis, part):
                yield _piece(arch, network, axis, part, part.indices(keep), min_slice_bytes)


def _has_bias(network: Network, axis: Axis, part: Slice) -> bool:
    return part.consumer and axis.key in network.biases


def _piece(arch: Arch, network: Network, axis: Axis, part: Slice, rows: Tensor, min_slice_bytes: int) -> Piece:
    linear, key, bounds = arch.linear(axis.layer, part.module), weight_key(axis, part), slices_of(rows)
    own, own_bias = key in network.weights, _has_bias(network, axis, part)
    size, others = linear.weight.element_size(), linear.weight.shape[1 - part.dim]
    whole = len(rows) * others
    packed = own or (len(bounds) > 1 and whole * size < min_slice_bytes * len(bounds))
    rank = network.right[key].shape[0] if key in network.right else 0
    num = whole if packed else rank * (len(rows) + others)
    if own_bias:
        num += others
    elif linear.bias is not None and not part.consumer and len(bounds) > 1:
        num += len(rows)
    return Piece(axis, part, rows, bounds, own, own_bias, rank, packed, num * size)


@torch.no_grad()
def assignments_of(
    arch: Arch, piece: Piece, network: Network, order: Mapping[str, Tensor], layouts: Layouts
) -> Assignments:
    """What to set in the linear's dicts for this network; packs what has to be packed, in the layout that is faster."""
    linear, part = arch.linear(piece.axis.layer, piece.part.module), piece.part
    parameters, bias = linear._parameters, linear.bias
    if bias is not None and not part.consumer:
        bias = _frozen(_taken(bias, 0, piece.rows, piece.bounds))
    if piece.own_bias:
        bias = _frozen(network.biases[piece.axis.key].to(linear.weight))
    sets: Assignments = [(parameters, "bias", bias)]
    low = _correction(arch, piece, network, order[piece.axis.key]) if piece.rank else None
    if piece.packed or (low is None and len(piece.bounds) == 1):
        weight = _frozen(_weight(arch, piece, network, order[piece.axis.key], low))
        laid_out = piece.packed and type(linear) is nn.Linear and layouts.pays(weight)
        product = product_of(weight, bias) if laid_out else None
        if product is None:
            return [*sets, (parameters, "weight", weight)]
        return [*sets, (parameters, "weight", _frozen(weight.to("meta"))), (vars(linear), "forward", product)]
    return [*sets, (vars(linear), "forward", _in_slices(arch, piece, bias, low))]


def _frozen(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.detach(), requires_grad=False)


def _taken(values: Tensor, dim: int, rows: Tensor, bounds: Bounds) -> Tensor:
    """A view where there is one slice, else a copy."""
    if len(bounds) == 1:
        return values.narrow(dim, bounds[0][0], bounds[0][1] - bounds[0][0])
    return values.index_select(dim, rows.to(values.device))


def _weight(arch: Arch, piece: Piece, network: Network, order: Tensor, low: Correction | None) -> Tensor:
    """The linear's weight as one tensor: its own, or the slices of the dense one with the correction added."""
    part = piece.part
    dense = arch.linear(piece.axis.layer, part.module).weight
    if piece.own_weight:
        weight = _moved(network.weights[piece.key], 1 if part.consumer else 0, piece, network, order).to(dense)
        return weight.t().contiguous() if arch.family.transposed else weight.contiguous()
    weight = _taken(dense, part.dim, piece.rows, piece.bounds)
    if low is None:
        return weight
    more = (low[0].float() @ low[1].float()).to(weight)
    return weight + (more.t() if arch.family.transposed else more)


def _correction(arch: Arch, piece: Piece, network: Network, order: Tensor) -> Correction:
    """left (O, r) and right (r, C) of what is added to the dense weight, in the runtime's order of units."""
    left, right = network.left[piece.key], network.right[piece.key]
    if piece.part.consumer:
        right = _moved(right, 1, piece, network, order)
    else:
        left = _moved(left, 0, piece, network, order)
    weight = arch.linear(piece.axis.layer, piece.part.module).weight
    return left.to(weight).contiguous(), right.to(weight).contiguous()


def _moved(values: Tensor, dim: int, piece: Piece, network: Network, order: Tensor) -> Tensor:
    """Kept units along a dimension, moved from the dense order to the runtime's."""
    dense = piece.part.indices(order)[piece.rows]
    places = torch.searchsorted(piece.part.indices(piece.axis.kept_of(network.masks)), dense)
    return values.index_select(dim, places)


def _in_slices(arch: Arch, piece: Piece, bias: Tensor | None, low: Correction | None) -> Callable[[Tensor], Tensor]:
    """A forward over slices of the dense weight (O, C), joined along the outputs, or added up for a consumer.

    Where a correction is given, its product is added; the bias and every further product are added in place.
    """
    weight = arch.weight(piece.axis.layer, piece.part.module).detach()
    dim = 1 if piece.part.consumer else 0
    parts = [weight.narrow(dim, a, b - a) for a, b in piece.bounds]
    sizes = [b - a for a, b in piece.bounds]
    turned = [part.t() for part in parts]

    def joined(rows: Tensor) -> Tensor:
        if len(parts) == 1:
            return functional.linear(rows, parts[0], bias)
        found = torch.cat([functional.linear(rows, part) for part in parts], -1)
        return found if bias is None else found.add_(bias)

    def added(rows: Tensor) -> Tensor:
        inputs = rows.split(sizes, -1)
        found = functional.linear(inputs[0], parts[0], bias)
        for values, part in zip(inputs[1:], turned[1:], strict=True):
            found.addmm_(values, part)
        return found

    product = added if piece.part.consumer else joined

    def forward(x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        found = product(rows)
        if low is not None:
            found.addmm_(functional.linear(rows, low[1]), low[0].t())
        return found.view(*x.shape[:-1], found.shape[-1])

    return forward
