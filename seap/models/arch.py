"""A model seen through its family's row, and the prunable axes that the two give.

Shape letters: C inputs of a consumer, O outputs.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from seap.errors import UserError
from seap.models import modeling_seap
from seap.models.axes import (
    ATTENTION,
    CHANNELS,
    EXPERT_CHANNELS,
    EXPERTS,
    KV_GROUPS,
    MLP,
    QUERY_HEADS,
    Axis,
    Slice,
    Values,
)
from seap.models.experts import Experts
from seap.models.families import Family, find_family
from seap.models.heads import queries_at


@dataclass(frozen=True)
class Arch:
    """A model seen through its family's row. Holds the model; copies nothing."""

    model: Any
    family: Family

    @property
    def layers(self) -> Any:
        return self.model.get_submodule(self.family.layers)

    @property
    def layer_class(self) -> str:
        return type(self.layers[0]).__name__

    @property
    def head_size(self) -> int:
        owner, _, attribute = self.family.head_size.rpartition(".")
        first = next(layer for index, layer in enumerate(self.layers) if self.has(index, ATTENTION))
        return int(getattr(first.get_submodule(owner), attribute))

    @property
    def queries_per_group(self) -> int:
        """Query heads of a KV group before any was cut."""
        config = self.model.config
        return int(config.num_attention_heads // config.num_key_value_heads)

    def queries_at(self, layer: int) -> int:
        """Query heads of each KV group of a layer as it is now."""
        return queries_at(self.model.config, layer)

    @property
    def heads_refused(self) -> str:
        """Why the heads can't be cut, by the family or by an option of this model's config; empty when they can."""
        options = self.family.heads_refused_with.items()
        own = next((why for entry, why in options if getattr(self.model.config, entry, False)), "")
        return self.family.heads_refused or own

    @property
    def can_cut_heads(self) -> bool:
        return not self.heads_refused

    def has(self, layer: int, block: str) -> bool:
        """Whether a layer has its attention, or its MLP: pruning may have taken it away."""
        return block not in modeling_seap.skipped(self.model.config, layer)

    def norm_at(self, layer: int, path: str) -> Any:
        """A norm of a layer; None where there is none, or nothing in its place."""
        found = getattr(self.layers[layer], path, None) if path else None
        return None if isinstance(found, nn.Identity) else found

    def weight(self, layer: int, module: str) -> Tensor:
        """The weight of a linear as (O, C), a view that can be assigned to; of all experts' last ones, a copy."""
        layout = self.family.experts
        if layout is not None and module == layout.module:
            return Experts(self.layers[layer], layout).consumer_weight()
        weight: Tensor = self.linear(layer, module).weight
        return weight.t() if self.family.transposed else weight

    def linear(self, layer: int, module: str) -> Any:
        """A linear of one layer, by its path."""
        if module in self.family.head_values:
            owner, _, name = module.rpartition(".")
            return Values(self.layers[layer].get_submodule(owner), name)
        return self.layers[layer].get_submodule(module)

    def experts(self, layer: int) -> Experts | None:
        """The experts of a layer that has some."""
        layout = self.family.experts
        if layout is None:
            return None
        found = self.layers[layer]
        return Experts(found, layout) if layout.module in dict(found.named_modules()) else None

    def experts_of(self, axis: Axis) -> Experts:
        """Those that an axis of experts runs through."""
        found = self.experts(axis.layer)
        assert found is not None, axis.key
        return found

    def weights(self, axis: Axis) -> list[Tensor]:
        """All weights that an axis runs through."""
        if axis.usage_key:
            return self.experts_of(axis).weights
        return [self.linear(axis.layer, part.module).weight for part in axis.slices]

    def consumer(self, axis: Axis) -> Any:
        """The linear that reads the axis, or the module of all experts."""
        return self.linear(axis.layer, axis.consumer)

    def writers(self, layer: int) -> tuple[str, str]:
        """Paths of the two modules whose outputs a layer adds to the residual stream, in the order of their running."""
        experts = self.experts(layer)
        mlp = self.family.mlp_consumer if experts is None else experts.layout.block
        return self.family.heads_consumer, mlp

    def name_of(self, axis: Axis) -> str:
        """What errors call an axis: `layer 7 kv_groups`."""
        return f"layer {axis.layer} {axis.name}"

    @cached_property
    def axes(self) -> tuple[Axis, ...]:
        """Every prunable axis, layer by layer, with the sizes that the modules have now."""
        found = []
        for layer in range(len(self.layers)):
            if self.can_cut_heads and self.has(layer, ATTENTION):
                found.append(self._kv_groups(layer))
            if self.has(layer, MLP):
                found += self._mlp(layer)
        return tuple(found)

    def layer_axes(self, layer: int) -> list[Axis]:
        return [axis for axis in self.axes if axis.layer == layer]

    @property
    def units(self) -> dict[str, int]:
        """Axis key → its units, usage key → the experts; and heads key → query heads, once any layer has lost some."""
        found: dict[str, int] = {}
        told = any(axis.heads_key and axis.queries != self.queries_per_group for axis in self.axes)
        for axis in self.axes:
            found |= {axis.usage_key: axis.experts} if axis.usage_key else {}
            found[axis.key] = axis.units
            found |= {axis.heads_key: axis.queries} if axis.heads_key and told else {}
        return found

    @property
    def measured(self) -> dict[str, int]:
        """What statistics hold: the key of every axis, and of the use of experts → numbers per token."""
        sizes = {axis.key: axis.num_inputs for axis in self.axes}
        return sizes | {axis.usage_key: 2 * axis.experts for axis in self.axes if axis.usage_key}

    @cached_property
    def prunable_params(self) -> int:
        """Parameters of q, k, v, o, gate, up and down in every layer: the denominator of every sparsity.

        Heads that can't be cut count too, so that a sparsity means the same for every family.
        """
        return sum(self.layer_params(layer) for layer in range(len(self.layers)))

    def layer_params(self, layer: int) -> int:
        """Those of one layer."""
        return sum(axis.params for axis in self.layer_axes(layer)) + self.uncut_params(layer)

    def uncut_params(self, layer: int) -> int:
        """Those of one layer's attention where it can't be cut; 0 where it can."""
        if self.can_cut_heads:
            return 0
        written = sum(self._numel(layer, name) for name in self.family.heads)
        return written + self.weight(layer, self.family.heads_consumer).numel()

    def _numel(self, layer: int, module: str) -> int:
        linear = self.linear(layer, module)
        return linear.weight.numel() + (linear.bias.numel() if linear.bias is not None else 0)

    def _kv_groups(self, layer: int) -> Axis:
        size, queries = self.head_size, self.queries_at(layer)
        rows = {"q": queries * size, "k": size, "v": size}
        axis = self._axis(layer, KV_GROUPS, self.family.heads, self.family.heads_consumer, rows, queries * size)
        beside = (Slice(module=path, dim=0, sections=(queries,), values=True) for path in self.family.head_values)
        behind = self.norm_at(layer, self.family.heads_behind) is not None
        return self._by_head(replace(axis, slices=(*axis.slices, *beside), is_normed=behind), queries)

    def _by_head(self, axis: Axis, queries: int) -> Axis:
        """An axis of KV groups whose slices know which of their sections are the groups' query heads'."""
        parts = {module: tuple(part == "q" for part in parts) for module, parts in self.family.heads.items()}
        slices = tuple(replace(part, by_head=parts.get(part.module, (True,))) for part in axis.slices)
        params = 0
        for part in [part for part in slices if not part.values]:
            lines = sum(size for size, is_heads in zip(part.sections, part.by_head, strict=True) if is_heads)
            weight = self.weight(axis.layer, part.module).numel()
            numel = weight if part.consumer else self._numel(axis.layer, part.module)
            params += numel * lines // (axis.units * sum(part.sections) * queries)
        return replace(axis, slices=slices, queries=queries, heads=queries, head_params=params)

    def _mlp(self, layer: int) -> list[Axis]:
        """The channels of a layer's MLP, or of its experts and the one that all tokens go through."""
        rows, experts = dict.fromkeys("guc", 1), self.experts(layer)
        if experts is None:
            axis = self._axis(layer, CHANNELS, self.family.mlp, self.family.mlp_consumer, rows, 1)
            return [replace(axis, is_normed=self.norm_at(layer, self.family.mlp_behind) is not None)]
        layout, found = experts.layout, []
        if layout.shared:
            found.append(self._axis(layer, CHANNELS, dict(layout.shared), layout.shared_consumer, rows, 1))
        whole = Axis(
            layer=layer,
            name=EXPERT_CHANNELS,
            units=experts.num_channels,
            unit_inputs=1,
            unit_params=experts.num_experts * experts.channel_params,
            slices=(Slice(module=layout.module, dim=1, consumer=True),),
            experts=experts.num_experts,
        )
        return [*found, whole]

    def _axis(
        self, layer: int, name: str, producers: dict[str, str], consumer: str, rows: dict[str, int], unit_inputs: int
    ) -> Axis:
        row_dim, column_dim = (1, 0) if self.family.transposed else (0, 1)
        inputs = self.weight(layer, consumer).shape[1]
        units, rest = divmod(inputs, unit_inputs)
        assert rest == 0, f"layer {layer} {name}: {inputs} inputs of {consumer} are no multiple of {unit_inputs}"
        slices = [
            Slice(module=m, dim=row_dim, sections=tuple(rows[p] for p in parts)) for m, parts in producers.items()
        ]
        for part in slices:
            got, expected = self.weight(layer, part.module).shape[0], units * sum(part.sections)
            assert got == expected, f"layer {layer} {part.module}: {got} rows, expected {expected}"
        written = sum(self._numel(layer, module) for module in producers)
        slices.append(Slice(module=consumer, dim=column_dim, sections=(unit_inputs,), consumer=True))
        total = written + self.weight(layer, consumer).numel()
        return Axis(
            layer=layer,
            name=name,
            units=units,
            unit_inputs=unit_inputs,
            unit_params=total // units,
            slices=tuple(slices),
        )


# what models are wrapped in → what to give instead
WRAPPERS = {
    "peft.": "merge the adapter and give the model that this returns: model.merge_and_unload()",
    "torch._dynamo.": "give the model itself, model._orig_mod: prune first, compile afterwards",
    "torch.nn.parallel.": "give the model itself: model.module",
    "torch.distributed.": "give the model itself, whole and in one process",
    "transformers.pipelines.": "give its model: pipeline.model",
}


def _check_bare(model: Any) -> None:
    """Raise UserError for what only holds a model, or is none."""
    kind = type(model)
    for start, what in WRAPPERS.items():
        if kind.__module__.startswith(start):
            raise UserError(f"a {kind.__name__} is no plain model; {what}")
    if not hasattr(kind, "get_output_embeddings"):
        raise UserError(f"a {kind.__name__} is no causal language model of transformers; give what seap.load gives")


def describe(model: Any) -> Arch:
    """Look at a model through its family's row. Raises UserError for anything but a causal LM of a known family."""
    _check_bare(model)
    family = find_family(model.config)
    if model.get_output_embeddings() is None:
        raise UserError(f"{type(model).__name__} has no output layer; give the whole causal language model")
    return Arch(model, family)


def choose_axes(arch: Arch, names: Iterable[str] | None = None) -> tuple[Axis, ...]:
    """The axes to prune: all that the family allows, or those named. Raises UserError with the family's reason."""
    if names is None:
        return arch.axes
    wanted = tuple(names)
    if KV_GROUPS in wanted and not arch.can_cut_heads:
        raise UserError(
            f"the heads of {arch.family.model_type} can't be cut: {arch.heads_refused}; use --axes channels"
        )
    there = dict.fromkeys(axis.name for axis in arch.axes)
    for name in wanted:
        if name not in there:
            raise UserError(f"--axes {name}: this model has none, only {', '.join(there)}")
    return tuple(axis for axis in arch.axes if axis.name in wanted)


def layer_width_values(arch: Arch, budgets: dict[str, int], layer: int) -> dict[str, Any]:
    """The config entries of one layer with so many units (and experts, and query heads of a group) kept per key.

    A sub-block that keeps none is named under `skip`, as transformers says it (pull request 45332).
    """
    experts, inside = arch.experts(layer), f"layers.{layer}."
    values: dict[str, Any] = {}
    skip = [MLP] if experts is None and not budgets.get(inside + CHANNELS) else []
    if experts is None and not skip:
        values = {arch.family.channels_key: budgets[inside + CHANNELS]}
    elif experts is not None:
        layout = experts.layout
        values = {
            layout.count_keys[0]: budgets[inside + EXPERTS],
            layout.channels_key: budgets[inside + EXPERT_CHANNELS],
        }
        if layout.shared:
            values[layout.shared_key] = budgets[inside + CHANNELS]
    groups = budgets.get(inside + KV_GROUPS, 0)
    if arch.can_cut_heads and groups:
        queries = budgets[inside + QUERY_HEADS] if inside + QUERY_HEADS in budgets else arch.queries_at(layer)
        values |= {"num_attention_heads": groups * queries, "num_key_value_heads": groups}
    elif arch.can_cut_heads:
        skip.insert(0, ATTENTION)
    return values | ({"skip": skip} if skip else {})


def embedding_params(model: Any) -> int:
    """Parameters of the token embedding and of an untied output layer."""
    matrices = {id(m.weight): m.weight for m in (model.get_input_embeddings(), model.get_output_embeddings()) if m}
    return sum(weight.numel() for weight in matrices.values())
