"""A row's columns as fields: which column says what, under the names that data sets give it.

A field is a name that `shapes.py` knows (`question`, `choices`, …). It may stand under another name, spread over
several columns (choices A to D), or be several that are read one after the other (a passage and a context). What no
field takes is left out, and `items.py` says so.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from seap.errors import UserError

# Field → the names of a column that may stand for it, the first that is there. Compared without case and outer spaces.
NAMES = {
    "messages": ("messages", "conversations", "conversation"),
    "prompt": ("prompt", "instruction", "input"),
    "choices": ("choices", "options"),
    "answer": ("answer", "answers", "answerkey", "answer_key", "completion", "output", "response"),
    "system": ("system", "system_prompt"),
    "images": ("images", "image"),
}
# Columns of what is to be read before the question; all that are there are used, in their order.
CONTEXT = "context passage document article paragraph story background premise support evidence".split()
# Choices in a column each: A, B, C, D, or a word with a letter or a number, such as option_a, choice1, ending0.
LETTERED = re.compile(
    r"(?:(?:option|choice|ending|sol|answer|op)[ _-]?)?([a-j])|(?:option|choice|ending|sol)[ _-]?(\d)"
)


@dataclass(frozen=True)
class Fields:
    """`values` by field, and `columns`: the row's columns that each field was read from."""

    values: dict[str, Any]
    columns: dict[str, tuple[str, ...]]
    numbered: bool = False  # choices in numbered columns (option1, option2), whose answer may count from 0 or 1


def fields_of(row: Mapping[str, Any]) -> Fields:
    """The fields of a row. A column that is no known field's is a field of its own name."""
    by_name: dict[str, str] = {}
    for column in row:
        by_name.setdefault(str(column).strip().lower(), column)
    columns: dict[str, tuple[str, ...]] = {name: (column,) for name, column in by_name.items()}
    for name, accepted in NAMES.items():
        if name == "prompt" and "question" in columns:  # an instruction beside it is no prompt by itself
            continue
        found = next((columns[other] for other in accepted if other in columns), None)
        if found:
            columns[name] = found
    contexts = tuple(by_name[name] for name in by_name if name in CONTEXT and not is_missing(row[by_name[name]]))
    columns = {name: found for name, found in columns.items() if name not in CONTEXT}
    values = {name: row[found[0]] for name, found in columns.items()}
    if "answer" not in by_name and "answers" in by_name:
        values["answer"] = _first(values["answer"])
    if contexts:
        columns["context"] = contexts
        values["context"] = "\n".join(_context(column, row[column]) for column in contexts)
    lettered = _lettered(by_name) if "choices" not in values else {}
    if lettered:
        there = {label: column for label, column in lettered.items() if not is_missing(row[column])}
        columns["choices"] = tuple(lettered.values())
        values["choices"] = {"text": [row[column] for column in there.values()], "label": list(there)}
    return Fields(values, columns, numbered=bool(lettered) and all(label.isdigit() for label in lettered))


def _context(column: str, value: Any) -> str:
    """A context as text: a string, or strings one after the other."""
    parts = value if isinstance(value, list) else [value]
    if not all(isinstance(part, str) for part in parts):
        raise UserError(f"{column} is {value!r:.60}, a {type(value).__name__}; it must be a string or a list of them")
    return "\n".join(parts)


def _first(answers: Any) -> Any:
    """Of several accepted answers, a list or {"text": [...]} as in SQuAD, the first; None where there is none."""
    texts = answers.get("text") if isinstance(answers, dict) else answers
    return (texts[0] if texts else None) if isinstance(texts, list) else answers


def _lettered(by_name: Mapping[str, str]) -> dict[str, str]:
    """Label → column, of the first family of two columns or more that goes on without a gap: A B C, or 0 1 2."""
    families: dict[str, dict[str, str]] = {}
    for name, column in by_name.items():
        if found := LETTERED.fullmatch(name):
            label = (found[1] or found[2]).upper()
            families.setdefault(name[: -len(label)] + "9" * label.isdigit(), {})[label] = column
    for family in families.values():
        labels = sorted(family)
        first = labels[0]
        if (
            len(labels) > 1
            and first in "A01"
            and [ord(label) - ord(first) for label in labels] == [*range(len(labels))]
        ):
            return {label: family[label] for label in labels}
    return {}


@dataclass
class LeftOut:
    """Which columns of a file's rows no shape reads, and which were read."""

    used: dict[str, None] = field(default_factory=dict)
    others: dict[str, None] = field(default_factory=dict)

    def add_(self, row: Mapping[str, Any], used: Iterable[str]) -> None:
        used = dict.fromkeys(used)
        self.used |= used
        self.others |= dict.fromkeys(c for c in row if c not in used and not is_missing(row[c]))

    @property
    def told(self) -> str:
        """`left out: system, options (read: prompt, answer)`; empty where nothing was left out."""
        names = [column for column in self.others if column not in self.used]
        more = f" and {len(names) - 20} more" if len(names) > 20 else ""
        return f"left out: {listed(names[:20])}{more} (read: {listed(self.used)})" if names else ""


def listed(columns: Iterable[Any]) -> str:
    """Names of columns in one line, whatever is in them."""
    return ", ".join(name if name.isprintable() else repr(name) for name in map(str, columns))


def is_missing(value: Any) -> bool:
    """None, NaN and blank strings."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())
