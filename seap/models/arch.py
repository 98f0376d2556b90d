"""A model seen through its family's row, and the prunable axes that the two give.

Shape letters: C inputs of a consumer, O outputs.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from seap.errors import UserError
from seap.models import modeling_seap
from seap.models.axes import ATTENTION, KV_GROUPS, MLP, Axis, Values
from seap.models.bare import check_bare
from seap.models.experts import Experts
from seap.models.families import find_family, sharing_modes
from seap.models.family import Family, Mixer
from seap.models.found_axes import kv_groups, mlp_axes, weights_of
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
    def layer_classes(self) -> tuple[str, ...]:
        """The names of the layers' classes: one, or one for each kind of layer."""
        return tuple(dict.fromkeys(type(layer).__name__ for layer in self.layers))

    def built(self, config: Any, layer: int, place: int | None = None) -> nn.Module:
        """A layer as its own class builds it from a config, without memory. place: its number, if that is another."""
        index = layer if place is None else place
        classes = modeling_seap.patch_layer_class(type(self.model), list(self.layer_classes))
        options = {name: getattr(config, key)[index] for name, key in self.family.built_with.items()}
        with torch.device("meta"):
            made: nn.Module = classes[type(self.layers[layer]).__name__](config, layer_idx=index, **options)
        return made

    def module_at(self, layer: int, path: str) -> Any:
        """What a layer has at a path, of whatever kind; None where it has nothing there."""
        found = self.layers[layer]
        for name in path.split("."):
            found = getattr(found, name, None)
            if found is None:
                return None
        return found

    @property
    def head_size(self) -> int:
        """What one head of the first attention writes; 0 where there is no attention."""
        owner, _, attribute = self.family.head_size.rpartition(".")
        first = next((layer for layer in range(len(self.layers)) if self.has(layer, ATTENTION)), None)
        return 0 if first is None else int(getattr(self.layers[first].get_submodule(owner), attribute))

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
        if not own and not any(self.makes(layer, ATTENTION) for layer in range(len(self.layers))):
            own = "none of its layers has softmax attention"
        return self.family.heads_refused or own

    @property
    def can_cut_heads(self) -> bool:
        return not self.heads_refused

    def cuts_heads(self, layer: int) -> bool:
        """Whether a layer's heads can be cut: not those whose keys other layers read, nor those of these."""
        return self.can_cut_heads and sharing_modes(self.model.config)[layer] is None

    def cuts_mlp(self, layer: int) -> bool:
        """Whether a layer's MLP can be cut, by the family's row."""
        lists = [getattr(self.model.config, entry, None) for entry in self.family.mlp_refused_at]
        return not any(values[layer] for values in lists if values)

    def makes(self, layer: int, block: str) -> bool:
        """Whether a layer is of a kind with attention, or with an MLP."""
        if block == ATTENTION:
            return self.module_at(layer, self.family.heads_consumer) is not None
        return self.module_at(layer, self.family.mlp_consumer) is not None or self.experts(layer) is not None

    def has(self, layer: int, block: str) -> bool:
        """Whether a layer has its attention, or its MLP: its kind may have none, and pruning may have taken it away."""
        return self.makes(layer, block) and block not in modeling_seap.skipped(self.model.config, layer)

    def mixers(self, layer: int) -> list[Mixer]:
        """What mixes tokens in a layer, beside softmax attention or in place of it, and stays."""
        return [mixer for mixer in self.family.mixers if self.module_at(layer, mixer.consumer) is not None]

    def mixing(self, layer: int) -> list[nn.Linear]:
        """The linears of a layer's mixers."""
        inside = [self.module_at(layer, mixer.path).modules() for mixer in self.mixers(layer)]
        return [module for modules in inside for module in modules if isinstance(module, nn.Linear)]

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
        return Experts(self.layers[layer], layout) if self.module_at(layer, layout.module) is not None else None

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

    def writers(self, layer: int) -> tuple[str, ...]:
        """Paths of the modules whose outputs a layer adds to the residual stream, in the order of their running."""
        found = [mixer.consumer for mixer in self.mixers(layer)]
        if self.makes(layer, ATTENTION):
            found.append(self.family.heads_consumer)
        experts = self.experts(layer)
        if experts is not None:
            layout = experts.layout
            found.append(layout.block)
            if layout.shared and not layout.shared_consumer.startswith(f"{layout.block}."):
                found.append(layout.shared_consumer)
        elif self.makes(layer, MLP):
            found.append(self.family.mlp_consumer)
        return tuple(found)

    def name_of(self, axis: Axis) -> str:
        """What errors call an axis: `layer 7 kv_groups`."""
        return f"layer {axis.layer} {axis.name}"

    @cached_property
    def axes(self) -> tuple[Axis, ...]:
        """Every prunable axis, layer by layer, with the sizes that the modules have now."""
        found = []
        for layer in range(len(self.layers)):
            if self.cuts_heads(layer) and self.has(layer, ATTENTION):
                found.append(kv_groups(self, layer))
            if self.has(layer, MLP) and self.cuts_mlp(layer):
                found += mlp_axes(self, layer)
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

    def measured(self, keys: Collection[str]) -> dict[str, int]:
        """What statistics with these keys should hold: key → numbers per token.

        The keys of every axis, of the use of experts, and of normed second moments where there are any.
        """
        sizes = {axis.key: axis.num_inputs for axis in self.axes}
        sizes |= {axis.usage_key: 2 * axis.experts for axis in self.axes if axis.usage_key}
        normed = {axis.normed_key: axis.num_inputs for axis in self.axes if axis.normed_key}
        return sizes | (normed if normed.keys() & {*keys} else {})

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
        """Those of one layer that can't be cut: of other mixers of tokens, of an attention or an MLP that stays."""
        found = sum(map(weights_of, self.mixing(layer)))
        if self.makes(layer, MLP) and not self.cuts_mlp(layer):
            found += sum(weights_of(self.linear(layer, path)) for path in self.family.mlp)
            found += self.weight(layer, self.family.mlp_consumer).numel()
        if not self.makes(layer, ATTENTION):
            return found
        named = [path for path in self.family.uncut if self.module_at(layer, path) is not None]
        if not self.cuts_heads(layer):
            named += self.heads(layer)
            found += self.weight(layer, self.family.heads_consumer).numel()
        return found + sum(weights_of(self.linear(layer, path)) for path in named)

    def heads(self, layer: int) -> dict[str, str]:
        """The linears of a layer that write its heads, with the parts in their rows."""
        return {path: parts for path, parts in self.family.heads.items() if self.module_at(layer, path) is not None}


def describe(model: Any) -> Arch:
    """Look at a model through its family's row. Raises UserError for anything but a causal LM of a known family."""
    check_bare(model)
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


def embedding_params(model: Any) -> int:
    """Parameters of the token embedding and of an untied output layer."""
    matrices = {id(m.weight): m.weight for m in (model.get_input_embeddings(), model.get_output_embeddings()) if m}
    return sum(weight.numel() for weight in matrices.values())
