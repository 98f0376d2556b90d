"""`seap check`: whether a checkpoint is whole and an engine can take it, before anything is loaded or deployed."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seap.disk.digests import damaged
from seap.errors import UserError
from seap.exports.options import Deployment
from seap.models import loader, modeling_seap
from seap.models.axes import ATTENTION, MLP
from seap.models.families import find_family, refuse_experts, refuse_states
from seap.models.heads import num_groups, queries_at
from seap.models.soundness import digests_of

TILE = 128  # channels a GPU's matrix kernels like to have in one piece


def check(name: str, deployment: Deployment, *, trust_remote_code: bool = False) -> dict[str, Any]:
    """What stands in the way, layer by layer, and what would mend it.

    `problems` keep the engine from running the model, as does a weight file that isn't what seap wrote (`damaged`, by
    the digests in seap.json, `digests` of them); `advice` is about speed. Raises UserError for what is no model.
    """
    config = loader.load_config(name, trust_remote_code=trust_remote_code)
    refuse_experts(config, "seap check", "load it with transformers, which needs import seap")
    refuse_states(config, "seap check", "load it with transformers, which needs import seap")
    layers = widths(config)
    problems = _uneven(layers, deployment.tp)
    folder = Path(loader.resolve_model(name))
    digests = digests_of(folder)
    wrong = damaged(folder, digests)
    return {
        "model": name,
        "engine": deployment.engine,
        "tp": deployment.tp,
        "fits": not problems and not wrong,
        "digests": len(digests),
        "damaged": wrong,
        "problems": problems,
        "mend": _mend(problems, deployment.tp, layers),
        "advice": [*_advice(layers, deployment.tp), *_about_heads(config)],
        "largest_tp": math.gcd(*(count for layer in layers for count in layer.values())),
    }


def widths(config: Any) -> list[dict[str, int]]:
    """KV groups and channels of each layer, by config: `[{"kv_groups": 4, "channels": 352}, …]`; 0 of what is gone."""
    family = find_family(config)
    found = []
    for layer in range(config.num_hidden_layers):
        pruned = getattr(config, "seap", None) is not None
        own = modeling_seap.layer_widths(config, layer) if pruned else {}
        said = getattr(config, family.channels_key)
        whole = said[layer] if isinstance(said, list) else said
        channels = own.get(family.channels_key) or whole or 4 * config.hidden_size
        gone = modeling_seap.skipped(config, layer)
        groups = 0 if ATTENTION in gone else own.get("num_key_value_heads", num_groups(config))
        found.append({"kv_groups": groups, "channels": 0 if MLP in gone else channels})
    return found


def query_heads(config: Any) -> list[int]:
    """Query heads of each KV group, layer by layer, of the layers that have an attention."""
    found = []
    for layer in range(config.num_hidden_layers):
        if ATTENTION not in modeling_seap.skipped(config, layer):
            found.append(queries_at(config, layer))
    return found


def _about_heads(config: Any) -> list[str]:
    found = query_heads(config)
    if len(set(found)) < 2:
        return []
    return [
        f"layers have {min(found)} to {max(found)} query heads in each KV group, which was tried with transformers "
        "alone: compare the engine's answers with its"
    ]


def _uneven(layers: Sequence[Mapping[str, int]], tp: int) -> list[dict[str, Any]]:
    """The axes that so many GPUs can't share evenly."""
    return [
        {"layer": layer, "axis": axis, "units": units}
        for layer, found in enumerate(layers)
        for axis, units in found.items()
        if units % tp
    ]


def _mend(problems: Sequence[Mapping[str, Any]], tp: int, layers: Sequence[Mapping[str, int]]) -> list[str]:
    axes = {problem["axis"] for problem in problems}
    advice = []
    if "channels" in axes:
        advice.append(f"channels: prune again with --round-to {TILE * tp} ({tp} is the least that divides)")
    if "kv_groups" in axes:
        most = max(layer["kv_groups"] for layer in layers)
        way = "--axes channels leaves them whole" if most % tp == 0 else f"no layer can: it has {most} at most"
        advice.append(f"KV groups, which --round-to doesn't round: {way}; --pipeline-parallel-size shares whole layers")
    return advice


def _advice(layers: Sequence[Mapping[str, int]], tp: int) -> list[str]:
    lacking = sum(0 in found.values() for found in layers)
    ragged = sum(found["channels"] % (TILE * tp) > 0 for found in layers)
    advice = []
    if lacking:
        advice.append(
            f"{lacking} of {len(layers)} layers have lost their attention or MLP, which was tried with transformers "
            "alone: compare the engine's answers with its"
        )
    if ragged:
        advice.append(
            f"{ragged} of {len(layers)} layers have channels that are no multiple of {TILE * tp}, which costs speed on "
            f"GPUs: --round-to {TILE * tp}"
        )
    return advice


def refuse(found: Mapping[str, Any]) -> None:
    """Raise UserError, in one line, when the engine can't take the model as asked."""
    if found["fits"]:
        return
    if found["damaged"]:
        name, what = next(iter(found["damaged"].items()))
        raise UserError(
            f"{Path(found['model']) / name} {what}, by its digest in seap.json; copy or make the folder again"
        )
    number, layers = len(found["problems"]), len({problem["layer"] for problem in found["problems"]})
    raise UserError(
        f"{found['engine']} can't run {found['model']} with tp {found['tp']}: {number} widths in {layers} layers don't "
        f"divide by it; the largest that fits is {found['largest_tp']}. {' '.join(found['mend'])}"
    )
