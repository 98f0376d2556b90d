"""`seap inspect`: what an artefact is, what made it, and what is in it."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from seap.arch import AXIS_NAMES
from seap.arch import describe as describe_arch
from seap.checkpoint import BUILTIN, load_config, read_provenance, resolve_model
from seap.errors import UserError
from seap.files import read_about, read_tensors


def describe(name: str) -> dict[str, Any]:
    """Everything worth knowing about a statistics or mask file, a pruned checkpoint or a dense model, for JSON."""
    path = Path(name).expanduser()
    if path.is_file():
        if path.suffix != ".safetensors":
            raise UserError(f"{path}: inspect takes a model folder, or a statistics or mask file (.safetensors)")
        kind, about = read_about(path)
        return {"kind": kind, "path": str(path)} | about | _content(path, kind)
    if path.is_dir() and (path / "seap.json").is_file():
        return {"kind": "pruned checkpoint", "path": str(path)} | _checkpoint(path)
    if path.is_dir() or name == BUILTIN:
        return {"path": resolve_model(name)} | _model(name)
    raise UserError(f"no such file or folder: {name}")


def _content(path: Path, kind: str) -> dict[str, Any]:
    tensors, _ = read_tensors(path, kind)
    if kind == "router":
        return {"features": tensors["weight"].shape[1], "layers": []}
    if kind == "network":
        masks = {key.removeprefix("mask."): mask for key, mask in tensors.items() if key.startswith("mask.")}
        own = {key.removeprefix("weight.") for key in tensors if key.startswith("weight.")}
        kept = {key: f"{int(m.sum())}/{m.numel()}" + " rebuilt" * (key in own) for key, m in masks.items()}
        return {"layers": _layers(kept)}
    if kind == "mask":
        return {"layers": _layers({key: f"{int(mask.sum())}/{mask.numel()}" for key, mask in tensors.items()})}
    sizes = {key.removesuffix(".mean"): value.numel() for key, value in tensors.items() if key.endswith(".mean")}
    return {"layers": _layers({key: f"{size} inputs" for key, size in sizes.items()})}


def _layers(entries: dict[str, Any]) -> list[dict[str, Any]]:
    """`layers.3.channels` → x, as a list with one dict per layer."""
    split = [(int(key.split(".")[1]), key.split(".")[2], value) for key, value in entries.items()]
    layers: list[dict[str, Any]] = [{} for _ in range(1 + max((layer for layer, _, _ in split), default=-1))]
    for layer, axis, value in split:
        layers[layer][axis] = value
    return layers


def _checkpoint(folder: Path) -> dict[str, Any]:
    return read_provenance(folder) | {"bytes": sum(file.stat().st_size for file in folder.glob("*.safetensors"))}


def _model(name: str) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForCausalLM

    config = load_config(name)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    arch = describe_arch(model)
    pruned = getattr(config, "seap", None) is not None
    return {
        "kind": "pruned model without provenance" if pruned else "dense model",
        "family": config.model_type,
        "params": sum(p.numel() for p in model.parameters()),
        "prunable_params": arch.prunable_params,
        "heads": "can be cut" if arch.can_cut_heads else f"can't be cut: {arch.family.heads_refused}",
        "layers": _layers({axis.key: axis.units for axis in arch.axes}),
    }


def show(found: dict[str, Any], console: Console) -> None:
    """Print what `describe` found."""
    if found["kind"] == "pruned checkpoint":
        show_report(found, console)
        if "promise" in found:
            show_promise(found["promise"], console)
        return
    table = Table(box=None, show_header=False)
    for name, value in found.items():
        if name not in ("layers", "samples") and not isinstance(value, dict):
            table.add_row(f"[bold]{name}[/bold]", escape(_plain(value)))
    console.print(table)
    _show_layers(found["layers"], console)


def show_report(report: dict[str, Any], console: Console) -> None:
    """The summary of a pruning, in a terminal."""
    table = Table(box=None, show_header=False)
    chosen = ", ".join(report["options"][name] for name in ("score", "allocate", "mask", "compensate"))
    rows = {
        "model": report["model"],
        "method": f"{report['method']} ({chosen})",
        "tasks": ", ".join(report["tasks"]) or "none: weights alone",
        "sparsity": f"{report['realised_sparsity']:.4f} of the prunable parameters, asked {report['target_sparsity']}",
        "all parameters": f"{report['params_before']:,} → {report['params_after']:,}, {report['total_sparsity']:.1%} "
        f"fewer ({report['non_embedding_sparsity']:.1%} without embeddings)",
        "measured on": f"{report['num_tokens']:,} tokens",
        "took": f"{report['seconds']:.1f} s",
    }
    if "bytes" in report:
        rows["weights on disk"] = f"{report['bytes'] / 1e6:,.1f} MB"
    for name, value in rows.items():
        table.add_row(f"[bold]{name}[/bold]", escape(value))
    console.print(table)
    _show_layers(report["layers"], console)


def show_promise(promise: dict[str, Any], console: Console) -> None:
    """The steps of the search, and in words what was promised."""
    table = Table("sparsity", "damage", "at most", "surely", "kept", header_style="bold")
    for step in promise["steps"]:
        numbers = [f"{step['sparsity']:g}", f"{100 * step['estimate']:.2f}%", f"{100 * step['upper']:.2f}%"]
        table.add_row(*numbers, f"{100 * step['confidence']:.1f}%", "yes" if step["kept"] else "no")
    console.print(table)
    things = "items" if promise["kind"] == "max_acc_drop" else "texts"
    for task, found in promise["tasks"].items():
        console.print(
            f"[bold]promised[/bold], {100 * promise['confidence']:.4g}% sure: on text like the {found['n']} held-out "
            f"{things} of {escape(task)}, {promise['words']}; there it is {seen(promise['kind'], found['estimate'])}."
        )
    if promise["assumes"]:
        console.print(f"[dim]assumed: {escape(promise['assumes'])}[/dim]")


def seen(kind: str, damage: float) -> str:
    """`+1.20%` of loss, `−0.50 points` of accuracy, `98.70%` of tokens alike"""
    if kind == "max_loss":
        return f"{100 * damage:+.2f}%".replace("-", "−")
    return f"{-100 * damage:+.2f} points".replace("-", "−") if kind == "max_acc_drop" else f"{100 - 100 * damage:.2f}%"


def show_rows(rows: list[dict[str, Any]], console: Console) -> None:
    """The rows of `seap eval`."""
    own = [row for row in rows if "loss" in row]
    if own:
        table = Table("task", "loss", "ppl", "accuracy, %", "KL", "same token, %", header_style="bold")
        for row in own:
            accuracy, kl, same = row.get("acc"), row.get("kl"), row.get("agreement")
            cells = [with_error(row["loss"], row["loss_stderr"], 3), f"{row['ppl']:.2f}"]
            cells.append("" if accuracy is None else with_error(100 * accuracy, 100 * row["acc_stderr"], 1))
            cells += ["" if kl is None else f"{kl:.3f}", "" if same is None else f"{100 * same:.1f}"]
            table.add_row(row["task"], *cells)
        console.print(table)
        for row in own:
            if row.get("acc") is not None:
                console.print(f"accuracy of {escape(row['task'])}: {row['acc_metric']}, n = {row['n']}")
    theirs = [row for row in rows if "metric" in row]
    if theirs:
        table = Table("harness task", "metric", "value", "n", "note", header_style="bold")
        for row in theirs:
            metric = row["metric"] + (f" ({row['filter']})" if row["filter"] not in (None, "none") else "")
            value = with_error(row["value"], row["stderr"], 4)
            table.add_row(row["task"], metric, value, str(row["n"]), escape(row["note"] or ""))
        console.print(table)


def with_error(value: float, stderr: float | None, digits: int) -> str:
    """`2.413 ± 0.021`"""
    known = stderr is not None and stderr == stderr
    return f"{value:.{digits}f} ± {stderr:.{digits}f}" if known else f"{value:.{digits}f}"


def show_comparison(result: dict[str, Any], console: Console) -> None:
    """Mean over tasks and seeds of every method: added loss and accuracy."""
    dense = {row["task"]: row for row in result["rows"] if row["method"] == "dense"}
    groups: dict[tuple[float, str, str], list[dict[str, Any]]] = {}
    for row in result["rows"]:
        if row["method"] != "dense":
            groups.setdefault((row["target_sparsity"], row["method"], row["control"] or ""), []).append(row)
    table = Table("removed", "method", "control", "added loss", "accuracy", "same token", header_style="bold")
    base = [row["acc"] for row in dense.values() if row["acc"] is not None]
    table.add_row("0", "dense", "", "0", f"{100 * sum(base) / len(base):.1f}%" if base else "", "100%")
    for (_, method, control), rows in sorted(groups.items(), key=lambda pair: pair[0]):
        removed = sum(row["realised_sparsity"] for row in rows) / len(rows)
        added = sum(row["loss"] - dense[row["task"]]["loss"] for row in rows) / len(rows)
        right = [row["acc"] for row in rows if row["acc"] is not None]
        same = sum(row["agreement"] for row in rows) / len(rows)
        accuracy = f"{100 * sum(right) / len(right):.1f}%" if right else ""
        table.add_row(f"{removed:.1%}", method, control, f"{added:.3f}", accuracy, f"{100 * same:.1f}%")
    console.print(table)
    console.print(
        f"means over {len(result['tasks'])} tasks and {len(result['seeds'])} seeds; chance is counted in accuracy"
    )


def show_sweep(result: dict[str, Any], console: Console) -> None:
    """The frontier of each task, one line per sparsity."""
    columns = ("removed", "added loss", "ppl", "accuracy, %", "same, %", "MB", "prefill", "decode")
    for task in result["tasks"]:
        table = Table(*columns, title=escape(task), title_justify="left", box=None, header_style="bold")
        for row in (row for row in result["rows"] if row["task"] == task):
            speed = row.get("speed") or {}
            cells = [f"{100 * row['realised_sparsity']:.1f}%"]
            cells += [with_error(row["added_loss"], row["added_loss_stderr"], 3), f"{row['ppl']:.2f}"]
            cells.append(with_error(100 * row["acc"], 100 * row["acc_stderr"], 1) if "acc" in row else "")
            cells += [f"{100 - 100 * row['disagreement']:.1f}", f"{row['bytes'] / 1e6:,.1f}"]
            cells += [f"×{speed[phase]['ratio']:.2f}" if phase in speed else "" for phase in ("prefill", "decode")]
            table.add_row(*cells)
        console.print(table)
    dense: dict[str, Any] = next((row["speed"] for row in result["rows"] if row.get("speed")), {})
    rates = [f"{found['dense_tokens_per_s']:,.0f} ({phase})" for phase, found in dense.items()]
    if rates:
        console.print(
            f"same: first choices equal to the dense model's. Speed is relative to its {' and '.join(rates)} tokens a "
            f"second at batch {result['options']['batch']}."
        )


def show_bench(result: dict[str, Any], console: Console) -> None:
    """Speed beside its ceiling, one line per phase, batch and model; or what calibration costs."""
    if result["kind"] == "bench-calibration":
        console.print(
            f"a bare forward pass reads {result['forward_tokens_per_s']:,.0f} tokens a second; calibration takes "
            f"×{result['calibration_cost']:.2f} as long, with second moments ×{result['second_moments_cost']:.2f}"
        )
        return
    columns = ("phase", "batch", "model", "dense/s", "pruned/s", "ratio", "ceiling", "reached", "of this machine")
    table = Table(*columns, title="tokens per second", title_justify="left", box=None, header_style="bold")
    for row in result["rows"]:
        spread = f"×{row['ratio']:.2f} ({row['ratio_low']:.2f}-{row['ratio_high']:.2f})"
        speeds = [f"{row[name]:,.1f}" for name in ("dense_tokens_per_s", "pruned_tokens_per_s")]
        reached = [f"×{row['ceiling']:.2f}", f"{row['ratio'] / row['ceiling']:.0%}", f"{row['pruned_of_limit']:.0%}"]
        table.add_row(row["phase"], str(row["batch"]), escape(row["model"]), *speeds, spread, *reached)
    console.print(table)
    console.print(
        "reached: the ratio over its ceiling, which is bytes read per step (decode) or operations (prefill). of this "
        "machine: the pruned model's speed over what its copy bandwidth or matrix rate allows."
    )


def show_analysis(result: dict[str, Any], console: Console) -> None:
    """What `seap analyze` found, in short."""
    best = max(range(len(result["silhouette"])), key=lambda i: result["silhouette"][i])
    console.print(f"hidden states part the tasks best after layer {best}: silhouette {result['silhouette'][best]:.2f}")
    table = Table("axis", "sparsity", "overlap of two tasks' masks", "by chance", header_style="bold")
    for entry in result["overlap"]:
        n = len(entry["tasks"])
        pairs = [entry["jaccard"][i][j] for i in range(n) for j in range(i)]
        table.add_row(
            entry["axis"], str(entry["sparsity"]), f"{sum(pairs) / len(pairs):.2f}", f"{entry['expected']:.2f}"
        )
    console.print(table)
    table = Table("task", "axis", "sparsity", "texts per half", "overlap of the halves' masks", header_style="bold")
    for entry in result["stability"]:
        cells = [
            entry["task"],
            entry["axis"],
            str(entry["sparsity"]),
            str(entry["num_texts"]),
            f"{entry['jaccard']:.2f}",
        ]
        table.add_row(*cells)
    console.print(table)


def _show_layers(layers: list[dict[str, Any]], console: Console) -> None:
    """Units per layer, runs of like layers on one line."""
    table = Table("layers", *[axis.replace("_", " ") for axis in AXIS_NAMES], box=None, header_style="bold")
    start = 0
    for layer in range(1, len(layers) + 1):
        if layer == len(layers) or layers[layer] != layers[start]:
            span = f"{start}" if layer == start + 1 else f"{start}–{layer - 1}"
            table.add_row(span, *[str(layers[start].get(axis, "whole")) for axis in AXIS_NAMES])
            start = layer
    console.print(table)


def _plain(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
