"""`seap export`: a checkpoint in the form that an engine reads. Written whole or not at all."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

from seap.disk.claim import claimed
from seap.disk.digests import weight_digests
from seap.disk.whole import written_whole
from seap.errors import UserError, one_of
from seap.exports.keywords import ExportKeywords
from seap.exports.options import Export, Target
from seap.files import check_suffix, to_json
from seap.models import loader
from seap.models.axes import AXIS_NAMES, KV_GROUPS, QUERY_HEADS
from seap.models.families import refuse_experts
from seap.models.loader import check_not_quantized
from seap.pruning import checkpoint
from seap.pruning.card import exported_card
from seap.text.sources import sources_of

BYTES = {"f32": 4, "f16": 2, "bf16": 2, "q8_0": 2}  # at most, per parameter


def export(
    name: str | Path,
    out: str | Path,
    to: Target,
    options: Export | None = None,
    *,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    **own: Unpack[ExportKeywords],
) -> dict[str, Any]:
    """Write a checkpoint for an engine: `seap.export("small", "small.gguf", "gguf", quantize="q8_0")`.

    name: a folder or Hub name. to: uniform, padded, gguf, openvino or torchao. options, or own: the fields of
    `seap.exports.options.Export`. Returns what was written, its bytes, and notes on it.
    Raises UserError, before any weight is read where that can be, for what the target doesn't hold.
    """
    if not isinstance(name, str | Path):
        raise UserError("what is exported is a checkpoint: save the model first, as model.save_pretrained(DIR)")
    one_of("target", to, Target)
    name, out, target = str(name), Path(out), to
    options = options or Export(**own)
    options.check_target(target)
    if target == "gguf":
        check_suffix(out, ".gguf")
    kind = "gguf" if target == "gguf" else "export"
    with claimed(out, kind, overwrite=overwrite, inputs=sources_of(name)):
        config = loader.load_config(name, trust_remote_code=trust_remote_code)
        notes = _export(name, out, target, config, options, trust_remote_code)
    return {"out": str(out), "to": target, "bytes": size_of(out), "notes": notes}


def _export(name: str, out: Path, target: Target, config: Any, options: Export, trust_remote_code: bool) -> list[str]:
    """Write for the target; returns what to know about it."""
    if target == "gguf":
        return _export_gguf(name, out, config, options, trust_remote_code)
    if target == "torchao":
        return _export_torchao(name, out, config, options, trust_remote_code)
    if target == "openvino":
        return _export_openvino(name, out, config, options, trust_remote_code)
    _check_pruned(name, config, target)
    return _export_stock(name, out, target, options, trust_remote_code)


def size_of(path: Path) -> int:
    """Of a file, or of all files in a folder."""
    return sum(p.stat().st_size for p in ([path] if path.is_file() else path.rglob("*")) if p.is_file())


def _check_pruned(name: str, config: Any, target: Target) -> None:
    if getattr(config, "seap", None) is None:
        raise UserError(
            f"{name} isn't pruned by seap: its class is a stock one already, and --to {target} adds nothing"
        )


def _export_stock(name: str, out: Path, target: Target, options: Export, trust_remote_code: bool) -> list[str]:
    from seap.exports.stock import stock_model

    model, tokenizer = _loaded(name, trust_remote_code)
    dense = _dense_widths(name, model) if options.pad_to == "dense" else None
    stock, notes = stock_model(model, pad=target == "padded", dense=dense)
    _save(stock, tokenizer, provenance_of(name), target, out)
    return [*notes, *_about_padding(model, stock, target)]


def _export_gguf(name: str, out: Path, config: Any, options: Export, trust_remote_code: bool) -> list[str]:
    from seap.exports.gguf_file import check_config, gguf_package, write_gguf
    from seap.exports.gguf_vocabulary import vocabulary_of

    gguf_package()
    check_config(config)
    model, tokenizer = _loaded(name, trust_remote_code)
    vocabulary = vocabulary_of(tokenizer, model.config, options.tokenizer)
    checkpoint.check_space(out, sum(p.numel() for p in model.parameters()) * BYTES[options.quantize], "the export")
    with written_whole(out, "gguf") as draft:
        return write_gguf(model, vocabulary, draft, options, provenance_of(name))


def _export_openvino(name: str, out: Path, config: Any, options: Export, trust_remote_code: bool) -> list[str]:
    from seap.exports.openvino_folder import check_config, openvino_bytes, openvino_packages, write_openvino

    openvino_packages(options)
    check_config(config)
    model, tokenizer = _loaded(name, trust_remote_code)
    checkpoint.check_space(out, openvino_bytes(model, options), "the export")
    with written_whole(out, "export") as draft:
        notes = write_openvino(model, tokenizer, draft, options)
        _save_provenance(provenance_of(name), "openvino", draft)
        return notes


def _export_torchao(name: str, out: Path, config: Any, options: Export, trust_remote_code: bool) -> list[str]:
    from seap.exports.quantization import check_saved, load_int8, torchao_package

    check_saved(options.weights)
    refuse_experts(config, "--to torchao", "leave it in 16 bits: only its attention would be quantized")
    torchao_package("--to torchao")
    model, tokenizer = load_int8(name, trust_remote_code=trust_remote_code)
    _save(model, tokenizer, provenance_of(name), "torchao", out)
    return []


def _save(model: Any, tokenizer: Any, told: Mapping[str, Any] | None, target: Target, out: Path) -> None:
    """A folder that transformers loads, with its card where it is known how the model was pruned."""
    from seap.exports.quantization import stored_bytes

    checkpoint.check_space(out, sum(stored_bytes(p) for p in model.parameters()), "the export")
    with written_whole(out, "export") as draft:
        model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        if told is not None:
            _save_provenance(told, target, draft)
            (draft / "README.md").write_text(exported_card(told, target, type(model).__name__))


def _loaded(name: str, trust_remote_code: bool) -> tuple[Any, Any]:
    model, tokenizer = loader.load(name, device="cpu", trust_remote_code=trust_remote_code)
    check_not_quantized(model)
    return model, tokenizer


def _dense_widths(name: str, model: Any) -> Mapping[str, int]:
    """Axis name → units before pruning, which the mask file knows."""
    found = checkpoint.previous(name, model)
    if found is None:
        raise UserError(f"{name} has no {checkpoint.MASK_FILE}, so its dense widths aren't known; use --pad-to widest")
    sizes = {key.rpartition(".")[2]: mask.numel() for key, mask in found[0].items()}
    if QUERY_HEADS in sizes:
        sizes[QUERY_HEADS] //= sizes[KV_GROUPS]
    return {name: sizes[name] for name in (*AXIS_NAMES, QUERY_HEADS) if name in sizes}


def _about_padding(model: Any, stock: Any, target: Target) -> list[str]:
    if target != "padded":
        return []
    counts = [sum(p.numel() for p in m.parameters()) for m in (model, stock)]
    added = counts[1] / counts[0] - 1
    return [f"padded with zeros: the same outputs, {added:.1%} more parameters, and no faster than its widest layer"]


def _save_provenance(told: Mapping[str, Any] | None, target: Target, folder: Path) -> None:
    if told is not None:
        about = {**told, "exported": target, "digests": weight_digests(folder)}
        (folder / "seap.json").write_text(to_json(about, indent=2) + "\n")


def provenance_of(name: str) -> dict[str, Any] | None:
    """What seap.json beside a local checkpoint says; None where there is none."""
    folder = Path(loader.resolve_model(name))
    return checkpoint.read_provenance(folder) if os.path.isfile(folder / "seap.json") else None
