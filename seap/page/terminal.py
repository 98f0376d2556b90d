"""Results in a terminal: figures on tasks, comparisons, promises, sweeps, speed and analyses."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from seap.page.comparison import join
from seap.page.numbers import cells, mean, several
from seap.page.numbers import with_error as of_page
from seap.page.sources import Source


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
        paired, by_byte = any("dense" in row for row in own), any(row.get("nats_per_byte") is not None for row in own)
        columns = ["task", *(["model", "added loss"] if paired else []), "loss", *(["per byte"] if by_byte else [])]
        likeness = ["KL", "same token, %"] if paired else []
        table = Table(*columns, "ppl", "accuracy, %", *likeness, header_style="bold")
        for row in own:
            if "dense" in row:
                whole = _figures(row["dense"], by_byte=by_byte)
                table.add_row(row["task"], "dense", "0", *whole, *(["0", "100"] if row.get("kl") is not None else []))
            told = [row["task"], *(["this", _added(row)] if "dense" in row else [])]
            told += _figures(row, by_byte=by_byte)
            if row.get("kl") is not None:
                told += [f"{row['kl']:.3f}", f"{100 * row['agreement']:.1f}"]
            table.add_row(*told, end_section=True)
        console.print(table)
        for row in own:
            if row.get("acc") is not None:
                console.print(f"accuracy of {escape(row['task'])}: {row['acc_metric']}, n = {row['n']}")
            if row.get("endless") is not None:
                console.print(f"written for {escape(row['task'])}: {_written(row)}")
            if row.get("added_nats_per_byte") is not None:
                console.print(
                    f"{escape(row['task'])}: {row['added_nats_per_byte']:+.4f} nats per byte against the dense model, "
                    "whose vocabulary is another; losses per token don't compare, and there is no KL"
                )
    theirs = [row for row in rows if "metric" in row]
    if theirs:
        table = Table("harness task", "metric", "value", "n", "note", header_style="bold")
        for row in theirs:
            metric = row["metric"] + (f" ({row['filter']})" if row["filter"] not in (None, "none") else "")
            value = with_error(row["value"], row["stderr"], 4)
            table.add_row(row["task"], metric, value, str(row["n"]), escape(row["note"] or ""))
        console.print(table)


def _written(row: Mapping[str, Any]) -> str:
    """`right 31.2 ± 6.8% of 48 in free form (of those right by choice 50.0 ± 9.1%), 4.2% loop, 10.4% don't end`"""
    share = {name: 100 * row[name] for name in ("said", "recall", "loops", "endless") if row.get(name) is not None}
    parts = []
    if "said" in share:
        parts.append(f"right {with_error(share['said'], 100 * row['said_stderr'], 1)}% of {row['said_n']} in free form")
    if "recall" in share:
        parts[0] += f" (of those right by choice {with_error(share['recall'], 100 * row['recall_stderr'], 1)}%)"
    return ", ".join([*parts, f"{share['loops']:.1f}% loop", f"{share['endless']:.1f}% don't end"])


def _added(row: Mapping[str, Any]) -> str:
    """`+0.012 ± 0.003`"""
    return "+" * (row["added_loss"] >= 0) + with_error(row["added_loss"], row.get("added_loss_stderr"), 3)


def _figures(row: Mapping[str, Any], *, by_byte: bool) -> list[str]:
    """Loss, also per byte where that is told, perplexity and accuracy."""
    accuracy = row.get("acc")
    right = "" if accuracy is None else with_error(100 * accuracy, 100 * row["acc_stderr"], 1)
    per_byte = "" if row.get("nats_per_byte") is None else f"{row['nats_per_byte']:.4f}"
    loss = with_error(row["loss"], row["loss_stderr"], 3)
    return [loss, *([per_byte] if by_byte else []), f"{row['ppl']:.2f}", right]


def with_error(value: float, stderr: float | None, digits: int) -> str:
    """`2.413 ± 0.021`"""
    known = stderr is not None and stderr == stderr
    return f"{value:.{digits}f} ± {stderr:.{digits}f}" if known else f"{value:.{digits}f}"


def show_comparison(result: dict[str, Any], console: Console) -> None:
    """Every method's mean over tasks and seeds, ± its standard error, in an order that tells; the best is bold."""
    data = join([Source(Path(), result)])
    if data is None:
        return
    table = Table("removed", "method", "control", header_style="bold")
    for name in ("added loss", "accuracy, %", "same token, %"):
        table.add_column(name, justify="right")
    right = mean(cells(data.select("dense"), "acc"))
    table.add_row("0%", "dense", "", "0", of_page(right, 1, scale=100) if right else "", "100", end_section=True)
    for sparsity in data.sparsities:
        controls = dict.fromkeys(row["control"] for row in data.rows if row["control"])
        lines = [(method, control) for control in (None, *controls) for method in data.methods]
        shown = [line for line in lines if data.select(line[0], sparsity, line[1])]
        best = data.lowest(sparsity)
        for method, control in shown:
            rows = data.select(method, sparsity, control)
            measured = [
                of_page(mean(cells(rows, "added_loss")), 3),
                of_page(mean(cells(rows, "acc")), 1, scale=100),
                of_page(mean(cells(rows, "agreement")), 1, scale=100),
            ]
            removed = mean(cells(rows, "realised_sparsity"))
            named = [f"{100 * removed.value:.1f}%" if removed else "", method, control or "", *measured]
            style = "bold" if method == best and control is None else None
            table.add_row(*named, style=style, end_section=(method, control) == shown[-1])
    console.print(table)
    over = f"{several(len(data.tasks), 'task')} and {several(len(data.seeds), 'seed')}"
    error = " ± standard error" if len(data.tasks) > 1 or len(data.seeds) > 1 else ""
    console.print(f"means over {over}{error}; bold loses least. Accuracy has chance in it")


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
            same = row.get("disagreement")
            cells += ["" if same is None else f"{100 - 100 * same:.1f}", f"{row['bytes'] / 1e6:,.1f}"]
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
        console.print(
            f"prompts of {result['prompt_tokens']} tokens: {result['prompts_tokens_per_s']:,.0f} tokens a second, "
            f"×{result['times_one_by_one']:.1f} as many as one prompt at a time with copies to the host "
            f"(×{result['times_one_by_one_uncollected']:.1f} without its garbage collection)"
        )
        return
    rows = [_bench_cells(row) for row in result["rows"]]
    told = [name for name in rows[0] if name not in ("mode", "model") or len({row[name] for row in rows}) > 1]
    table = Table(title="tokens per second", title_justify="left", box=None, header_style="bold", padding=(0, 1, 0, 0))
    for name in told:
        table.add_column(name, no_wrap=name != "model")
    for row in rows:
        table.add_row(*(row[name] for name in told))
    console.print(table)
    told_of = dict.fromkeys((row.get("mode", "eager"), row["library"]) for row in result["rows"] if "library" in row)
    if told_of:
        console.print("products of linears: " + ", ".join(f"{mode} by {name}" for mode, name in told_of))
    console.print(
        "reached: the ratio over its ceiling, which is bytes read per step (decode) or operations (prefill). "
        "limit: the pruned model's speed over what this machine's copy bandwidth or matrix rate allows."
    )


def _bench_cells(row: Mapping[str, Any]) -> dict[str, str]:
    return {
        "phase": row["phase"],
        "mode": row.get("mode", "eager"),
        "batch": str(row["batch"]),
        "model": escape(row["model"]),
        "dense/s": f"{row['dense_tokens_per_s']:,.1f}",
        "pruned/s": f"{row['pruned_tokens_per_s']:,.1f}",
        "ratio": f"×{row['ratio']:.2f}",
        "quartiles": f"{row['ratio_low']:.2f}-{row['ratio_high']:.2f}",
        "ceiling": f"×{row['ceiling']:.2f}",
        "reached": f"{row['ratio'] / row['ceiling']:.0%}",
        "limit": f"{row['pruned_of_limit']:.0%}",
    }


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
