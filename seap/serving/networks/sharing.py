"""Sharing: what reconstruction changed in a network, as corrections of low rank to the dense weights.

A network whose linears are all its own costs what its checkpoint costs. Here each becomes what the mask keeps of the
dense weight, which every network shares, plus L · R of rank r. For a change Δ of a linear with inputs x and Fisher
information g² of its outputs (the mean over them, `sensitivity.py`), the best such correction in E‖Δx − L R x‖² has
for L the leading eigenvectors of Δ C Δᵀ, C = E[x xᵀ], and R = Lᵀ Δ (reduced-rank regression: Izenman, 1975); it leaves
the sum of the other eigenvalues. Ranks are spent where an eigenvalue times g² is largest for what it costs, until a
network owns a given share of the dense model. A consumer's bias takes the mean of what its correction leaves out, so
its C is centred. Shapes: C inputs and O outputs of a linear, r rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from seap.activations.moments import Moments
from seap.errors import UserError
from seap.models.arch import Arch, describe
from seap.models.axes import Axis, Slice
from seap.models.modes import evaluation
from seap.scoring.sensitivity import Place, gradients
from seap.serving.networks.network import Network, weight_key

LEAST_RANK = 4  # below it, a linear's correction costs more calls than it is worth


@dataclass(frozen=True)
class Linear:
    """One linear that reconstruction changed."""

    axis: Axis
    part: Slice

    @property
    def key(self) -> str:
        return weight_key(self.axis, self.part)

    @property
    def place(self) -> Place:
        return self.axis.layer, self.part.module

    @property
    def reads(self) -> tuple[str, bool]:
        """Linears that write one axis read the same."""
        return self.axis.key, self.part.consumer


@dataclass
class Seen:
    """What the changed linears read, and how much the loss moves with what they write."""

    inputs: dict[tuple[str, bool], Moments] = field(default_factory=dict)
    information: dict[str, float] = field(default_factory=dict)  # Σ g² over tokens, the mean over the outputs

    def add_(self, linear: Linear, inputs: Tensor, grads: Tensor, *, reader: bool) -> None:
        """reader: the one among those that read the same whose inputs are added."""
        own = float(grads.square().mean(1).sum())
        self.information[linear.key] = self.information.get(linear.key, 0.0) + own
        if reader:
            rows = Moments.of(inputs, second=True).cpu()
            if linear.reads in self.inputs:
                self.inputs[linear.reads].add_(rows)
            else:
                self.inputs[linear.reads] = rows


@dataclass(frozen=True)
class Change:
    """What reconstruction did to one linear: Δ (O, C), its directions by what each is worth, and E[x] (C,)."""

    delta: Tensor
    directions: Tensor  # (O, O), the best first
    worth: Tensor  # (O,)
    mean: Tensor


def share_weights(
    dense: Any,
    pruned: Any,
    network: Network,
    rows: Sequence[Sequence[int]],
    *,
    share: float,
    seed: int = 0,
    batch_tokens: int,
    progress: bool,
) -> Network:
    """The network with corrections in place of its own weights, owning at most `share` of the dense parameters.

    pruned: the network as a model of its own. rows: calibration text, on which it runs forward and back. A network that
    owns no more than that already is returned as it is. Raises UserError where its biases alone are more. Holds a C×C
    matrix in float64 for every axis and every consumer.
    """
    budget = int(share * sum(p.numel() for p in dense.parameters()))
    budget -= sum(bias.numel() for bias in network.biases.values())
    if sum(weight.numel() for weight in network.weights.values()) <= budget:
        return network
    if budget < 0:
        raise UserError(f"--share {share}: the network's biases alone are more; allow it a larger share")
    arch = describe(dense)
    linears = [Linear(axis, part) for axis in arch.axes for part in axis.slices]
    linears = [linear for linear in linears if linear.key in network.weights]
    seen = _seen(describe(pruned), rows, linears, seed, batch_tokens, progress)
    bar = tqdm(total=2 * len(linears), desc="sharing", unit="linear", disable=not progress, leave=False)
    worth, cost = [], []
    for linear in linears:
        found = _change(arch, network, linear, seen)
        worth.append(found.worth)
        cost.append(sum(found.delta.shape))
        bar.update()
    biases, left, right = dict(network.biases), {}, {}
    for linear, rank in zip(linears, ranks_within(worth, cost, budget), strict=True):
        found = _change(arch, network, linear, seen)  # again: all of them at once would be twice the model's size
        dtype, basis = network.weights[linear.key].dtype, found.directions[:, :rank]
        kept = basis.t() @ found.delta
        if rank:
            left[linear.key], right[linear.key] = basis.to(dtype).contiguous(), kept.to(dtype).contiguous()
        if linear.part.consumer and linear.axis.key in biases:
            rest = (found.delta - basis @ kept) @ found.mean
            biases[linear.axis.key] = (biases[linear.axis.key].cpu().double() + rest).to(dtype)
        bar.update()
    bar.close()
    return replace(network, weights={}, biases=biases, left=left, right=right)


def ranks_within(worth: Sequence[Tensor], cost: Sequence[int], budget: int) -> list[int]:
    """The rank of each correction: the best by worth per parameter, until the parameters are spent.

    worth: per linear, of its directions, the best first. cost: parameters that one more rank takes.
    """
    owner = torch.cat([torch.full((len(own),), place) for place, own in enumerate(worth)])
    each = torch.tensor([*cost])[owner]
    order = (torch.cat([*worth]) / each).sort(descending=True, stable=True).indices
    for _ in range(2):  # once more without the linears whose rank came out too small
        spent = order[each[order].cumsum(0) <= budget]
        ranks = torch.bincount(owner[spent], minlength=len(cost))
        order = order[(ranks >= LEAST_RANK)[owner[order]]]
    return [int(rank) if rank >= LEAST_RANK else 0 for rank in ranks]


def _seen(
    cut: Arch, rows: Sequence[Sequence[int]], linears: Sequence[Linear], seed: int, batch_tokens: int, progress: bool
) -> Seen:
    found = Seen()
    by_place = {linear.place: linear for linear in linears}
    readers = {linear.reads: linear.key for linear in reversed(linears)}  # one for all that read the same
    with evaluation(cut.model):
        options: dict[str, Any] = {"seed": seed, "batch_tokens": batch_tokens, "progress": progress}
        for place, inputs, grads in gradients(cut, rows, [*by_place], **options):
            linear = by_place[place]
            found.add_(linear, inputs, grads, reader=readers[linear.reads] == linear.key)
    return found


def _change(arch: Arch, network: Network, linear: Linear, seen: Seen) -> Change:
    axis, part = linear.axis, linear.part
    kept = part.indices(axis.kept_of(network.masks))
    dense = arch.weight(axis.layer, part.module).detach().cpu()
    delta = network.weights[linear.key].cpu().double()
    delta -= dense.index_select(1 if part.consumer else 0, kept).double()
    inputs = seen.inputs[linear.reads]
    centred = part.consumer and axis.key in network.biases
    second = (inputs if centred else inputs.about_zero()).covariance
    values, directions = torch.linalg.eigh(delta @ second @ delta.t())
    worth = values.flip(0).clamp_min(0) * seen.information[linear.key] / inputs.count
    return Change(delta, directions.flip(1), worth, inputs.mean)
