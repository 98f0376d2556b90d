"""The prunable axes of a layer: what an axis is called, how many units it has, and which weights it runs through.

Shape letters: Q query heads per KV group, K head size.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from seap.models.experts import Cut

KV_GROUPS, CHANNELS, EXPERT_CHANNELS, EXPERTS = "kv_groups", "channels", "expert_channels", "experts"
BLOCK = "block"  # a whole layer, in masks alone
AXIS_NAMES = (KV_GROUPS, CHANNELS, EXPERT_CHANNELS)
ATTENTION, MLP = "attention", "mlp"  # the sub-blocks of a layer, as transformers' `skip` names them
WIDTH_NAMES = (KV_GROUPS, CHANNELS, EXPERTS, EXPERT_CHANNELS)  # what is said of a layer


@dataclass(frozen=True, kw_only=True)
class Slice(Cut):
    """One linear that an axis runs through: the unit's place in its rows (or, for the consumer, its columns)."""

    module: str
    consumer: bool = False
    values: bool = False  # no linear: a parameter with some values for each unit


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

    @property
    def key(self) -> str:
        """`layers.3.kv_groups`: the axis's name in every file."""
        return f"layers.{self.layer}.{self.name}"

    @property
    def usage_key(self) -> str:
        """`layers.3.experts`: how often and how strongly the layer's experts are used; empty for other axes."""
        return f"layers.{self.layer}.{EXPERTS}" if self.name == EXPERT_CHANNELS else ""

    @property
    def consumer(self) -> str:
        """Path, from the layer, of what reads the axis: a linear, or the module of all experts."""
        return next(part.module for part in self.slices if part.consumer)

    @property
    def producers(self) -> list[str]:
        """Paths, from the layer, of the linears that write the axis; all of them read the same."""
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

    def with_experts(self, kept: tuple[int, ...]) -> "Axis":
        """The axis once only these experts are left."""
        return replace(self, kept=kept, unit_params=self.entry_params * len(kept))


def units_of(axes: Iterable[Axis]) -> dict[str, int]:
    """Axis key → its units, and usage key → the experts."""
    found: dict[str, int] = {}
    for axis in axes:
        found |= ({axis.usage_key: axis.experts} if axis.usage_key else {}) | {axis.key: axis.units}
    return found


Masks = dict[str, Tensor]  # axis key → bool (units,), True keeps
