"""The task runtime: one model in memory, switched in place to the network of whichever task is at hand.

The dense weights are held once, their units reordered so that networks are contiguous slices where that can be
(`order.py`); a network's linears become views of them, or packed copies in a cache of least recently used networks
(`placement.py`). A switch sets entries of module dicts that were computed before, and moves no weights while the
network is resident. KV caches take the shapes of the network that fills them, as their layers see its keys only.
"""

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seap.compensation.compensate import Repairs
from seap.errors import UserError, unknown
from seap.models.arch import Arch, describe
from seap.models.axes import Masks
from seap.models.layer_config import layer_width_values, whole_values
from seap.models.layouts import Layouts
from seap.models.modeling_seap import LayerConfig
from seap.pruning.ready import check_in_memory
from seap.pruning.surgery import layer_attributes
from seap.selection.mask import budgets_of, check_fits
from seap.serving.networks.network import (
    Network,
    check_tokens,
    free_layers,
    layer_shares,
    network_of,
    refuse_gone,
    weights_at_work,
)
from seap.serving.networks.order import unit_order
from seap.serving.networks.packed import packed_pieces
from seap.serving.networks.placement import ABSENT, Assignment, Assignments, assignments_of, pieces_of
from seap.serving.networks.words import output_bytes, output_of
from seap.serving.options import Serving

DENSE = "dense"
Settings = dict[tuple[int, str], Assignment]  # by the dict's id and the entry's name


class TaskRuntime:
    """`runtime = seap.TaskRuntime(model, {"gsm8k": masks})`, then `with runtime.task("gsm8k") as model:`.

    networks: task → network (of `seap pack`) or masks (of `seap mask`). repairs: task → repairs that go with masks.
    min_slice_bytes: a linear is several slices of the dense weight where they have so many bytes in the mean, otherwise
    a packed copy; 0 never packs for that. cache_bytes: most bytes of packed copies and corrections; one network alone
    may exceed it, as there is no running it otherwise. None sets no limit. layouts: which packed weights are
    laid out for oneDNN; measured anew by default (`Layouts.beside` keeps it in a file).

    The model is reordered in place, which changes outputs by no more than rounding; read files that know their model
    (networks, routers) before. One thread at a time runs it: `task` waits for the others. Raises UserError for a pruned
    or quantized model and for masks that aren't this one's.
    """

    def __init__(
        self,
        model: Any,
        networks: Mapping[str, Network | Masks],
        *,
        repairs: Mapping[str, Repairs] | None = None,
        min_slice_bytes: int = Serving.min_slice_kb << 10,
        cache_bytes: int | None = None,
        layouts: Layouts | None = None,
    ) -> None:
        check_in_memory(model)
        if getattr(model.config, "seap", None):
            raise UserError("the model is pruned already; give the dense one, of which the tasks' networks are parts")
        self.model, self.cache_bytes, self.layouts = model, cache_bytes, layouts or Layouts()
        self.arch = describe(model)
        self.networks = {name: self._network(name, given, repairs or {}) for name, given in networks.items()}
        self.order = {a.key: self._order(a.key, a.units) for a in self.arch.axes if not a.usage_key}
        _reorder_(self.arch, self.order)
        self.pieces = {
            name: [*pieces_of(self.arch, network, self.order, min_slice_bytes)]
            for name, network in self.networks.items()
        }
        self.packed = {
            name: packed_pieces(self.arch, network.masks, network.weights, self.order)
            for name, network in self.networks.items()
        }
        self.bytes = {name: self._bytes_of(name) for name in self.networks}
        self._attributes = {name: [*self._attributes_of(network)] for name, network in self.networks.items()}
        self._dense = self._dense_settings()
        self._resident: OrderedDict[str, Settings] = OrderedDict()
        self._lock = threading.RLock()
        self.current = DENSE

    @property
    def tasks(self) -> tuple[str, ...]:
        """Every network's name, the dense one first."""
        return (DENSE, *self.networks)

    @property
    def resident(self) -> dict[str, int]:
        """Networks that can be switched to without packing, and the bytes of their packed copies."""
        return {name: self.bytes[name] for name in self._resident}

    @property
    def free_layers(self) -> int:
        """First layers that are the same in every network."""
        return free_layers(self.networks, len(self.arch.layers))

    def masks(self, task: str) -> Masks:
        """What a network keeps, in the dense model's own order of units."""
        if task == DENSE:
            return {axis.key: torch.ones(axis.entries, dtype=torch.bool) for axis in self.arch.axes}
        return self.networks[self.known(task)].masks

    @cached_property
    def shares(self) -> dict[str, float]:
        """Network → the share of the prunable parameters that it uses."""
        return {name: weights_at_work(self.arch, self.masks(name)) for name in self.tasks}

    def weights_at_work(self, task: str) -> float:
        """The share of the prunable parameters that a network uses."""
        return self.shares[self.known(task)]

    def layer_shares(self, task: str) -> list[dict[str, float]]:
        """Per layer, the share of each axis's units at work."""
        return layer_shares(self.arch, self.masks(task))

    def known(self, task: str) -> str:
        """The task itself. Raises UserError for one without a network."""
        if task not in self.tasks:
            raise unknown("task", task, self.tasks)
        return task

    @contextlib.contextmanager
    def task(self, name: str) -> Iterator[Any]:
        """The model as the network of a task, for the length of a block; other threads wait."""
        self.known(name)
        with self._lock:
            before = self.current
            self.switch_(name)
            try:
                yield self.model
            finally:
                self.switch_(before)

    def switch_(self, name: str) -> None:
        """Make the model the network of a task. For one thread; `task` is the safe way."""
        if name != self.current:
            self._set_(name, self._dense if name == DENSE else self._make_resident(name))

    def _set_(self, name: str, settings: Settings) -> None:
        for inside, entry, value in settings.values():
            if value is ABSENT:
                inside.pop(entry, None)
            else:
                inside[entry] = value
        self.current = name

    def generate(self, input_ids: Tensor, task: str | Sequence[str], **options: Any) -> list[Tensor]:
        """`model.generate` with a task for each row; rows of one task run together, and come back in their order.

        input_ids (B, T), padded on the left, and with it attention_mask (B, T). Returns B rows of token ids.
        """
        tasks = [task] * len(input_ids) if isinstance(task, str) else [*task]
        if len(tasks) != len(input_ids):
            raise UserError(f"{len(tasks)} tasks for {len(input_ids)} rows; give one for each, or one for all")
        rows: dict[int, Tensor] = {}
        mask = options.pop("attention_mask", None)
        for name in dict.fromkeys(tasks):
            places = [place for place, own in enumerate(tasks) if own == name]
            given = {} if mask is None else {"attention_mask": mask[places]}
            with self.task(name) as model:
                rows |= zip(places, model.generate(input_ids[places], **given, **options), strict=True)
        return [rows[place] for place in range(len(tasks))]

    def _network(self, name: str, given: Network | Masks, repairs: Mapping[str, Repairs]) -> Network:
        if name == DENSE:
            raise UserError(f"no task can be called {DENSE}: that is the whole model; give it another name")
        network = given if isinstance(given, Network) else network_of(self.arch, given, repairs.get(name))
        check_fits(self.arch, network.masks)
        check_tokens(Path(name), network.vocabulary, self.model.config.vocab_size)
        refuse_gone(network.masks)
        return network

    def _order(self, key: str, units: int) -> Tensor:
        return unit_order([network.masks[key] for network in self.networks.values()] or [torch.ones(units).bool()])

    def _bytes_of(self, name: str) -> int:
        pieces = (*self.pieces[name], *self.packed[name])
        return sum(piece.bytes for piece in pieces) + output_bytes(self.model, self.networks[name])

    def _make_resident(self, name: str) -> Settings:
        """A network's settings, over the dense ones; packs what isn't packed yet."""
        if name not in self._resident:
            if self.cache_bytes is not None:
                self._evict_(self.cache_bytes - self.bytes[name])
            made = self._attributes[name].copy()
            self._set_(DENSE, self._dense)
            for piece in self.pieces[name]:
                made += assignments_of(self.arch, piece, self.networks[name], self.order, self.layouts)
            for beside in self.packed[name]:
                made += beside.assignments(self.arch)
            made += output_of(self.model, self.networks[name], self.layouts)
            self._resident[name] = self._dense | _keyed(made)
        self._resident.move_to_end(name)
        return self._resident[name]

    def _evict_(self, room: int) -> None:
        """Forget packed networks, the one used longest ago first, until the rest is within so many bytes."""
        self._set_(DENSE, self._dense)
        while sum(self.resident.values()) > max(room, 0):
            del self._resident[next(name for name in self._resident if self.bytes[name])]

    def _attributes_of(self, network: Network) -> Iterator[Assignment]:
        """What layers of a network's widths hold beside weights (head counts, sizes, the layer's config)."""
        budgets = budgets_of(self.arch.axes, network.masks)
        whole, layout = whole_values(self.arch), self.arch.family.experts
        for index, layer in enumerate(self.arch.layers):
            if network.changes(index):
                widths = layer_width_values(self.arch, budgets, index) | whole
                if layout and layout.count_keys[0] in widths:  # modules read it by any of its names
                    widths |= dict.fromkeys(layout.count_keys, widths[layout.count_keys[0]])
                config = LayerConfig(self.model.config, widths, expert_width=layout.channels_key if layout else None)
                for path, name, value in layer_attributes(self.arch, config, index):
                    inside = vars(layer.get_submodule(path))
                    if inside.get(name, ABSENT) != value:
                        yield inside, name, value

    def _dense_settings(self) -> Settings:
        """Every entry that any network sets, as it is in the dense model."""
        touched = [entry for entries in self._attributes.values() for entry in entries]
        found = [(inside, name, inside.get(name, ABSENT)) for inside, name, _ in touched]
        for name in self.networks:
            for piece in (*self.pieces[name], *self.packed[name]):
                found += piece.dense(self.arch)
        output = vars(self.model.get_output_embeddings())
        return _keyed([*found, (output, "forward", output.get("forward", ABSENT))])


def _keyed(assignments: Assignments) -> Settings:
    return {(id(inside), name): (inside, name, value) for inside, name, value in assignments}


@torch.no_grad()
def _reorder_(arch: Arch, order: Mapping[str, Tensor]) -> None:
    """Move the units of every axis, a linear at a time.

    Weights are laid out with the axis outermost in memory, so that a slice of it lies in one piece: a column slice of a
    row-major consumer, read row by row, costs a fifth to three times as long (results/serving/bench_runtime.json).
    """
    for axis in (axis for axis in arch.axes if axis.key in order):
        for part in axis.slices:
            linear = arch.linear(axis.layer, part.module)
            rows = part.indices(order[axis.key]).to(linear.weight.device)
            outermost = linear.weight.transpose(0, part.dim)
            linear.weight.data = outermost.index_select(0, rows).transpose(0, part.dim)
            if linear.bias is not None and not part.consumer:
                linear.bias.copy_(linear.bias.index_select(0, rows))
