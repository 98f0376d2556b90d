"""The section on where the numbers come from: files, machine, versions, data and its hashes."""

from collections.abc import Mapping, Sequence
from typing import Any

from seap.page.comparison import Comparison
from seap.page.numbers import Row
from seap.page.parts import Cell, Section, Table
from seap.page.sources import Source


def provenance_section(sources: Sequence[Source], data: Comparison | None) -> Section:
    facts = [[("file", f"{s.path.name} ({s.kind})"), *_facts(s.data)] for s in sources]
    tables = _data_tables(data) if data else []
    if data:
        facts[0].append(("seeds", ", ".join(map(str, data.seeds))))
    return Section(id="provenance", title="Where the numbers come from", facts=facts, tables=tables)


def _data_tables(data: Comparison) -> list[Table]:
    """What was read: calibration text with the hash of each seed's, and test data."""
    found: dict[str, list[Row]] = {}
    for row in data.rows:
        if row.get("calibration_tokens") is not None:
            made = row["made_for"] or row["task"]
            found.setdefault(f"{made}, no answers" if row["control"] == "no-answers" else made, []).append(row)
    texts = []
    for name, rows in found.items():
        tokens = sorted({r["calibration_tokens"] for r in rows})
        hashes = dict.fromkeys(str(r["data_hash"]) for r in rows if r.get("data_hash"))
        size = _tokens(tokens[0]) + (f" to {_tokens(tokens[-1])}" if len(tokens) > 1 else "")
        texts.append([Cell(name), Cell(size), Cell(" ".join(hashes) or "–")])
    dense = {r["task"]: r for r in data.select("dense")}
    tests = [
        [Cell(task), Cell(_tokens(r.get("n"))), Cell(_tokens(r.get("loss_n"))), Cell(str(r.get("test_hash") or "–"))]
        for task, r in dense.items()
    ]
    tables = [
        Table("Calibration text", ["made for", "tokens", "data hash, by seed"], [texts]),
        Table("Test data", ["task", "items scored", "texts for the loss", "data hash"], [tests]),
    ]
    return [table for table in tables if table.groups[0]]


def _tokens(count: int | None) -> str:
    return "–" if count is None else f"{count:,}".replace(",", " ")


def _facts(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = [(key, data.get(key)) for key in ("model", "family", "params", "prunable_params", "commit", "command")]
    found += [("hardware", data.get("machine")), ("versions", data.get("versions")), ("options", data.get("options"))]
    seconds = data.get("seconds")
    found += [("data hash", data.get("data_hash")), ("calibration tokens", data.get("calibration_tokens"))]
    found.append(("time", f"{seconds:.0f} s" if isinstance(seconds, int | float) else None))
    return [(name.replace("_", " "), _plain(value)) for name, value in found if value not in (None, {}, "")]


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        parts = [(k, f"({_plain(v)})" if isinstance(v, dict) else _plain(v)) for k, v in value.items() if v is not None]
        return ", ".join(f"{k} {text}" for k, text in parts)
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or "none"
    return _tokens(value) if type(value) is int else str(value)
