"""Checkpoints: a Hugging Face folder in, a pruned Hugging Face folder out."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from seap.disk.digests import weight_digests
from seap.disk.place import check_space as check_space
from seap.disk.whole import written_whole
from seap.files import to_json
from seap.models import modeling_seap
from seap.models.arch import describe
from seap.models.axes import Masks
from seap.models.decoders import PROCESSOR, is_inside, ready_to_save_
from seap.models.loader import resolve_model
from seap.models.residency import streamed
from seap.models.sizes import dtype_on_disk
from seap.pruning.provenance import MASK_FILE as MASK_FILE  # in a folder: vLLM loads all *.safetensors at the top
from seap.pruning.provenance import SEAP_JSON, check_kept
from seap.pruning.provenance import read_provenance as read_provenance
from seap.pruning.streaming import save_streamed
from seap.selection.mask import load_masks
from seap.vocabulary.rewriting import drop_stale


def previous(name: str, model: Any) -> tuple[Masks, dict[str, Any]] | None:
    """Masks (over the original model's units) and metadata of an already pruned checkpoint; None for a dense model."""
    if getattr(model.config, "seap", None) is None:
        return None
    from transformers.utils import cached_file

    path = cached_file(resolve_model(name), MASK_FILE, _raise_exceptions_for_missing_entries=False)
    if not path:
        return None
    masks, about = load_masks(Path(path))
    check_kept(Path(path), masks, model)
    return masks, about


def written_bytes(model: Any, removed: float, save_dtype: str | None = None) -> int:
    """What a checkpoint will take on disk at most: weights in the dtype that they are saved in, biases and masks.

    removed: the share of the prunable parameters that goes.
    """
    arch, plan = describe(model), streamed(model)
    dtype = getattr(torch, save_dtype) if save_dtype else plan.save_dtype if plan else dtype_on_disk(model)
    stays = sum(p.numel() for p in model.parameters()) - int(removed * arch.prunable_params)
    biases = len(arch.axes) * model.config.hidden_size
    return (stays + biases) * dtype.itemsize + sum(axis.entries for axis in arch.axes)


def copy_processor(model: Any, folder: Path) -> None:
    """The settings of a multimodal model's processor, as they lie where it came from."""
    for name in PROCESSOR if is_inside(model) else ():
        content = modeling_seap.file_beside(model.config, name)
        if content is not None:
            (folder / name).write_bytes(content)


def save(model: Any, tokenizer: Any, out: Path, *, verify: Callable[[Path], None] = lambda folder: None) -> None:
    """Write the checkpoint folder of a pruned model: weights, config, tokenizer, and what the model remembers.

    Whole or not at all. verify: looks at the folder before it takes its name; what it raises leaves nothing behind.
    """
    with written_whole(out, "checkpoint") as draft:
        if streamed(model) is None:
            ready_to_save_(model).save_pretrained(draft)
            copy_processor(model, draft)
        else:
            save_streamed(model, draft)
            modeling_seap.write_kept(modeling_seap.kept_files(model), draft)
        if getattr(model.config, "seap", None) is not None:  # not where only the vocabulary went, or whole layers
            shutil.copyfile(modeling_seap.__file__, draft / "modeling_seap.py")
        if tokenizer is not None:
            tokenizer.save_pretrained(draft)
        told = json.loads((draft / SEAP_JSON).read_text())
        if told.get("vocabulary"):
            drop_stale(draft)
        (draft / SEAP_JSON).write_text(to_json({**told, "digests": weight_digests(draft)}, indent=2) + "\n")
        verify(draft)
