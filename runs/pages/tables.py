"""Imported: tables in Markdown, and their places in a page.

A table stands between `<!-- NAME -->` and `<!-- end -->`; what stands there is replaced.
"""

import argparse
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path


def span(seconds: float) -> str:
    """In the unit that a person would take: `31 s`, `10 min`, `3.2 h`, `3.2 days`."""
    for unit, name in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 1.5 * unit:
            return f"{seconds / unit:.{1 if seconds < 10 * unit else 0}f} {name}"
    return f"{max(seconds, 1):.0f} s"


def size(num_bytes: float) -> str:
    few = 1 if num_bytes < 10e9 else 0
    return f"{num_bytes / 1e9:.{few}f} GB" if num_bytes >= 5e7 else "–"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def filled(page: str, made: Mapping[str, str]) -> str:
    """The page with its tables in their places. Raises SystemExit where one has none, or several."""
    for name, text in made.items():
        place = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)", flags=re.DOTALL)
        page, count = place.subn(lambda found, text=text: f"{found.group(1)}{text}\n{found.group(2)}", page)
        if count != 1:
            raise SystemExit(f"the page has {count} places for the table {name}, as <!-- {name} --> … <!-- end -->")
    return page


def write(about: str, page: Path, made: Mapping[str, str]) -> int:
    """The command line of a script that fills a page: the exit code."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    there = page.read_text()
    whole = filled(there, made)
    if options.check:
        return int(whole != there)
    page.write_text(whole)
    return 0
