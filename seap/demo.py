"""`seap demo`: the built-in model, its own tasks, five methods at equal sparsity and equal calibration text."""

import time
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from seap import checkpoint, pruning
from seap.builtin import TASKS
from seap.config import Calibration, Evaluation, Pruning
from seap.environment import command_line, commit, machine, versions
from seap.files import digest, write_json
from seap.metrics import exact_match
from seap.speed import tokens_per_second
from seap.stats import Statistics
from seap.tasks import Item, load_items

METHODS = ("seap", "seap-gen", "flap", "wanda-sp", "random")
SPARSITIES = (0.2, 0.5)
TESTING = Evaluation(max_new_tokens=24)
CALIBRATION = Calibration(num_texts=400, max_tokens=2000)
SAVED_TASK, SAVED_METHOD, SAVED_SPARSITY = "arithmetic", "seap", 0.5

Rows = list[dict[str, Any]]


def run(out: Path, *, num_items: int, progress: bool) -> dict[str, Any]:
    """Calibrate once, prune and evaluate every method, save and reload one checkpoint; writes OUT/demo.json."""
    started = time.perf_counter()
    checkpoint.quiet_transformers()
    model, tokenizer = checkpoint.load(checkpoint.BUILTIN, dtype="float32", device="cpu")
    names = list(TASKS)
    items = {name: load_items(name, "test")[:num_items] for name in names}
    statistics = pruning.calibrate(model, tokenizer, names, progress=progress, **asdict(CALIBRATION))
    share = replace(CALIBRATION, max_tokens=(CALIBRATION.max_tokens or 0) // len(names))
    mixture = pruning.calibrate(model, tokenizer, names, progress=progress, **asdict(share))
    rows = compare(model, tokenizer, items, statistics, mixture, progress=progress)
    saved = save_and_reload(out / "checkpoint", items[SAVED_TASK])
    result = {
        "rows": rows,
        "checkpoint": saved,
        "calibration_tokens_per_task": {name: next(iter(s.values())).count for name, s in statistics.items()},
        "num_items": num_items,
        "seed": CALIBRATION.seed,
        "data_hash": digest({name: [item.text for item in tests] for name, tests in items.items()}),
        "commit": commit(),
        "command": command_line(),
        "versions": versions(),
        "machine": machine(),
        "seconds": time.perf_counter() - started,
    }
    write_json(out / "demo.json", result)
    return result


def compare(
    model: Any,
    tokenizer: Any,
    items: Mapping[str, Sequence[Item]],
    statistics: Mapping[str, Statistics],
    mixture: Mapping[str, Statistics],
    *,
    progress: bool,
) -> Rows:
    """One row per method, sparsity and task.

    Every method sees the text of the task that it is tested on; seap-gen sees a share of every task's, as many tokens
    together, and is one model for all of them.
    """
    plan = [(method, sparsity) for sparsity in SPARSITIES for method in METHODS]
    rows = [_row("dense", 0.0, 0.0, task, model, tokenizer, tests) for task, tests in items.items()]
    bar = tqdm(total=len(plan) * len(items), desc="prune and test", unit="model", disable=not progress, leave=False)
    for method, sparsity in plan:
        general = None
        for task, tests in items.items():
            pruned = general
            if pruned is None:
                known = mixture if method == "seap-gen" else {task: statistics[task]}
                pruned = _pruned(model, known, method, sparsity)
            if method == "seap-gen":
                general = pruned
            rows.append(_row(method, sparsity, pruned[1], task, pruned[0], tokenizer, tests))
            bar.update()
    bar.close()
    return rows


def _pruned(model: Any, statistics: Mapping[str, Statistics], method: str, sparsity: float) -> tuple[Any, float]:
    copy = deepcopy(model)
    report = pruning.prune(copy, statistics=statistics, **asdict(Pruning(sparsity=sparsity, method=method)))
    return copy, report.realised_sparsity


def _row(
    method: str, target: float, realised: float, task: str, model: Any, tokenizer: Any, items: Sequence[Item]
) -> dict[str, Any]:
    figure = exact_match(model, tokenizer, items, TESTING)
    return {
        "method": method,
        "task": task,
        "target_sparsity": target,
        "realised_sparsity": realised,
        "acc": figure.value,
        "acc_stderr": figure.stderr,
        "n": figure.n,
    }


def save_and_reload(out: Path, items: Sequence[Item]) -> dict[str, Any]:
    """Prune for one task, save, load again, and measure size, accuracy and speed beside the dense model."""
    from seap.commands import prune_to_folder

    prune_to_folder(
        checkpoint.BUILTIN,
        out,
        tasks=[SAVED_TASK],
        overwrite=True,
        progress=False,
        loading={"device": "cpu"},
        method=SAVED_METHOD,
        sparsity=SAVED_SPARSITY,
        **asdict(CALIBRATION),
    )
    dense, tokenizer = checkpoint.load(checkpoint.BUILTIN, dtype="float32", device="cpu")
    pruned, _ = checkpoint.load(str(out), dtype="float32", device="cpu")
    speeds = tokens_per_second({"dense": dense, "pruned": pruned})
    folders = {"dense": Path(checkpoint.resolve_model(checkpoint.BUILTIN)), "pruned": out}
    sizes = {name: sum(f.stat().st_size for f in folder.glob("*.safetensors")) for name, folder in folders.items()}
    return {
        "path": str(out),
        "task": SAVED_TASK,
        "acc": exact_match(pruned, tokenizer, items, TESTING).value,
        "bytes": sizes,
        "tokens_per_s": speeds,
    }


def show(result: Mapping[str, Any], console: Console) -> None:
    """The tables, what they mean, and what to type next."""
    tasks = list(result["calibration_tokens_per_task"])
    for sparsity in SPARSITIES:
        console.print(_table(result["rows"], tasks, sparsity))
    saved = result["checkpoint"]
    size, speed = saved["bytes"], saved["tokens_per_s"]
    tokens = result["calibration_tokens_per_task"].values()
    noise = 100 / (result["num_items"] * len(tasks)) ** 0.5
    console.print(
        "'removed' is the share of attention and MLP parameters that are really gone. Every method saw the same text: "
        f"{min(tokens):,} tokens of the task it is tested on (seap-gen: as many of all tasks "
        f"together, one model for all of them). {result['num_items']} test items a task: under {noise:.0f} points "
        "in the mean is noise."
    )
    console.print(
        f"Saved and reloaded {saved['path']} (half removed for {saved['task']}): {100 * saved['acc']:.0f}% correct, "
        f"{size['dense'] / 1e6:.1f} → {size['pruned'] / 1e6:.1f} MB on disk, "
        f"{speed['dense']:,.0f} → {speed['pruned']:,.0f} tokens read per second "
        f"(×{speed['pruned'] / speed['dense']:.2f}), {result['seconds']:.0f} s in all."
    )
    console.print(
        f"\nNext:\n  seap inspect {saved['path']}\n"
        "  seap prune builtin --task calendar --sparsity 0.3 --out calendar\n"
        "  seap prune MODEL --task NAME=PATH --sparsity 0.5 --out DIR     your model, your texts",
        markup=False,
    )


def _table(rows: Rows, tasks: Sequence[str], sparsity: float) -> Table:
    """Accuracy of every task (rows) by every method (columns) at one sparsity."""
    found = {(r["method"], r["task"]): r for r in rows if r["target_sparsity"] in (0.0, sparsity)}
    realised = [row["realised_sparsity"] for (method, _), row in found.items() if method != "dense"]
    title = (
        f"{min(realised):.1%} to {max(realised):.1%}"
        if max(realised) - min(realised) > 5e-4
        else f"{min(realised):.1%}"
    )
    table = Table("task", title=f"Correct answers, %, with {title} removed", title_justify="left", header_style="bold")
    methods = ("dense", *METHODS)
    for method in methods:
        table.add_column(method, justify="right")
    for task in tasks:
        cells = [f"{100 * found[method, task]['acc']:.0f}" for method in methods]
        table.add_row(task, *cells, end_section=task == tasks[-1])
    means = [100 * sum(found[method, task]["acc"] for task in tasks) / len(tasks) for method in methods]
    table.add_row("mean", *[f"{mean:.1f}" for mean in means], style="bold")
    return table
