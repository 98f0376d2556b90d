"""Rows → items: what one example of a task is, and which columns may say so.

Columns that a row may have, the first that fits:

    question, choices, answer   multiple choice; text = question + " " + gold choice
    prompt, answer              text = prompt + answer, with a space between where there is no whitespace
    question, answer            the same with prompt = "Question: {question}\\nAnswer:"
    text                        alone, or beside one of the above: then it replaces the text made there

Other columns are ignored. Under the name of a data set in `seap.hub` its upstream columns are read too.
"""

import json
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from seap.errors import UserError
from seap.text import hub
from seap.text.readers import Row

SHAPES = ("question + choices + answer", "prompt + answer (or question + answer)", "text")

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Item:
    """One example of a task.

    `answer` carries the whitespace that joins it to `prompt`: the model is to go on with `answer` right after
    `prompt`; compare answers after strip().
    """

    text: str
    """What calibration sees: prompt and gold answer, or the text."""
    prompt: str | None = None
    """What generation is given."""
    answer: str | None = None
    """Gold answer of generation."""
    question: str | None = None
    """Multiple choice: what every choice is appended to, after a space."""
    choices: tuple[str, ...] = ()
    contexts: tuple[str, ...] = ()
    """Multiple choice the other way round (WinoGrande): a context for each choice, all choices the same."""
    label: int | None = None
    """Index of the gold choice."""


def to_items(rows: Iterable[Row], name: str) -> list[Item]:
    """Rows as items, without the blank and the unlabelled ones; an error names the row."""
    rows = list(rows)
    task = hub.TASKS.get(name)
    if task and task.regroup and all(_is_upstream(row, task) for row in rows):
        rows = task.regroup(rows)
    items = []
    for row in rows:
        try:
            item = _upstream_item(row.values, task) if task and _is_upstream(row, task) else _item(row.values)
        except UserError as error:
            raise UserError(f"{row.where}: {error}") from error
        if item is not None:
            items.append(item)
    dropped = len(rows) - len(items)
    if dropped:
        log.warning("task %s: dropped %d of %d rows: blank, or without a label", name, dropped, len(rows))
    return items


def _is_upstream(row: Row, task: hub.HubTask) -> bool:
    return task.needs.keys() <= row.values.keys()


def _upstream_item(values: dict[str, Any], task: hub.HubTask) -> Item | None:
    for column, types in task.needs.items():
        value = values[column]
        if _missing(value):
            return None
        if not isinstance(value, types):
            allowed = " or ".join(kind.__name__ for kind in types)
            raise UserError(f"column {column!r} is {type(value).__name__}; allowed: {allowed}")
    item = _item(task.columns(values))
    if item is None or task.corpus is None:
        return item
    gold = item.choices[item.label] if item.label is not None else item.answer or ""
    return replace(item, text=task.corpus(values, gold))


def _item(values: dict[str, Any]) -> Item | None:
    """The item of a row in one of the accepted shapes; None where a column of its shape is blank."""
    columns = values.keys()
    if {"question", "choices", "answer"} <= columns:
        item = _choice_item(values)
    elif {"prompt", "answer"} <= columns:
        item = _prompt_item(values["prompt"], values["answer"])
    elif {"question", "answer"} <= columns:
        item = _prompt_item(values["question"], values["answer"], template="Question: {}\nAnswer:")
    elif "text" in columns:
        text = values["text"]
        return None if _missing(text) else Item(text=_str("text", text))
    else:
        raise _wrong_columns(columns)
    text = values.get("text")
    return item if item is None or _missing(text) else replace(item, text=_str("text", text))


def _prompt_item(prompt: Any, answer: Any, *, template: str = "{}") -> Item | None:
    if _missing(prompt) or _missing(answer):
        return None
    prompt, answer = template.format(_str("prompt", prompt)), _str("answer", answer)
    if not prompt[-1].isspace() and not answer[0].isspace():
        answer = f" {answer}"
    return Item(text=prompt + answer, prompt=prompt, answer=answer)


def _choice_item(values: dict[str, Any]) -> Item | None:
    if any(_missing(values[column]) for column in ("question", "choices", "answer")):
        return None
    question = _str("question", values["question"])
    choices, labels = _choices(values["choices"])
    label = _gold(values["answer"], choices, labels)
    if label is None:
        return None
    return Item(text=f"{question} {choices[label]}", question=question, choices=choices, label=label)


def _choices(value: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Texts and labels (or none) of `choices`: a list, {"text": [...], "label": [...]}, or either as JSON."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise UserError(f'choices {value!r:.60}: not JSON; allowed: ["first", "second"]') from error
    texts, labels = (value.get("text"), value.get("label") or []) if isinstance(value, dict) else (value, [])
    if not isinstance(texts, list) or not isinstance(labels, list):
        raise UserError(f'choices {value!r:.60}; allowed: [string, …] or {{"text": […], "label": […]}}')
    if len(texts) < 2:
        raise UserError(f"{len(texts)} choices; at least 2 are needed")
    if labels and len(labels) != len(texts):
        raise UserError(f"{len(labels)} labels for {len(texts)} choices")
    for number, text in enumerate(texts, start=1):
        if _missing(_str(f"choice {number}", text)):
            raise UserError(f"choice {number} is blank")
    return tuple(texts), tuple(str(label).strip() for label in labels)


def _gold(answer: Any, choices: Sequence[str], labels: Sequence[str]) -> int | None:
    """The index of the gold choice; None for -1, the Hub's mark of a row without a label.

    A number is an index from 0. A string is, the first that fits: one of the labels, where there are labels;
    the text of a choice; digits, an index from 0; a letter, "A" the first. Labels come first because ARC has
    a row whose choice A is the text "C".
    """
    index: int | None = None
    if isinstance(answer, float) and answer.is_integer():
        answer = int(answer)
    if isinstance(answer, int) and not isinstance(answer, bool):
        index = answer
    elif isinstance(answer, str):
        index = _gold_from_text(answer.strip(), [choice.strip() for choice in choices], labels)
    if index == -1:
        return None
    if index is None or not 0 <= index < len(choices):
        allowed = [f"an index 0 to {len(choices) - 1}", f"a letter A to {chr(64 + min(len(choices), 26))}"]
        allowed += [f"a label ({', '.join(labels)})"] if labels else []
        allowed.append("the text of a choice")
        raise UserError(f"answer {answer!r} is none of the choices; allowed: {', '.join(allowed)}")
    return index


def _gold_from_text(answer: str, choices: Sequence[str], labels: Sequence[str]) -> int | None:
    if answer in labels:
        return labels.index(answer)
    if answer in choices:
        return choices.index(answer)
    if re.fullmatch(r"-?[0-9]+", answer):
        # Labels 1 to 4 say that digits count from 1: a digit that is no label is a mistake, not an index.
        return None if any(label.isdigit() for label in labels) and answer != "-1" else int(answer)
    if re.fullmatch(r"[A-Za-z]", answer):
        return ord(answer.upper()) - ord("A")
    return None


def _wrong_columns(columns: Iterable[str]) -> UserError:
    known = [name for name, task in hub.TASKS.items() if task.needs.keys() <= set(columns)]
    hint = f"; these are the columns of {' or '.join(known)}: give {known[0]}=PATH" if known else ""
    found = ", ".join(map(str, columns)) or "none"
    return UserError(f"wrong columns: {found}; accepted: {'; '.join(SHAPES)}{hint}")


def _missing(value: Any) -> bool:
    """None, NaN and blank strings."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def _str(name: str, value: Any) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and name == "answer":
        return str(value)
    if not isinstance(value, str):
        raise UserError(f"{name} is {value!r:.60}, a {type(value).__name__}; it must be a string")
    return value
