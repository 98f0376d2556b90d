"""The prunable axes of a layer: what an axis is called, how many units it has, and which weights it runs through.

Shape letters: Q query heads per KV group, K head size.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from seap.models.experts import Cut

KV_GROUPS, CHANNELS, EXPERT_CHANNELS, EXPERTS = "kv_groups", "channels", "expert_channels", "experts"
QUERY_HEADS = "query_heads"  # of every KV group of a layer; in masks, where some groups lose part of theirs
BLOCK = "block"  # a whole layer, in masks alone
NORMED = "normed"  # an axis's second moments as the norm behind its consumer sees them, in statistics alone
AXIS_NAMES = (KV_GROUPS, CHANNELS, EXPERT_CHANNELS)
ATTENTION, MLP = "attention", "mlp"  # the sub-blocks of a layer, as transformers' `skip` names them
WIDTH_NAMES = (KV_GROUPS, QUERY_HEADS, CHANNELS, EXPERTS, EXPERT_CHANNELS)  # what is said of a layer


@dataclass(frozen=True, kw_only=True)
class Slice(Cut):
    """One linear that an axis runs through: the unit's place in its rows (or, for the consumer, its columns)."""

    module: str
    consumer: bool = False
    values: bool = False  # no linear: a parameter with some values for each unit
    by_head: tuple[bool, ...] = ()  # of each section of a KV group, whether it is its query heads'; keys' isn't

    def indices(self, keep: Tensor) -> Tensor:
        """As of `Cut`; keep may also be bool (G, Q): the query heads that stay of each KV group."""
        if keep.dim() == 1:
            return super().indices(keep)
        parts, start = [], 0
        for size, is_heads in zip(self.sections, self.by_head, strict=True):
            own = keep.flatten() if is_heads else keep.any(1)
            cut = Cut(dim=self.dim, sections=(len(keep) * size // own.numel(),))
            parts.append(start + cut.indices(own))
            start += len(keep) * size
        return torch.cat(parts)


@dataclass
class Values:
    """A parameter that goes with an axis, handled like a linear's weight."""

    owner: Any
    name: str
    bias: None = None

    @property
    def weight(self) -> Tensor:
        found: Tensor = getattr(self.owner, self.name)
        return found

    @weight.setter
    def weight(self, value: Tensor) -> None:
        setattr(self.owner, self.name, value)


@dataclass(frozen=True, kw_only=True)
class Axis:
    """The prunable direction of one layer: `units` KV groups or MLP channels.

    Of experts a unit is one channel in each: they all keep equally many, each its own. An expert that keeps none is
    gone, with its row of the router.
    """

    layer: int
    name: str
    units: int
    unit_inputs: int  # inputs of the consumer that one unit feeds: Q·K for a KV group, 1 for a channel
    unit_params: int  # parameters that go with one unit
    slices: tuple[Slice, ...]
    experts: int = 1  # each with units of its own
    kept: tuple[int, ...] | None = None  # the experts that stay; all with None
    is_normed: bool = False  # whether a norm stands behind what the consumer writes
    queries: int = 1  # query heads of a KV group
    heads: int = 1  # those of them that stay in every group that does
    head_params: int = 0  # parameters that go with one
    producers_read_alike: bool = True  # whether all linears that write the axis read the same

    @property
    def key(self) -> str:
        """`layers.3.kv_groups`: the axis's name in every file."""
        return f"layers.{self.layer}.{self.name}"

    @property
    def usage_key(self) -> str:
        """`layers.3.experts`: how often and how strongly the layer's experts are used; empty for other axes."""
        return f"layers.{self.layer}.{EXPERTS}" if self.name == EXPERT_CHANNELS else ""

    @property
    def normed_key(self) -> str:
        """`layers.3.channels.normed`: its second moments where a norm stands behind (see `normed.py`), else empty."""
        return f"{self.key}.{NORMED}" if self.is_normed else ""

    @property
    def heads_key(self) -> str:
        """`layers.3.query_heads`: which query heads stay, and how many of each group; empty for other axes."""
        return f"layers.{self.layer}.{QUERY_HEADS}" if self.name == KV_GROUPS else ""

    @property
    def curve_key(self) -> str:
        """By which what widths cost is known: the key, with fewer query heads also their number."""
        return self.key if self.heads == self.queries else f"{self.key}.{self.heads}"

    @property
    def consumer(self) -> str:
        """Path, from the layer, of what reads the axis: a linear, or the module of all experts."""
        return next(part.module for part in self.slices if part.consumer)

    @property
    def producers(self) -> list[str]:
        """Paths, from the layer, of the linears that write the axis."""
        return [part.module for part in self.slices if not part.consumer and not part.values]

    @property
    def entries(self) -> int:
        """Entries of the axis's mask: its units, of each expert."""
        return self.experts * self.units

    @property
    def num_inputs(self) -> int:
        return self.entries * self.unit_inputs

    @property
    def num_kept(self) -> int:
        """Experts that stay."""
        return self.experts if self.kept is None else len(self.kept)

    @property
    def entry_params(self) -> int:
        """Parameters that go with one entry of the mask."""
        return self.unit_params // self.num_kept

    @property
    def params(self) -> int:
        return self.units * self.unit_params

    @property
    def whole_params(self) -> int:
        """With all query heads."""
        return self.params + self.units * (self.queries - self.heads) * self.head_params

    def with_experts(self, kept: tuple[int, ...]) -> "Axis":
        """The axis once only these experts are left."""
        return replace(self, kept=kept, unit_params=self.entry_params * len(kept))

    def with_heads(self, heads: int) -> "Axis":
        """The axis whose KV groups keep so many of their query heads."""
        return replace(self, heads=heads, unit_params=self.unit_params + (heads - self.heads) * self.head_params)

    def shaped(self, budgets: Mapping[str, int]) -> "Axis":
        """The axis with as many query heads as budgets say."""
        return self.with_heads(budgets[self.heads_key]) if self.heads_key in budgets else self

    def each_head(self) -> "Axis":
        """A KV group's query heads as units of their own, for scores."""
        heads = self.units * self.queries
        return replace(self, units=heads, unit_inputs=self.num_inputs // heads)

    def mask_of(self, masks: Mapping[str, Tensor]) -> Tensor:
        """What masks say of the axis: bool (entries,), or (G·Q,) where single query heads go."""
        return masks[self.heads_key if self.heads_key in masks else self.key]

    def laid_out(self, mask: Tensor) -> Tensor:
        """A mask of single query heads as (G, Q), of whole units as it is: what slices take."""
        return mask if mask.numel() == self.entries else mask.view(self.units, self.queries)

    def kept_of(self, masks: Mapping[str, Tensor]) -> Tensor:
        """What masks keep of the axis, as slices take it: bool (entries,), or (G, Q) where single query heads go."""
        return self.laid_out(self.mask_of(masks))

    def removed_params(self, mask: Tensor) -> int:
        """Parameters that a mask, of units or of single query heads, takes away."""
        if mask.numel() == self.entries:
            return int((~mask).sum()) * self.entry_params
        groups, without_heads = int(self.laid_out(mask).any(1).sum()), self.unit_params - self.heads * self.head_params
        return self.params - groups * without_heads - int(mask.sum()) * self.head_params


Masks = dict[str, Tensor]  # axis key → bool (units,), True keeps; heads key → bool (G·Q,) where single ones go
