"""The tables of docs/cost.md, made of `results/speed/cost_*.json` and written into the page.

    python runs/pages/cost_page.py [--check]

With --check nothing is written, and the exit code is 1 where the page isn't that of the results. A table whose results
aren't there says which command makes them.
"""

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tables import size, span, table, write

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "cost.md"
RESULTS = ROOT / "results" / "speed"
ABSENT = "No results of this are here yet; `{}` makes them."
Row = dict[str, Any]


def origin(found: Row) -> str:
    machine = found["machine"]
    threads = f"{machine['threads']} thread{'s' * (machine['threads'] != 1)}"
    return f"{machine['cpu']}, {threads}; commit {found['commit']}."


def computed(path: Path) -> str:
    """By size: what the methods cost at rates that were measured on one core, and at assumed rates of a GPU."""
    found = json.loads(path.read_text())
    shapes = list(dict.fromkeys(row["shape"] for row in found["rows"]))
    methods = list(dict.fromkeys(row["method"] for row in found["rows"]))
    columns = ["model", "parameters"]
    columns += [f"`{name}`: {what}" for name in methods for what in ("one core", "GPU", "memory", "disk")]
    columns += ["one more sparsity: one core"]
    rows = []
    for shape in shapes:
        own = {row["method"]: row for row in found["rows"] if row["shape"] == shape}
        first = own[methods[0]]
        cells = [shape, f"{first['params'] / 1e9:.3g} B"]
        for name in methods:
            row = own[name]
            cells += [span(row["cpu"]["cpu_seconds"]), span(row["gpu_assumed"]["seconds"])]
            cells += [size(row["memory_bytes"]), size(row["disk_bytes"])]
        rows.append([*cells, span(first["cpu"]["second_cpu_seconds"])])
    tokens = found["rows"][0]["tokens"]
    return f"{table(columns, rows)}\n\n{tokens:,} tokens, half removed. Rates: {origin(found)}"


def streamed(path: Path) -> str:
    """Models larger than memory."""
    found = json.loads(path.read_text())
    many = next(name for name in found["rows"][0] if name.startswith("seconds_of_"))
    count = many.rpartition("_")[2]
    columns = ["model, effort", "memory", "disk", "read", "one process", f"{count} processes"]
    rows = [
        [
            f"{row['shape']}, {row['effort']}",
            size(row["memory_bytes"]),
            size(sum(row["disk_bytes"].values())),
            f"{row['read_bytes'] / 1e12:.2g} TB",
            span(row["seconds"]),
            span(row[many]),
        ]
        for row in found["rows"]
    ]
    return f"{table(columns, rows)}\n\nAll at assumed rates; commit {found['commit']}."


def measured(paths: Sequence[Path]) -> str:
    """Runs beside their plans."""
    columns = ["model", "method", "tokens", "took", "of the processor", "peak memory"]
    columns += [*(f"plan ÷ run: {name}" for name in ("time", "processor", "memory")), "on, at"]
    rows = []
    for path in paths:
        found = json.loads(path.read_text())
        run, ratio = found["run"], found["plan_over_run"]
        cells = [Path(found["model"]).name, method_of(found), f"{found['tokens']:,}", span(run["seconds"])]
        cells += [span(run["cpu_seconds"]), size(run["peak_bytes"])]
        cells += [f"{ratio[name]:.2f}" for name in ("seconds", "cpu_seconds", "memory")]
        rows.append(
            [*cells, f"{found['machine']['cpu'].replace('(R)', '').removesuffix(' Processor')}, {found['commit']}"]
        )
    return f"{table(columns, rows)}\n\nTwo threads each."


def method_of(found: Row) -> str:
    named = re.search(r"--method[= ](\S+?)(?:'|\"|\s|$)", found.get("command", ""))
    return f"`{named.group(1)}`" if named else "`seap`"


def tables(results: Path) -> dict[str, str]:
    """Name → what stands on the page."""
    made: dict[str, tuple[Callable[[Any], str], Any, str]] = {
        "computed": (computed, results / "cost_computed.json", "bash runs/speed/cost.sh"),
        "streamed": (streamed, results / "cost_streamed.json", "python runs/speed/cost.py --streamed --out …"),
    }
    found = {
        name: make(path) if path.is_file() else ABSENT.format(command) for name, (make, path, command) in made.items()
    }
    others = sorted(path for path in results.glob("cost_*.json") if "run" in json.loads(path.read_text()))
    return found | {"measured": measured(others) if others else ABSENT.format("bash runs/speed/cost.sh")}


if __name__ == "__main__":
    sys.exit(write(__doc__ or "", PAGE, tables(RESULTS)))
