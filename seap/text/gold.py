"""Choices and the gold one among them, as data sets write them: lists or JSON, indices, letters, labels or the text."""

import json
import re
from collections.abc import Sequence
from typing import Any

from seap.errors import UserError
from seap.text.columns import is_missing


def choices_of(value: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Texts and labels (or none) of `choices`: a list, {"text": [...], "label": [...]}, or either as JSON."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise UserError(f'choices {value!r:.60}: not JSON; allowed: ["first", "second"]') from error
    texts, labels = (value.get("text"), value.get("label") or []) if isinstance(value, dict) else (value, [])
    if not isinstance(texts, list) or not isinstance(labels, list):
        raise UserError(f'choices {value!r:.60}; allowed: [string, …] or {{"text": […], "label": […]}}')
    if len(texts) < 2:
        raise UserError(f"{len(texts)} choices; at least 2 are needed")
    if labels and len(labels) != len(texts):
        raise UserError(f"{len(labels)} labels for {len(texts)} choices")
    for number, text in enumerate(texts, start=1):
        if is_missing(string(f"choice {number}", text)):
            raise UserError(f"choice {number} is blank")
    return tuple(texts), tuple(str(label).strip() for label in labels)


def gold(answer: Any, choices: Sequence[str], labels: Sequence[str]) -> int | None:
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
    if re.fullmatch(r"-?[0-9]{1,9}", answer):
        # Labels 1 to 4 say that digits count from 1: a digit that is no label is a mistake, not an index.
        return None if any(label.isdigit() for label in labels) and answer != "-1" else int(answer)
    if re.fullmatch(r"[A-Za-z]", answer):
        return ord(answer.upper()) - ord("A")
    return None


def string(name: str, value: Any) -> str:
    """The value of a field, which must be a string (of an answer a number too)."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and name == "answer":
        return str(value)
    if not isinstance(value, str):
        raise UserError(f"{name} is {value!r:.60}, a {type(value).__name__}; it must be a string")
    return value
