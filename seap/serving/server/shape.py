"""How much a body may hold, looked at before anything is built or validated, up to the first thing that is too much.

A few megabytes of JSON can have a million objects: parsing them takes a gigabyte, and a validator that tells all that
is wrong takes minutes. So the text is looked at first (values, depth), then lengths, and validation comes last, on
what can no longer be large.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from seap.serving.server.fields import FieldError, joined

MAX_DEPTH = 64
MAX_PROMPTS = 128
MAX_ENTRIES = 1024  # of any list or object but a prompt
MAX_NAME = 1024  # characters
MAX_OTHER_VALUES = 16_384  # all that isn't the prompt


@dataclass(frozen=True)
class Bounds:
    """values: of a body in all; tokens: ids of one prompt, None where another server's model reads them."""

    values: int
    tokens: int | None


def parse(raw: bytes, bounds: Bounds) -> dict[str, Any]:
    """A body's object. Raises FieldError for one that is none or too much."""
    check_structure(raw, bounds.values)
    try:
        body = json.loads(raw, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise FieldError("", "the body is no JSON") from error
    if not isinstance(body, dict):
        raise FieldError("", f'the body must be a JSON object, such as {{"model": …}}, got {body!r:.60}')
    check_lengths(body, bounds.tokens)
    return body


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def check_structure(raw: bytes, most: int) -> None:
    """Refuse text that nests deeper, or has more values, than any request.

    Array operations, which let the other threads work meanwhile: a loop over megabytes would hold them all up.
    """
    opened = raw.count(b"[") + raw.count(b"{")
    if opened <= MAX_DEPTH and opened + raw.count(b",") <= most:
        return
    signs = np.frombuffer(raw.replace(rb"\\", b"").replace(rb"\"", b""), np.uint8)
    quoted = np.cumsum(signs == ord('"'), dtype=np.uint8) & 1  # by parity, which counting up to 255 keeps
    signs = signs[quoted == 0]
    opens = (signs == ord("[")) | (signs == ord("{"))
    closes = (signs == ord("]")) | (signs == ord("}"))
    if np.cumsum(opens.astype(np.int32) - closes, dtype=np.int32).max(initial=0) > MAX_DEPTH:
        raise FieldError("", f"the body nests deeper than {MAX_DEPTH} levels")
    if int(np.count_nonzero(opens)) + int(np.count_nonzero(signs == ord(","))) > most:
        raise FieldError("", f"the body has more than {most} values")


def check_lengths(body: dict[str, Any], tokens: int | None) -> None:
    """Refuse too many prompts, ids, messages, parts or fields; the first is told."""
    _check_prompt(body.get("prompt"), tokens)
    values = 0
    for place, entries in _containers({name: value for name, value in body.items() if name != "prompt"}):
        values += len(entries)
        if len(entries) > MAX_ENTRIES:
            raise FieldError(place, f"{len(entries)} entries; at most {MAX_ENTRIES}")
        if values > MAX_OTHER_VALUES:
            raise FieldError(place, f"the body has more than {MAX_OTHER_VALUES} values beside the prompt")


def _containers(value: Any) -> Iterator[tuple[str, Any]]:
    """Lists and objects in a value with their places."""
    waiting: list[tuple[str, Any]] = [("", value)]
    while waiting:
        place, found = waiting.pop()
        yield place, found
        if isinstance(found, dict) and any(len(name) > MAX_NAME for name in found):
            raise FieldError(place, f"a field's name has more than {MAX_NAME} characters")
        entries = found.items() if isinstance(found, dict) else enumerate(found)
        waiting += [(joined(place, name), entry) for name, entry in entries if isinstance(entry, list | dict)]


def _check_prompt(prompt: Any, tokens: int | None) -> None:
    if not isinstance(prompt, list):
        return
    if prompt and _is_id(prompt[0]):
        _check_ids("prompt", prompt, tokens)
        return
    if len(prompt) > MAX_PROMPTS:
        raise FieldError("prompt", f"{len(prompt)} prompts; at most {MAX_PROMPTS}")
    for number, one in enumerate(prompt):
        if isinstance(one, list):
            _check_ids(f"prompt[{number}]", one, tokens)


def _check_ids(place: str, ids: list[Any], tokens: int | None) -> None:
    if tokens is not None and len(ids) > tokens:
        raise FieldError(place, f"{len(ids)} token ids; the model's context is {tokens}")
    for number, one in enumerate(ids):
        if not _is_id(one):
            raise FieldError(f"{place}[{number}]", f"must be a token id, got {one!r:.60}")


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
