"""Checkpoints: a Hugging Face folder in, a pruned Hugging Face folder out."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from seap import schema
from seap.disk.digests import weight_digests
from seap.disk.place import check_space as check_space
from seap.disk.whole import written_whole
from seap.errors import UserError
from seap.files import to_json
from seap.models import modeling_seap
from seap.models.arch import describe
from seap.models.axes import Masks
from seap.models.loader import resolve_model
from seap.models.residency import streamed
from seap.pruning.card import exported_card, model_card
from seap.pruning.streaming import save_streamed
from seap.selection.mask import load_masks, save_masks
from seap.selection.whole_layers import dropped_layers
from seap.vocabulary.rewriting import drop_stale

MASK_FILE = "seap/mask.safetensors"  # in a folder of its own: vLLM loads every *.safetensors beside config.json


def previous(name: str, model: Any) -> tuple[Masks, dict[str, Any]] | None:
    """Masks (over the original model's units) and metadata of an already pruned checkpoint; None for a dense model."""
    if getattr(model.config, "seap", None) is None:
        return None
    from transformers.utils import cached_file

    path = cached_file(resolve_model(name), MASK_FILE, _raise_exceptions_for_missing_entries=False)
    if not path:
        return None
    masks, about = load_masks(Path(path))
    kept = {key: int(mask.sum()) for key, mask in masks.items()}
    for axis in describe(model).axes:
        if kept.pop(axis.key, None) != axis.entries:
            raise UserError(f"{path}: the mask doesn't say what {axis.key} of this model keeps; prune again")
    if any(kept.values()):  # what is gone whole is no axis of the model
        raise UserError(f"{path}: the mask has {min(kept)}, which the model hasn't; prune again")
    return masks, about


def written_bytes(model: Any, removed: float, save_dtype: str | None = None) -> int:
    """What a checkpoint will take on disk at most: weights in the dtype that they are saved in, biases and masks.

    removed: the share of the prunable parameters that goes.
    """
    arch, plan = describe(model), streamed(model)
    dtype = getattr(torch, save_dtype) if save_dtype else plan.save_dtype if plan else model.config.dtype or model.dtype
    stays = sum(p.numel() for p in model.parameters()) - int(removed * arch.prunable_params)
    biases = len(arch.axes) * model.config.hidden_size
    return (stays + biases) * dtype.itemsize + sum(axis.entries for axis in arch.axes)


def save(
    model: Any,
    tokenizer: Any,
    masks: Masks,
    provenance: Mapping[str, Any],
    out: Path,
    *,
    verify: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Write the checkpoint folder: weights, config, tokenizer, masks, provenance, model card. Whole or not at all.

    provenance: what goes into seap.json, and under `mask` the metadata of the mask file. verify: looks at the folder
    before it takes its name; what it raises leaves nothing behind.
    """
    with written_whole(out, "checkpoint") as draft:
        if streamed(model) is None:
            model.save_pretrained(draft)
        else:
            save_streamed(model, draft)
        if getattr(model.config, "seap", None) is not None:  # not where only the vocabulary went, or whole layers
            shutil.copyfile(modeling_seap.__file__, draft / "modeling_seap.py")
        if tokenizer is not None:
            tokenizer.save_pretrained(draft)
        if provenance.get("vocabulary"):
            drop_stale(draft)
        save_masks(draft / MASK_FILE, masks, provenance["mask"])
        rest = {name: value for name, value in provenance.items() if name != "mask"}
        (draft / "seap.json").write_text(to_json({**rest, "digests": weight_digests(draft)}, indent=2) + "\n")
        stock = type(model).__name__ if dropped_layers(masks) else None
        card = model_card(rest) if stock is None else exported_card(rest, "whole-layers", stock)
        (draft / "README.md").write_text(card)
        verify(draft)


def read_provenance(folder: Path) -> dict[str, Any]:
    """What seap.json says. Raises UserError when it is damaged."""
    path = folder / "seap.json"
    found: dict[str, Any] = schema.read_json(path, "prune again")
    schema.check(found, schema.Provenance, str(path), "prune again")
    return found
