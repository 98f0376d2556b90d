"""Results as short tables: of characters for a terminal, of HTML for a notebook."""

from collections.abc import Mapping, Sequence
from html import escape


def text_table(title: str, facts: Mapping[str, str]) -> str:
    """`title`, then a line `name  value` for each."""
    width = max(map(len, facts), default=0)
    return "\n".join([title, *(f"  {name:<{width}}  {value}" for name, value in facts.items())])


def html_facts(title: str, facts: Mapping[str, str]) -> str:
    """The same as HTML."""
    return html_table(title, (), [list(pair) for pair in facts.items()])


def html_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], best: Sequence[int] = ()) -> str:
    """A table whose first column is of headings. best: the places of the rows that are marked."""
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    lines = []
    for place, row in enumerate(rows):
        weight = "bold" if place in best else "normal"
        cells = "".join(f'<td style="text-align:left;font-weight:{weight}">{escape(cell)}</td>' for cell in row[1:])
        lines.append(f'<tr><th style="text-align:left">{escape(row[0])}</th>{cells}</tr>')
    top = f"<thead><tr>{head}</tr></thead>" if columns else ""
    caption = f'<caption style="text-align:left;font-weight:bold">{escape(title)}</caption>'
    return f"<table>{caption}{top}<tbody>{''.join(lines)}</tbody></table>"
