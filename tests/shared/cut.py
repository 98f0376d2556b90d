"""Random masks and repairs of tiny models, models cut by them, and what models say."""

import copy
from typing import Any

import torch

from seap.compensation.compensate import Repair, Repairs
from seap.models.arch import describe
from seap.models.axes import Masks
from seap.pruning.surgery import cut_


def random_masks(net: Any, seed: int) -> Masks:
    """About half of each axis, at least one unit, and all experts but one; the first layer stays whole."""
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for axis in describe(net).axes:
        if axis.usage_key:
            order = torch.rand(axis.experts, axis.units, generator=generator).argsort(1)
            chosen = (order < max(axis.units // 2, 1)) & (torch.arange(axis.experts) != seed % axis.experts)[:, None]
            masks[axis.key] = chosen.flatten() | (axis.layer == 0)
            continue
        keep = torch.rand(axis.units, generator=generator) < 0.5
        keep[int(torch.randint(axis.units, (1,), generator=generator))] = True
        masks[axis.key] = keep | (axis.layer == 0)
    return masks


def random_repairs(net: Any, masks: Masks, seed: int) -> Repairs:
    """A weight, a bias and mapped inputs for every cut axis of layer 1, a bias for those of layer 2."""
    arch, generator = describe(net), torch.Generator().manual_seed(seed)
    repairs: Repairs = {}
    for axis in arch.axes:
        if axis.layer == 0:
            continue
        outputs = arch.weight(axis.layer, axis.consumer).shape[0]
        inputs = int(masks[axis.key].sum()) * axis.unit_inputs
        weight = torch.randn(outputs, inputs, generator=generator).double() * 0.1 if axis.layer == 1 else None
        if axis.usage_key:  # they have no bias, and their router reads what they read
            repairs |= {} if weight is None else {axis.key: Repair(torch.zeros(outputs).double(), weight)}
            continue
        hidden = net.config.hidden_size
        mapped = torch.eye(hidden) + 0.05 * torch.randn(hidden, hidden, generator=generator)
        maps = axis.layer == 1 and axis.producers_read_alike
        bias = torch.randn(outputs, generator=generator).double() * 0.1
        repairs[axis.key] = Repair(bias, weight, inputs=mapped.double() if maps else None)
    return repairs


def pruned(net: Any, masks: Masks, repairs: Repairs | None = None) -> Any:
    made = copy.deepcopy(net)
    cut_(made, masks, repairs)
    return made


@torch.no_grad()
def logits(net: Any, given: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = net(given).logits
    return found


def greedy(net: Any, given: torch.Tensor) -> torch.Tensor:
    made: torch.Tensor = net.generate(given, max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None)
    return made


def one_head_fewer(net: Any) -> Any:
    """The model without the last KV group of its second layer, and the first query head of each other one there."""
    masks: Masks = {}
    for axis in describe(net).axes:
        masks[axis.key] = torch.ones(axis.units, dtype=torch.bool)
        if axis.heads_key and axis.layer == 1:
            masks[axis.key][-1] = False
            heads = masks[axis.key][:, None] & (torch.arange(axis.queries) > 0)
            masks[axis.heads_key] = heads.flatten()
    cut_(net, masks)
    return net
