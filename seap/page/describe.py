"""`seap inspect`: what an artefact is, what made it, and what is in it."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from seap.activations.checks import axis_keyed, measured_axes
from seap.disk.kinds import kind_of
from seap.disk.place import at_home
from seap.errors import UserError
from seap.files import read_about, read_tensors
from seap.models import kinds
from seap.models.arch import describe as describe_arch
from seap.models.axes import EXPERTS, KV_GROUPS, NORMED, WIDTH_NAMES
from seap.models.blocks import blocks_refused, without
from seap.models.gguf import is_gguf
from seap.models.layer_config import stays_whole
from seap.models.loader import BUILTIN, model_on_meta, resolve_model
from seap.page.terminal import show_promise
from seap.pruning.checkpoint import read_provenance
from seap.pruning.report import summary
from seap.selection.mask import check_masks
from seap.selection.usage import Usage
from seap.serving.routing.router import check_tensors


def describe(name: str) -> dict[str, Any]:
    """Everything worth knowing about a statistics or mask file, a pruned checkpoint or a dense model, for JSON."""
    path = at_home(name)
    if is_gguf(name):
        return {"path": str(path)} | _model(name)
    if path.is_file():
        if path.suffix != ".safetensors":
            raise UserError(f"{path}: inspect takes a model folder, or a statistics or mask file (.safetensors)")
        kind, about = read_about(path)
        return {"kind": kind, "path": str(path)} | about | _content(path, kind)
    if path.is_dir() and (path / "seap.json").is_file():
        return {"kind": "pruned checkpoint", "path": str(path)} | _checkpoint(path)
    if name != BUILTIN and path.is_dir() and not (path / "config.json").is_file() and (own := results_in(path)):
        return {"kind": "folder of results", "path": str(path), "files": own, "layers": []}
    if path.is_dir() or name == BUILTIN:
        return {"path": resolve_model(name)} | _model(name)
    raise UserError(f"no such file or folder: {name}")


def results_in(folder: Path) -> dict[str, str]:
    """What lies in a folder that seap put results into: which kind each file is of."""
    found = {path.name: kind_of(path) for path in sorted(folder.iterdir()) if path.is_file()}
    return {name: kind for name, kind in found.items() if kind}


def _content(path: Path, kind: str) -> dict[str, Any]:
    if kind == "stats":
        axis_keyed(path, measured_axes(path))
    tensors, about = read_tensors(path, kind)
    if kind == "router":
        check_tensors(path, tensors, len(about["tasks"]))
        return {"features": tensors["weight"].shape[1], "layers": []}
    if kind == "network":
        masks = {key.removeprefix("mask."): mask for key, mask in tensors.items() if key.startswith("mask.")}
        check_masks(path, masks)
        kept = {
            key: f"{int(mask.sum())}/{mask.numel()}"
            + " rebuilt" * (f"weight.{key}" in tensors)
            + " corrected" * (f"left.{key}" in tensors)
            for key, mask in masks.items()
        }
        return {"layers": _layers(kept)}
    if kind == "mask":
        check_masks(path, tensors)
        return {"layers": _layers({key: f"{int(mask.sum())}/{mask.numel()}" for key, mask in tensors.items()})}
    means = {key.removesuffix(".mean"): value for key, value in tensors.items() if key.endswith(".mean")}
    means = {
        key: value for key, value in means.items() if not key.startswith("held.") and not key.endswith(f".{NORMED}")
    }
    experts = {key: expert_use(mean) for key, mean in means.items() if key.endswith(f".{EXPERTS}")}
    told = {key: f"{mean.numel()} inputs" for key, mean in means.items() if key not in experts}
    for key, use in experts.items():
        told[key] = f"{len(use['share'])}, by {min(use['share']):.0%} to {max(use['share']):.0%} of the tokens"
    return {"layers": _layers(told)} | ({"experts": experts} if experts else {})


def expert_use(mean: Tensor) -> dict[str, list[float]]:
    """Of a layer's experts: the share of the tokens that each sees, and its score (see `usage.py`)."""
    use = Usage.of(mean)
    return {"share": use.share.tolist(), "reap": use.reap.tolist()}


def _layers(entries: dict[str, Any]) -> list[dict[str, Any]]:
    """`layers.3.channels` → x, as a list with one dict per layer."""
    split = [(int(key.split(".")[1]), key.split(".")[2], value) for key, value in entries.items()]
    layers: list[dict[str, Any]] = [{} for _ in range(1 + max((layer for layer, _, _ in split), default=-1))]
    for layer, axis, value in split:
        layers[layer][axis] = value
    return layers


def _checkpoint(folder: Path) -> dict[str, Any]:
    return read_provenance(folder) | {"bytes": kinds.look(folder).bytes}


def _model(name: str) -> dict[str, Any]:
    model = model_on_meta(name)
    config, arch = model.config, describe_arch(model)
    pruned = getattr(config, "seap", None) is not None
    return {
        "kind": "pruned model without provenance" if pruned else "dense model",
        "family": config.model_type,
        "params": sum(p.numel() for p in model.parameters()),
        "prunable_params": arch.prunable_params,
        "heads": "can be cut" if arch.can_cut_heads else f"can't be cut: {arch.heads_refused}",
        **({"stays": "; ".join(stays)} if (stays := stays_whole(arch)) else {}),
        "attention and MLP": f"can't go whole: {why}" if (why := blocks_refused(arch)) else "can go whole",
        "layers": _layers(arch.units | without(config)),
    }


def show(found: dict[str, Any], console: Console) -> None:
    """Print what `describe` found."""
    if found["kind"] == "pruned checkpoint":
        show_report(found, console)
        if "promise" in found:
            show_promise(found["promise"], console)
        return
    if "files" in found:
        for name, kind in found["files"].items():
            console.print(f"[bold]{escape(name)}[/bold]  {escape(kind)}")
        if one := next((name for name in found["files"] if name.endswith(".safetensors")), None):
            console.print(f"seap inspect {escape(str(Path(found['path']) / one))} explains one of them")
        return
    table = Table(box=None, show_header=False)
    for name, value in (_told_of_stats(found) if found["kind"] == "stats" else _told(found)).items():
        table.add_row(f"[bold]{name}[/bold]", escape(value))
    console.print(table)
    _show_layers(found["layers"], console)


def _told(found: dict[str, Any]) -> dict[str, str]:
    """What is worth reading of an artefact; the keys that programs compare are in --json."""
    unread = ("layers", "samples", "fingerprint", "structure", "key", "parts", "data_hash")
    return {
        name.replace("_", " "): _plain(value)
        for name, value in found.items()
        if name not in unread and value is not None and not isinstance(value, dict)
    }


def _told_of_stats(found: dict[str, Any]) -> dict[str, str]:
    """A statistics file in words: what of, of which text, how much of it."""
    cuts, parts = len(found["layers"]), found.get("parts") or []
    kinds = {name: entry for layer in found["layers"] for name, entry in layer.items()}
    told = {
        "what": f"how strongly {found['task']} uses each part of a model: statistics of what its linears read",
        "file": found["path"],
        "model": found.get("model") or "unnamed",
        "task": found["task"],
        "text": found.get("source") or "unknown",
        "how much": f"{found.get('num_tokens') or 0:,} tokens in {found.get('num_rows') or 0:,} rows"
        + (f", added up from {len(parts)} files" if len(parts) > 1 else ""),
        "of": f"{cuts} layers; " + ", ".join(f"{name.replace('_', ' ')} ({entry})" for name, entry in kinds.items()),
        "holds": "mean, variance and mean square of every input"
        + (", and second moments, which reconstruction needs" if found.get("second_moments") else ""),
        "dtype": f"{found.get('dtype') or 'unknown'} of the model's arithmetic",
        "good for": f"seap mask MODEL {found['path']} --out MASK, and seap prune MODEL --stats {found['path']}",
    }
    return told


def show_report(report: dict[str, Any], console: Console) -> None:
    """The summary of a pruning, in a terminal."""
    table = Table(box=None, show_header=False)
    rows = summary(report)
    if "bytes" in report:
        rows["weights on disk"] = f"{report['bytes'] / 1e6:,.1f} MB"
    for name, value in rows.items():
        table.add_row(f"[bold]{name}[/bold]", escape(value))
    console.print(table)
    _show_layers(report["layers"], console)


def _show_layers(layers: list[dict[str, Any]], console: Console) -> None:
    """Units per layer, runs of like layers on one line."""
    names = [name for name in WIDTH_NAMES if name == KV_GROUPS or any(name in layer for layer in layers)]
    table = Table("layers", *[name.replace("_", " ") for name in names], box=None, header_style="bold")
    start, absent = 0, {KV_GROUPS: "whole"}
    for layer in range(1, len(layers) + 1):
        if layer == len(layers) or layers[layer] != layers[start]:
            span = f"{start}" if layer == start + 1 else f"{start}–{layer - 1}"
            table.add_row(span, *[str(layers[start].get(name, absent.get(name, "–"))) for name in names])
            start = layer
    console.print(table)


def _plain(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
