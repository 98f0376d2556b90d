"""The model families: one row each, and the prunable axes that a row and a model give.

The only file that knows the names of a model's submodules. Shape letters: D hidden size, G KV groups, Q query heads per
KV group, K head size, C inputs of a consumer, O outputs.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from seap.errors import UserError

KV_GROUPS, CHANNELS = "kv_groups", "channels"
AXIS_NAMES = (KV_GROUPS, CHANNELS)


@dataclass(frozen=True, kw_only=True)
class Family:
    """How one `model_type` names its parts. Paths are relative to the decoder layer.

    `heads` and `mlp` map each linear that writes the axis to the parts stacked in its rows: q (Q·K rows a unit), k and
    v (K rows), g, u and c (one row: gate, up, or the only one). A fused `qkv_proj` has "qkv".
    """

    model_type: str
    layers: str = "model.layers"
    heads: dict[str, str]
    heads_consumer: str = "self_attn.o_proj"
    heads_refused: str = ""  # why the heads can't be cut; empty when they can
    head_size: str = "self_attn.head_dim"
    mlp: dict[str, str]
    mlp_consumer: str = "mlp.down_proj"
    channels_key: str = "intermediate_size"
    transposed: bool = False  # weights are (C, O), as in GPT-2's Conv1D


_SEPARATE_HEADS = {"self_attn.q_proj": "q", "self_attn.k_proj": "k", "self_attn.v_proj": "v"}
_LLAMA = Family(model_type="llama", heads=_SEPARATE_HEADS, mlp={"mlp.gate_proj": "g", "mlp.up_proj": "u"})
_LIKE_LLAMA = (
    "cohere",
    "cohere2",
    "cwm",
    "ernie4_5",
    "exaone4",
    "gemma",
    "granite",
    "hunyuan_v1_dense",
    "hyperclovax",
    "ministral",
    "ministral3",
    "olmo",
    "seed_oss",
    "vaultgemma",
)
_NORM_OVER_HEADS = "its q/k norm spans all heads of a layer, so removing one changes the others"
_DERIVED_HEAD_SIZE = "its attention derives the head size from hidden_size / heads, so fewer heads can't be expressed"

FAMILIES: dict[str, Family] = {
    row.model_type: row
    for row in (
        _LLAMA,
        replace(_LLAMA, model_type="mistral"),
        replace(_LLAMA, model_type="qwen2"),
        replace(_LLAMA, model_type="qwen3"),
        replace(_LLAMA, model_type="gemma2"),
        replace(_LLAMA, model_type="gemma3_text"),
        replace(_LLAMA, model_type="smollm3"),
        *(replace(_LLAMA, model_type=name) for name in _LIKE_LLAMA),
        *(replace(_LLAMA, model_type=name, mlp={"mlp.up_proj": "c"}) for name in ("apertus", "arcee", "nemotron")),
        *(replace(_LLAMA, model_type=name, mlp={"mlp.gate_up_proj": "gu"}) for name in ("glm", "glm4")),
        *(replace(_LLAMA, model_type=name, heads_refused=_DERIVED_HEAD_SIZE) for name in ("helium", "stablelm")),
        *(replace(_LLAMA, model_type=name, heads_refused=_NORM_OVER_HEADS) for name in ("olmo2", "olmo3")),
        replace(_LLAMA, model_type="starcoder2", mlp={"mlp.c_fc": "c"}, mlp_consumer="mlp.c_proj"),
        replace(_LLAMA, model_type="nanochat", mlp={"mlp.fc1": "c"}, mlp_consumer="mlp.fc2"),
        replace(
            _LLAMA,
            model_type="phi",
            heads_consumer="self_attn.dense",
            mlp={"mlp.fc1": "c"},
            mlp_consumer="mlp.fc2",
        ),
        Family(
            model_type="phi3",
            heads={"self_attn.qkv_proj": "qkv"},
            mlp={"mlp.gate_up_proj": "gu"},
        ),
        Family(
            model_type="gpt_neox",
            layers="gpt_neox.layers",
            heads={"attention.query_key_value": "qkv"},
            heads_consumer="attention.dense",
            heads_refused=_DERIVED_HEAD_SIZE,
            mlp={"mlp.dense_h_to_4h": "c"},
            mlp_consumer="mlp.dense_4h_to_h",
        ),
        Family(
            model_type="opt",
            layers="model.decoder.layers",
            heads=_SEPARATE_HEADS,
            heads_consumer="self_attn.out_proj",
            heads_refused=_DERIVED_HEAD_SIZE,
            mlp={"fc1": "c"},
            mlp_consumer="fc2",
            channels_key="ffn_dim",
        ),
        Family(
            model_type="gpt2",
            layers="transformer.h",
            heads={"attn.c_attn": "qkv"},
            heads_consumer="attn.c_proj",
            heads_refused=_DERIVED_HEAD_SIZE,
            mlp={"mlp.c_fc": "c"},
            mlp_consumer="mlp.c_proj",
            channels_key="n_inner",
            transposed=True,
        ),
    )
}


@dataclass(frozen=True, kw_only=True)
class Slice:
    """One linear that an axis runs through: the unit's place in its rows (or, for the consumer, its columns).

    `sections` are the units' sizes in each block of rows, one after the other: a fused qkv of G groups is a block of
    G·(Q·K) rows, one of G·K and one of G·K, so (Q·K, K, K).
    """

    module: str
    dim: int  # the weight's dimension that is cut
    sections: tuple[int, ...]
    consumer: bool = False

    def indices(self, keep: Tensor) -> Tensor:
        """Where the kept units lie along `dim`. keep: bool (units,) → int64 (kept rows,); or a permutation (units,)."""
        units = keep.numel()
        parts, start = [], 0
        for size in self.sections:
            block = torch.arange(start, start + units * size, device=keep.device).view(units, size)
            parts.append(block[keep].flatten())
            start += units * size
        return torch.cat(parts)


@dataclass(frozen=True, kw_only=True)
class Axis:
    """The prunable direction of one layer: `units` KV groups or MLP channels."""

    layer: int
    name: str
    units: int
    unit_inputs: int  # inputs of the consumer that one unit feeds: Q·K for a KV group, 1 for a channel
    unit_params: int  # parameters that go with one unit
    slices: tuple[Slice, ...]

    @property
    def key(self) -> str:
        """`layers.3.kv_groups`: the axis's name in every file."""
        return f"layers.{self.layer}.{self.name}"

    @property
    def consumer(self) -> str:
        """Path, from the layer, of the linear that reads the axis."""
        return next(part.module for part in self.slices if part.consumer)

    @property
    def producers(self) -> list[str]:
        """Paths, from the layer, of the linears that write the axis; all of them read the same."""
        return [part.module for part in self.slices if not part.consumer]

    @property
    def num_inputs(self) -> int:
        return self.units * self.unit_inputs

    @property
    def params(self) -> int:
        return self.units * self.unit_params


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
        return int(getattr(self.layers[0].get_submodule(owner), attribute))

    @property
    def queries_per_group(self) -> int:
        config = self.model.config
        return int(config.num_attention_heads // config.num_key_value_heads)

    @property
    def can_cut_heads(self) -> bool:
        return not self.family.heads_refused

    def weight(self, layer: int, module: str) -> Tensor:
        """The weight of a linear as (O, C), a view that can be assigned to."""
        weight: Tensor = self.linear(layer, module).weight
        return weight.t() if self.family.transposed else weight

    def linear(self, layer: int, module: str) -> Any:
        """A linear of one layer, by its path."""
        return self.layers[layer].get_submodule(module)

    def consumer(self, axis: Axis) -> Any:
        """The linear that reads the axis."""
        return self.linear(axis.layer, axis.consumer)

    def name_of(self, axis: Axis) -> str:
        """What errors call an axis: `layer 7 kv_groups`."""
        return f"layer {axis.layer} {axis.name}"

    @cached_property
    def axes(self) -> tuple[Axis, ...]:
        """Every prunable axis, layer by layer, with the sizes that the modules have now."""
        found = []
        for layer in range(len(self.layers)):
            if self.can_cut_heads:
                found.append(self._kv_groups(layer))
            found.append(self._channels(layer))
        return tuple(found)

    @cached_property
    def prunable_params(self) -> int:
        """Parameters of q, k, v, o, gate, up and down in every layer: the denominator of every sparsity.

        Heads that can't be cut count too, so that a sparsity means the same for every family.
        """
        total = sum(axis.params for axis in self.axes)
        if not self.can_cut_heads:
            for layer in range(len(self.layers)):
                total += sum(self._numel(layer, name) for name in self.family.heads)
                total += self.weight(layer, self.family.heads_consumer).numel()
        return total

    def _numel(self, layer: int, module: str) -> int:
        linear = self.linear(layer, module)
        return linear.weight.numel() + (linear.bias.numel() if linear.bias is not None else 0)

    def _kv_groups(self, layer: int) -> Axis:
        size, queries = self.head_size, self.queries_per_group
        rows = {"q": queries * size, "k": size, "v": size}
        return self._axis(layer, KV_GROUPS, self.family.heads, self.family.heads_consumer, rows, queries * size)

    def _channels(self, layer: int) -> Axis:
        return self._axis(layer, CHANNELS, self.family.mlp, self.family.mlp_consumer, dict.fromkeys("guc", 1), 1)

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


def find_family(config: Any) -> Family:
    """The row of a config's model type. Raises UserError for a family that isn't in the table."""
    family = FAMILIES.get(config.model_type)
    if family is None:
        known = ", ".join(sorted(FAMILIES))
        raise UserError(
            f"unknown model family {config.model_type!r}; known: {known}. "
            "docs/adding_a_model.md says how a family is added (one row)"
        )
    return family


def describe(model: Any) -> Arch:
    """Look at a model through its family's row. Raises UserError for anything but a causal LM of a known family."""
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
            f"the heads of {arch.family.model_type} can't be cut: {arch.family.heads_refused}; use --axes channels"
        )
    return tuple(axis for axis in arch.axes if axis.name in wanted)


def width_keys(family: Family) -> tuple[str, ...]:
    """The config keys that hold a layer's widths."""
    heads = () if family.heads_refused else ("num_attention_heads", "num_key_value_heads")
    return (*heads, family.channels_key)


def layer_width_values(arch: Arch, budgets: dict[str, int], layer: int) -> dict[str, int]:
    """The config entries of one layer with so many units kept per axis key."""
    values = {arch.family.channels_key: budgets[f"layers.{layer}.{CHANNELS}"]}
    if arch.can_cut_heads:
        groups = budgets[f"layers.{layer}.{KV_GROUPS}"]
        values |= {"num_attention_heads": groups * arch.queries_per_group, "num_key_value_heads": groups}
    return values


def embedding_params(model: Any) -> int:
    """Parameters of the token embedding and of an untied output layer."""
    matrices = {id(m.weight): m.weight for m in (model.get_input_embeddings(), model.get_output_embeddings()) if m}
    return sum(weight.numel() for weight in matrices.values())
