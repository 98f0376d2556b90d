"""Tasks that Python callers have in memory → items: texts, lists of messages, rows, data sets of `datasets`."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from seap.errors import UserError
from seap.text.items import to_items
from seap.text.readers import Row
from seap.text.shapes import Item

UNNAMED = "data"


def in_memory(tasks: Any) -> Mapping[str, Any] | Sequence[str]:
    """Examples by task name, or names of tasks as they were given.

    Of a `datasets.DatasetDict` it is the train part: its others are for tests.
    """
    if isinstance(tasks, Mapping):
        return {UNNAMED: tasks} if _is_parts(tasks) else tasks
    if _is_dataset(tasks):
        return {UNNAMED: tasks}
    given = list(tasks)
    return {UNNAMED: given} if given and not isinstance(given[0], str) else given


def items_in_memory(name: str, examples: Any) -> list[Item]:
    """Items of one task. Raises UserError for what is no example, named by its number."""
    if isinstance(examples, str):
        raise UserError("task as a dict maps each name to a list of texts, got one text; put it in a list")
    if isinstance(examples, Mapping):
        if not _is_parts(examples) or "train" not in examples:
            raise UserError(f"task {name}: a dict with {', '.join(map(str, examples))}; give a list, or its train part")
        examples = examples["train"]
    items: list[Item] = []
    rows: list[Row] = []
    for number, example in enumerate(_iterated(name, examples), start=1):
        where = f"{name} example {number}"
        if isinstance(example, str):
            items.append(Item(text=example))
        elif isinstance(example, Mapping):
            rows.append(Row(where, dict(example)))
        elif isinstance(example, Sequence):
            rows.append(Row(where, {"messages": list(example)}))
        else:
            raise UserError(
                f"{where} is {example!r:.60}, a {type(example).__name__}; allowed: a text, a list of messages, or a "
                "dict with a task's columns"
            )
    if items and rows:
        raise UserError(f"task {name}: texts and other examples are mixed; give two tasks")
    return items or to_items(rows, name)


def _iterated(name: str, examples: Any) -> Iterable[Any]:
    try:
        return iter(examples)
    except TypeError as error:
        kind = type(examples).__name__
        raise UserError(f"task {name} is a {kind}; allowed: a list of texts, messages or rows, or a Dataset") from error


def _is_dataset(given: Any) -> bool:
    return not isinstance(given, (str, Mapping, Sequence)) and isinstance(getattr(given, "column_names", None), list)


def _is_parts(given: Mapping[Any, Any]) -> bool:
    """A DatasetDict: data sets by the names of their parts."""
    return bool(given) and all(_is_dataset(part) for part in given.values()) and hasattr(given, "column_names")
