"""Rows → items: by the shape of their columns, or by a data set's own columns; and what was left out of them.

Which columns make an item is said in `shapes.py`. Under the name of a data set in `seap.text.hub` its upstream columns
are read too.
"""

import logging
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from seap.errors import UserError
from seap.text import hub
from seap.text.columns import Fields, LeftOut, fields_of, is_missing, listed
from seap.text.decoding import say_once
from seap.text.readers import Row
from seap.text.shapes import SHAPES_TOLD, made, shape_of
from seap.text.shapes import Item as Item

log = logging.getLogger(__name__)


def to_items(rows: Iterable[Row], name: str, *, unanswered: bool = False) -> list[Item]:
    """Rows as items, without the blank and the unlabelled ones; an error names the row.

    Columns that no item is made of are named in a warning. unanswered: prompts and questions alone will do.
    """
    rows = list(rows)
    task = hub.TASKS.get(name)
    if task and task.regroup and all(_is_upstream(row, task) for row in rows):
        rows = task.regroup(rows)
    items, left_out = [], LeftOut()
    first = _first_number(row for row in rows if not (task and _is_upstream(row, task)))
    for row in rows:
        try:
            if task and _is_upstream(row, task):
                item = _upstream_item(row.values, task)
            else:
                item = _item(row.values, first, left_out, unanswered=unanswered)
        except UserError as error:
            raise UserError(f"{row.where}: {error}") from error
        if item is not None:
            item = item.at(row.where, row.folder)
            items.append(replace(item, is_continued=True) if task and task.is_continued else item)
    dropped = len(rows) - len(items)
    if dropped:
        log.warning("task %s: dropped %d of %d rows: blank, or without a label", name, dropped, len(rows))
    if left_out.told:
        say_once(f"task {name}: {left_out.told}")
    return items


def _item(row: dict[str, Any], first: int | None, left_out: LeftOut, *, unanswered: bool) -> Item | None:
    """The item of a row in one of the accepted shapes. first: what numbered choices count from."""
    fields = fields_of(row)
    shape = shape_of(fields.values, unanswered=unanswered)
    if shape is None:
        raise _wrong_columns(row)
    used = shape.fields(fields.values)
    left_out.add_(row, [column for name in used for column in fields.columns[name]])
    values = _from_zero(fields, first) if fields.numbered and "choices" in used else fields.values
    try:
        return made(shape, values)
    except UserError as error:
        renamed = [f"{name} from {', '.join(fields.columns[name])}" for name in used if fields.columns[name] != (name,)]
        raise UserError(f"{error} ({'; '.join(renamed)})" if renamed else str(error)) from error


def _first_number(rows: Iterable[Row]) -> int | None:
    """Whether answers to choices in numbered columns count from 0 or from 1; None where no row says so."""
    found: set[int] = set()
    for row in rows:
        with suppress(UserError):  # raised again where the row is read
            fields = fields_of(row.values)
            if fields.numbered:
                labels, answer = fields.values["choices"]["label"], _number(fields)
                found |= {0} if answer == 0 or labels[:1] == ["0"] else set()
                found |= {1} if answer == len(labels) and labels[:1] == ["1"] else set()
    return found.pop() if len(found) == 1 else None


def _number(fields: Fields) -> int | None:
    answer = fields.values.get("answer", fields.values.get("label"))
    text = str(int(answer) if isinstance(answer, float) and answer.is_integer() else answer).strip()
    return int(text) if re.fullmatch(r"[0-9]{1,3}", text) else None


def _from_zero(fields: Fields, first: int | None) -> dict[str, Any]:
    """The fields with an answer that is an index from 0, where it is a number at all."""
    number = _number(fields)
    if number is None:
        return fields.values
    if first is None:
        named = ", ".join(fields.columns["choices"])
        raise UserError(
            f"answer {number} of {named}: the file's answers don't say whether they count from 0 or from 1; give the "
            "text of the choice, or the choices as a list and an index from 0"
        )
    answer = "answer" if "answer" in fields.values else "label"
    return fields.values | {"choices": fields.values["choices"]["text"], answer: number - first}


def _is_upstream(row: Row, task: hub.HubTask) -> bool:
    return task.needs.keys() <= row.values.keys()


def _upstream_item(values: dict[str, Any], task: hub.HubTask) -> Item | None:
    for column, types in task.needs.items():
        value = values[column]
        if is_missing(value):
            return None
        if not isinstance(value, types):
            allowed = " or ".join(kind.__name__ for kind in types)
            raise UserError(f"column {column!r} is {type(value).__name__}; allowed: {allowed}")
    if task.item is not None:
        return task.item(values)
    columns = task.columns(values)
    shape = shape_of(columns)
    assert shape is not None
    item = made(shape, columns)
    if item is None or task.corpus is None:
        return item
    gold = item.choices[item.label] if item.label is not None else item.answer or ""
    return replace(item, text=task.corpus(values, gold))


def _wrong_columns(columns: Iterable[str]) -> UserError:
    known = [name for name, task in hub.TASKS.items() if task.needs.keys() <= set(columns)]
    hint = f"; these are the columns of {' or '.join(known)}: give {known[0]}=PATH" if known else ""
    found = listed(columns) or "none"
    return UserError(f"wrong columns: {found}; accepted: {'; '.join(SHAPES_TOLD)}{hint}")
