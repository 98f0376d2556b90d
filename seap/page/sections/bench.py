"""The section of a `bench` file: speed, and how much of its ceiling was reached."""

from collections.abc import Mapping
from typing import Any

from seap.page import plots
from seap.page.numbers import Row, number, percent
from seap.page.parts import Cell, Section, Table
from seap.page.plots import Plot


def speed_section(data: Mapping[str, Any]) -> Section:
    found = []
    for phase in dict.fromkeys(_name(r) for r in data["rows"]):
        rows = sorted((r for r in data["rows"] if _name(r) == phase), key=lambda r: r["batch"])
        table = [(r["batch"], r.get("dense_tokens_per_s"), r.get("pruned_tokens_per_s")) for r in rows]
        ratios, ceilings = [r["ratio"] for r in rows], [r.get("ceiling") for r in rows]
        words = "; ".join(f"batch {r['batch']}: ×{r['ratio']:.2f}" for r in rows)
        found.append(
            Plot(
                name=f"speed_{phase.replace(' ', '_')}",
                title=f"{phase.capitalize()}: pruned against dense",
                alt=f"Speed of {phase}, pruned over dense tokens per second. {words}.",
                columns=("batch", "dense_tokens_per_s", "pruned_tokens_per_s", "ratio", "ceiling"),
                rows=[(*t, r, c) for t, r, c in zip(table, ratios, ceilings, strict=True)],
                draw=plots.bars([r["batch"] for r in rows], ratios, ceilings),
            )
        )
    columns = ["phase", "batch", "dense tokens/s", "pruned tokens/s", "ratio", "ceiling", "of ceiling reached"]
    body = [[_speed_row(r) for r in data["rows"]]]
    texts = ["The ceiling is what the removed bytes (decode) or operations (prefill) would give with no other cost."]
    name = f" of {data['model']}" if data.get("model") else ""
    table_ = Table(f"Speed{name}", columns, body)
    return Section(id="speed", title="Speed", texts=texts, tables=[table_] if data["rows"] else [], plots=found)


def _name(row: Row) -> str:
    """The phase, and how it was run where that isn't eager."""
    return str(row["phase"]) if row.get("mode", "eager") == "eager" else f"{row['phase']} {row['mode']}d"


def _speed_row(row: Row) -> list[Cell]:
    ceiling = row.get("ceiling")
    speeds = [Cell(number(row.get(k), 1)) for k in ("dense_tokens_per_s", "pruned_tokens_per_s")]
    ratios = [Cell("×" + number(row["ratio"], 2)), Cell("×" + number(ceiling, 2) if ceiling else "–")]
    share = Cell(percent(row["ratio"] / ceiling, 0) if ceiling else "–")
    return [Cell(_name(row)), Cell(str(row["batch"])), *speeds, *ratios, share]
