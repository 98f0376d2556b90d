"""What a pruned model remembers of how it was made, so that whoever saves it saves that too.

It is noted with the model as the files that lie beside its weights: seap.json, the masks over the original model's
units, and the model card. `modeling_seap.py` writes them whenever the model is saved.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yaml import YAMLError

from seap import schema
from seap.activations.calibration import identity
from seap.disk.whole import temporary
from seap.errors import UserError
from seap.files import tensors_as_bytes, to_json
from seap.models import modeling_seap
from seap.models.arch import describe
from seap.models.axes import QUERY_HEADS, Masks
from seap.pruning.card import saved_card
from seap.selection.mask import compose, load_masks

SEAP_JSON, MASK_FILE, CARD = "seap.json", "seap/mask.safetensors", "README.md"
TOLD_OF_MASK = ("tasks", "method", "options", "realised_sparsity", "num_tokens", "versions", "key")


@dataclass(frozen=True)
class Origin:
    """A model before it is cut: what it is, and the masks and the report of an earlier pruning, if there was one."""

    identity: Mapping[str, Any]
    masks: Masks | None = None
    told: Mapping[str, Any] | None = None


def origin_of(model: Any) -> Origin:
    """To be asked before the model is cut."""
    found = modeling_seap.kept_files(model) if getattr(model.config, "seap", None) else {}
    if MASK_FILE not in found:
        return Origin(identity(model))
    with temporary("seap-masks") as room:
        path = room / "mask.safetensors"
        path.write_bytes(found[MASK_FILE])
        masks, about = load_masks(path)
        check_kept(path, masks, model)
    told = json.loads(found[SEAP_JSON]) if SEAP_JSON in found else about
    return Origin(identity(model), masks, told)


def check_kept(path: Path, masks: Masks, model: Any) -> None:
    """Raise UserError unless the masks of an earlier pruning keep what the model has."""
    kept, arch = {key: int(mask.sum()) for key, mask in masks.items()}, describe(model)
    for axis in arch.axes:
        heads = kept.pop(axis.heads_key, axis.units * arch.queries_per_group) if axis.heads_key else axis.units
        if kept.pop(axis.key, None) != axis.entries or heads != axis.units * axis.queries:
            raise UserError(f"{path}: the mask doesn't say what {axis.key} of this model keeps; prune again")
    if any(kept.values()):  # what is gone whole is no axis of the model
        raise UserError(f"{path}: the mask has {min(kept)}, which the model hasn't; prune again")


def note_(model: Any, told: Mapping[str, Any], masks: Masks, origin: Origin) -> None:
    """Have a model that was cut remember it. told: the report as plain values; masks: over the units before the cut."""
    about = {**origin.identity, "seed": told["calibration"]["seed"]}
    about |= {name: told[name] for name in TOLD_OF_MASK} | {"sparsity": told["target_sparsity"]}
    whole = masks if origin.masks is None else compose(origin.masks, masks)
    if "pruned_before" in told:
        about["pruned_before"] = told["pruned_before"]
    card = saved_card(told, type(model).__name__, is_stock=not getattr(model.config, "seap", None))
    model._seap_files = {
        SEAP_JSON: (to_json(told, indent=2) + "\n").encode(),
        MASK_FILE: tensors_as_bytes("mask", whole, about),
        CARD: card.encode(),
    }
    modeling_seap.remember_(model)


def pruned_before(origin: Origin, masks: Masks, params_after: int) -> dict[str, Any]:
    """Of an earlier pruning: what it was, which model was the first, and what is gone of that in all."""
    if origin.masks is None or origin.told is None:
        return {}
    whole, earlier = compose(origin.masks, masks), origin.told
    units = [mask for key, mask in whole.items() if not key.endswith(f".{QUERY_HEADS}")]
    kept = sum(int(mask.sum()) for mask in units) / sum(mask.numel() for mask in units)
    found = {name: earlier.get(name) for name in ("model", "tasks", "method", "realised_sparsity")}
    first = earlier.get("pruned_before") or {}
    found |= {"units_kept_of_original": kept, "base": first.get("base") or earlier.get("model")}
    params = first.get("base_params") or earlier.get("params_before")
    if params:
        found |= {"base_params": params, "removed_of_base": 1 - params_after / params}
    return {"pruned_before": found}


def base_card(model: Any) -> dict[str, Any]:
    """License and language, of the card of the model that is pruned, where one lies beside its weights."""
    content = modeling_seap.file_beside(model.config, "README.md")
    if content is None or not content.startswith(b"---"):
        return {}
    from huggingface_hub import ModelCard

    try:
        told = ModelCard(content.decode(), ignore_metadata_errors=True).data.to_dict()
    except (ValueError, TypeError, KeyError, YAMLError):
        return {}
    named = ("license", "license_name", "license_link", "language")
    return {"base_card": {name: told[name] for name in named if told.get(name)}}


def read_provenance(folder: Path) -> dict[str, Any]:
    """What seap.json says. Raises UserError when it is damaged."""
    path = folder / SEAP_JSON
    found: dict[str, Any] = schema.read_json(path, "prune again")
    schema.check(found, schema.Provenance, str(path), "prune again")
    return found
