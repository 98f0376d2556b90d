"""What a page is made of: sections of texts, tables, plots and facts."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from seap.page.plots import Plot, Series

AXES = {
    "channels": "MLP channels",
    "kv_groups": "KV groups",
    "query_heads": "query heads of each KV group",
    "experts": "experts",
    "expert_channels": "channels of each expert",
}


@dataclass(frozen=True)
class Cell:
    text: str
    note: str = ""
    best: bool = False


@dataclass(frozen=True)
class Table:
    """Groups of rows; the first cell of a row is its heading."""

    caption: str
    columns: list[str]
    groups: list[list[list[Cell]]]

    def without_empty(self, *, leaving_out: int = 0) -> "Table":
        """Without the columns that say nothing in any row (leaving out the first ones, as the dense model's)."""
        rows = [row for group in self.groups for row in group]
        heard = rows[leaving_out:] or rows
        told = [i for i in range(len(self.columns)) if i == 0 or any(row[i].text not in ("", "–") for row in heard)]
        groups = [[[row[i] for i in told] for row in group] for group in self.groups]
        return Table(self.caption, [self.columns[i] for i in told], groups)


@dataclass(frozen=True, kw_only=True)
class Section:
    id: str
    title: str
    texts: list[str] = field(default_factory=list)
    points: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    facts: list[list[tuple[str, str]]] = field(default_factory=list)
    files: dict[str, list[Sequence[Any]]] = field(default_factory=dict)
    small: bool = False

    @property
    def empty(self) -> bool:
        return not (self.points or self.tables or self.plots or self.facts)


def styled_line(
    label: str,
    x: Sequence[float],
    y: Sequence[float],
    style: tuple[str, str],
    error: Sequence[float] = (),
    scale: float = 1,
) -> Series:
    bars = [scale * e for e in error]
    return Series(label=label, x=x, y=y, error=bars if any(bars) else (), colour=style[0], marker=style[1])
