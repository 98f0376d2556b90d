"""`seap export`: a checkpoint in the form that an engine reads. Written whole or not at all."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

from seap.disk.claim import claimed
from seap.errors import UserError, one_of
from seap.exports.keywords import ExportKeywords
from seap.exports.measured import Losses, told
from seap.exports.options import Export, Target
from seap.exports.writers import MEASURED, Job, write
from seap.files import check_suffix
from seap.models import loader
from seap.text.sources import sources_of


def export(
    name: str | Path,
    out: str | Path,
    to: Target,
    options: Export | None = None,
    *,
    task: Sequence[str] = (),
    overwrite: bool = False,
    trust_remote_code: bool = False,
    **own: Unpack[ExportKeywords],
) -> dict[str, Any]:
    """Write a checkpoint for an engine: `seap.export("small", "small.gguf", "gguf", quantize="q8_0")`.

    name: a folder or Hub name. to: uniform, padded, nemotron-nas, gguf, mlx, openvino, onnx, compressed-tensors or
    torchao. options, or own: the fields of `seap.exports.options.Export`. task: tasks on whose test text the loss is
    measured before and after rounding. Returns what was written, its bytes, notes on it, and what was measured.
    Raises UserError, before any weight is read where that can be, for what the target doesn't hold.
    """
    if not isinstance(name, str | Path):
        raise UserError("what is exported is a checkpoint: save the model first, as model.save_pretrained(DIR)")
    one_of("target", to, Target)
    name, out, target = str(name), Path(out), to
    options = options or Export(**own)
    options.check_target(target)
    if task and target not in MEASURED:
        raise UserError(f"--task is for --to {', '.join(MEASURED)}, whose weights are rounded; leave it out")
    if target == "gguf":
        check_suffix(out, ".gguf")
    kind = "gguf" if target == "gguf" else "export"
    with claimed(out, kind, overwrite=overwrite, inputs=sources_of(name, task)):
        instead = "load it with transformers, which needs import seap"
        loader.refuse_multimodal(name, "seap export", instead, trust_remote_code=trust_remote_code)
        losses = Losses(task)
        config = loader.load_config(name, trust_remote_code=trust_remote_code)
        job = Job(
            name=name,
            out=out,
            target=target,
            config=config,
            options=options,
            losses=losses,
            trust_remote_code=trust_remote_code,
        )
        written = write(job)
    notes = [*written.notes, *told(written.rows)]
    return {"out": str(out), "to": target, "bytes": size_of(out), "notes": notes, "measured": written.rows}


def size_of(path: Path) -> int:
    """Of a file, or of all files in a folder."""
    return sum(p.stat().st_size for p in ([path] if path.is_file() else path.rglob("*")) if p.is_file())
