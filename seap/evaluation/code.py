"""pass@1: the share of items whose one greedy answer is a program that passes its checks."""

import ast
import re
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from seap.evaluation.generations import Written
from seap.evaluation.metrics import Figure, mean_of
from seap.evaluation.programs import Limits, Verdict, judge
from seap.text.items import Item

FENCE = re.compile(r"```[ \t]*(?:[Pp]ython3?|py)?[ \t]*\n(.*?)(?:\n[ \t]*```|\Z)", re.DOTALL)
AFTER = re.compile(r'\n(?="""|assert\b|print\(|if __name__|```|# Tests?\b)')


def verdicts(
    written: Sequence[Written], items: Sequence[Item], limits: Limits, *, progress: bool = False
) -> list[Verdict]:
    """Run each item's program against its checks; nothing else of what was written is run."""
    pairs = tqdm(list(zip(written, items, strict=True)), desc="programs", disable=not progress, leave=False)
    return [judge(program_of(one.text, item), item.checks, limits, asked=names_asked(item)) for one, item in pairs]


def pass_at_1(found: Sequence[Verdict]) -> Figure:
    return mean_of([float(one.passed) for one in found])


def program_of(text: str, item: Item) -> str:
    """The program in an answer: its first fenced block, or the text itself up to where it leaves the code.

    After a head that the model goes on with: the head, then the code, or all of it anew where the code defines it.
    """
    block = FENCE.search(text)
    if not item.head:
        return block[1] if block else AFTER.split(text, maxsplit=1)[0]
    code = block[1] if block else text
    name = names_asked(item)[-1:]
    if name and re.search(rf"^(?:async )?def {name[0]}\b", code, re.MULTILINE):
        return f"{item.head}\n    pass\n\n{code}"
    return item.head + (code if block else _indented(text))


def _indented(text: str) -> str:
    """The lines up to the first that isn't of the function whose head stands before them."""
    first, *lines = text.split("\n")
    end = next((i for i, line in enumerate(lines) if line.strip() and not line[0].isspace()), len(lines))
    return "\n".join([first, *lines[:end]])


def names_asked(item: Item) -> tuple[str, ...]:
    """What the gold program defines, which an answer is asked to define too."""
    gold = item.head + (item.answer or "") if item.head else (item.answer or "").strip()
    try:
        tree: Any = ast.parse(gold)
    except (SyntaxError, ValueError, RecursionError):
        return ()
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return tuple(node.name for node in tree.body if isinstance(node, kinds))
