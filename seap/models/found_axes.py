"""The axes of one layer, with the sizes that its modules have now.

Shape letters: C inputs of a consumer, O outputs.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from seap.models.axes import CHANNELS, EXPERT_CHANNELS, KV_GROUPS, Axis, Slice

if TYPE_CHECKING:
    from seap.models.arch import Arch


def kv_groups(arch: "Arch", layer: int) -> Axis:
    """The KV groups of a layer's softmax attention, with their query heads."""
    size, queries = arch.head_size, arch.queries_at(layer)
    rows = {"q": queries * size, "Q": 2 * queries * size, "k": size, "v": size}
    axis = _axis(arch, layer, KV_GROUPS, arch.heads(layer), arch.family.heads_consumer, rows, queries * size)
    beside = (Slice(module=path, dim=0, sections=(queries,), values=True) for path in arch.family.head_values)
    behind = arch.norm_at(layer, arch.family.heads_behind) is not None
    axis = replace(axis, producers_read_alike=arch.family.heads_share)
    return _by_head(arch, replace(axis, slices=(*axis.slices, *beside), is_normed=behind), queries)


def _by_head(arch: "Arch", axis: Axis, queries: int) -> Axis:
    """An axis of KV groups whose slices know which of their sections are the groups' query heads'."""
    parts = {module: tuple(part in "qQ" for part in parts) for module, parts in arch.heads(axis.layer).items()}
    slices = tuple(replace(part, by_head=parts.get(part.module, (True,))) for part in axis.slices)
    params = 0
    for part in [part for part in slices if not part.values]:
        lines = sum(size for size, is_heads in zip(part.sections, part.by_head, strict=True) if is_heads)
        weight = arch.weight(axis.layer, part.module).numel()
        numel = weight if part.consumer else weights_of(arch.linear(axis.layer, part.module))
        params += numel * lines // (axis.units * sum(part.sections) * queries)
    return replace(axis, slices=slices, queries=queries, heads=queries, head_params=params)


def mlp_axes(arch: "Arch", layer: int) -> list[Axis]:
    """The channels of a layer's MLP, or of its experts and the one that all tokens go through."""
    rows, experts = dict.fromkeys("guc", 1), arch.experts(layer)
    if experts is None:
        axis = _axis(arch, layer, CHANNELS, arch.family.mlp, arch.family.mlp_consumer, rows, 1)
        return [replace(axis, is_normed=arch.norm_at(layer, arch.family.mlp_behind) is not None)]
    layout, found = experts.layout, []
    if layout.shared:
        found.append(_axis(arch, layer, CHANNELS, dict(layout.shared), layout.shared_consumer, rows, 1))
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
    arch: "Arch",
    layer: int,
    name: str,
    producers: dict[str, str],
    consumer: str,
    rows: dict[str, int],
    unit_inputs: int,
) -> Axis:
    row_dim, column_dim = (1, 0) if arch.family.transposed else (0, 1)
    inputs = arch.weight(layer, consumer).shape[1]
    units, rest = divmod(inputs, unit_inputs)
    assert rest == 0, f"layer {layer} {name}: {inputs} inputs of {consumer} are no multiple of {unit_inputs}"
    slices = []
    for module, parts in producers.items():
        got = arch.weight(layer, module).shape[0]
        sections = (got // units,) if parts == "*" else tuple(rows[part] for part in parts)
        assert got == units * sum(sections), f"layer {layer} {module}: {got} rows for {units} units"
        slices.append(Slice(module=module, dim=row_dim, sections=sections))
    written = sum(weights_of(arch.linear(layer, module)) for module in producers)
    slices.append(Slice(module=consumer, dim=column_dim, sections=(unit_inputs,), consumer=True))
    total = written + arch.weight(layer, consumer).numel()
    return Axis(
        layer=layer,
        name=name,
        units=units,
        unit_inputs=unit_inputs,
        unit_params=total // units,
        slices=tuple(slices),
    )


def weights_of(linear: Any) -> int:
    """Parameters of a linear."""
    return int(linear.weight.numel() + (linear.bias.numel() if linear.bias is not None else 0))
