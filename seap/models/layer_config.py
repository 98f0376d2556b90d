"""What a pruned model's config says of its layers: their widths, by the names that the family's config has for them."""

from typing import Any

from seap.models.arch import Arch
from seap.models.axes import ATTENTION, CHANNELS, EXPERT_CHANNELS, EXPERTS, KV_GROUPS, MLP, QUERY_HEADS
from seap.models.families import sharing_modes


def layer_width_values(arch: Arch, budgets: dict[str, int], layer: int) -> dict[str, Any]:
    """The config entries of one layer with so many units (and experts, and query heads of a group) kept per key.

    Only those of what the layer has. A sub-block that keeps none is named under `skip`, as transformers says it (pull
    request 45332).
    """
    inside, row = f"layers.{layer}.", arch.family
    channels, groups = budgets.get(inside + CHANNELS, 0), budgets.get(inside + KV_GROUPS, 0)
    experts, skip, values = arch.experts(layer), [], {}
    if experts is not None:
        layout = experts.layout
        values[layout.count_keys[0]] = budgets[inside + EXPERTS]
        values[layout.channels_key] = budgets[inside + EXPERT_CHANNELS]
        if layout.shared:
            values[layout.shared_key] = channels
    elif channels:
        values[row.channels_key] = channels * row.channels_factor
    elif arch.makes(layer, MLP) and arch.cuts_mlp(layer):
        skip.append(MLP)
    if arch.cuts_heads(layer) and groups:
        queries = budgets[inside + QUERY_HEADS] if inside + QUERY_HEADS in budgets else arch.queries_at(layer)
        values |= {"num_attention_heads": groups * queries, "num_key_value_heads": groups}
    elif arch.cuts_heads(layer) and arch.makes(layer, ATTENTION):
        skip.insert(0, ATTENTION)
    return values | ({"skip": skip} if skip else {})


def whole_values(arch: Arch) -> dict[str, Any]:
    """The entries of the whole config that layers of other widths need: the head size, and what the family's row says.

    Without the first a layer with fewer heads would derive larger ones.
    """
    row, size = arch.family, arch.head_size if arch.can_cut_heads else 0  # a family whose heads stay may say none
    return {**({row.head_key: size} if row.head_key and size else {}), **row.fixed}


def stays_whole(arch: Arch) -> list[str]:
    """What of a model's layers isn't cut whatever is asked for, each with the reason: for a note."""
    found = [mixer for layer in range(len(arch.layers)) for mixer in arch.mixers(layer)]
    notes = [f"its {mixer.name} stays as it is: {mixer.why}" for mixer in dict.fromkeys(found)]
    shared = sum(mode is not None for mode in sharing_modes(arch.model.config)) if arch.can_cut_heads else 0
    if shared:
        notes.append(
            f"the heads of {shared} layers stay: the last ones read the keys of others, and so have their heads"
        )
    whole = sum(arch.makes(layer, MLP) and not arch.cuts_mlp(layer) for layer in range(len(arch.layers)))
    if whole:
        notes += [f"the MLPs of {whole} layers stay: {why}" for why in arch.family.mlp_refused_at.values()]
    return notes
