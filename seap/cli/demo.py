"""`seap demo`: `seap compare` on the built-in model and its tasks, one checkpoint saved and reloaded, and a page."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from seap.bench.speed import tokens_per_second
from seap.disk.claim import claimed
from seap.disk.kinds import COLLECTION
from seap.disk.place import check_place
from seap.disk.whole import temporary
from seap.errors import UserError
from seap.evaluation.answers import exact_match
from seap.evaluation.evaluate import load_test
from seap.evaluation.options import Evaluation
from seap.evidence.compare import compare
from seap.evidence.plan import Comparison
from seap.files import write_json
from seap.models import loader
from seap.text.builtin import TASKS
from seap.text.items import Item
from seap.text.options import Calibration

METHODS = ("seap", "seap-gen", "flap", "wanda-sp", "random")
SPARSITIES = (0.2, 0.5)
CALIBRATION = Calibration(num_texts=400, max_tokens=2000)
TESTING = Evaluation(max_new_tokens=24)
LOADING: dict[str, Any] = {"device": "cpu", "dtype": "float32"}
SAVED_TASK, SAVED_METHOD, SAVED_SPARSITY = "arithmetic", "seap", 0.5

Rows = list[dict[str, Any]]


def run(out: Path, *, num_items: int, overwrite: bool = False, progress: bool) -> dict[str, Any]:
    """Compare the methods, save and reload one checkpoint; writes OUT/demo.json and, with seap[report], its page."""
    with claimed(out, COLLECTION, overwrite=overwrite):
        for name, kind in (("demo.json", "compare"), ("checkpoint", "checkpoint"), ("report.html", "page")):
            check_place(out / name, kind, overwrite=True)  # its own of an earlier demo
        return _run_claimed(out, num_items=num_items, progress=progress)


def _run_claimed(out: Path, *, num_items: int, progress: bool) -> dict[str, Any]:
    """`run`, once its output is known to be fit."""
    started = time.perf_counter()
    loader.quiet_transformers()
    testing = replace(TESTING, num_items=num_items)
    plan = Comparison(
        tasks=tuple(TASKS), methods=METHODS, sparsities=SPARSITIES, calibration=CALIBRATION, evaluation=testing
    )
    with temporary("demo") as room:
        result = compare(loader.BUILTIN, plan, room / "comparison", loading=LOADING, progress=progress)
    result["checkpoint"] = save_and_reload(out / "checkpoint", load_test(SAVED_TASK, testing).items)
    result["seconds"] = time.perf_counter() - started
    write_json(out / "demo.json", result)
    return result | write_page(out)


def write_page(out: Path) -> dict[str, str | None]:
    """OUT/report.html, or why there is none."""
    from seap.page import document

    try:
        return {"report": str(document.build([out / "demo.json"], out / "report.html")), "no_report": None}
    except UserError as error:
        return {"report": None, "no_report": str(error)}


def save_and_reload(out: Path, items: Sequence[Item]) -> dict[str, Any]:
    """Prune for one task, save, load again, and measure size, accuracy and speed beside the dense model."""
    from seap.pruning.commands import prune_to_folder

    prune_to_folder(
        loader.BUILTIN,
        out,
        tasks=[SAVED_TASK],
        overwrite=True,
        progress=False,
        loading={"device": "cpu"},
        method=SAVED_METHOD,
        sparsity=SAVED_SPARSITY,
        **asdict(CALIBRATION),
    )
    dense, tokenizer = loader.load(loader.BUILTIN, **LOADING)
    pruned, _ = loader.load(str(out), **LOADING)
    speeds = tokens_per_second({"dense": dense, "pruned": pruned})
    folders = {"dense": Path(loader.resolve_model(loader.BUILTIN)), "pruned": out}
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
    tasks = result["tasks"]
    for sparsity in SPARSITIES:
        console.print(_table(result["rows"], tasks, sparsity))
    saved = result["checkpoint"]
    size, speed = saved["bytes"], saved["tokens_per_s"]
    num_items = min(row["n"] for row in result["rows"])
    noise = 100 / (num_items * len(tasks)) ** 0.5
    console.print(
        "'removed' is the share of attention and MLP parameters that are really gone. Every method saw the same text: "
        f"{result['calibration_tokens']:,} tokens of the task it is tested on (seap-gen: as many of all tasks "
        f"together, one model for all of them). {num_items} test items a task: under {noise:.0f} points "
        "in the mean is noise."
    )
    console.print(
        f"Saved and reloaded {saved['path']} (half removed for {saved['task']}): {100 * saved['acc']:.0f}% correct, "
        f"{size['dense'] / 1e6:.1f} → {size['pruned'] / 1e6:.1f} MB on disk, "
        f"{speed['dense']:,.0f} → {speed['pruned']:,.0f} tokens read per second "
        f"(×{speed['pruned'] / speed['dense']:.2f}), {result['seconds']:.0f} s in all."
    )
    if result["report"]:
        console.print(f"All of it, with pictures: {escape(result['report'])} (for a browser; it needs no network)")
    else:
        console.print(escape(f"No page of it: {result['no_report']}"))
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
