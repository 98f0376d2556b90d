"""A chat's messages, tool turns included, and what templates and the router read of them."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from seap.serving.server.fields import FieldError, joined

Role = Literal["system", "developer", "user", "assistant", "tool", "function"]
ROLES = get_args(Role)
NAMES = {"user": "User", "assistant": "Assistant", "tool": "Tool"}
OTHERS = ("name", "tool_call_id", "reasoning_content", "reasoning")  # text, which templates may read
SILENT = ("refusal", "annotations", "audio", "id", "cache_control")  # what OpenAI's own answers carry; not read


@dataclass(frozen=True)
class Message:
    """One turn. calls: tool calls as templates take them, their arguments an object where they are JSON."""

    role: Role
    text: str
    calls: tuple[dict[str, Any], ...] = ()
    others: Mapping[str, str] = field(default_factory=dict)

    def turn(self, *, tools: bool, developer: bool) -> dict[str, Any]:
        """As a template takes it. tools, developer: whether it knows such turns; otherwise they are told as text."""
        role = "system" if self.role == "developer" and not developer else self.role
        if tools:
            calls = {"tool_calls": [*self.calls]} if self.calls else {}
            return {"role": role, "content": self.text, **calls, **self.others}
        return {"role": "user" if role == "tool" else role, "content": self.plain, **self.others}

    @property
    def plain(self) -> str:
        """The text, with the calls as JSON, a line each."""
        calls = [json.dumps(call["function"], ensure_ascii=False) for call in self.calls]
        return "\n".join([*([self.text] if self.text or not calls else []), *calls])


def read_messages(given: Any) -> list[Message]:
    """The messages of a request. Raises FieldError for what they can't be."""
    if not isinstance(given, list) or not given:
        raise FieldError("messages", "must be a list of objects with role and content, one or more")
    return [_message(one, f"messages[{place}]") for place, one in enumerate(given)]


def _message(given: Any, place: str) -> Message:
    if not isinstance(given, dict):
        raise FieldError(place, f"must be an object with role and content, got {given!r:.60}")
    found = {name: value for name, value in given.items() if value is not None}
    role = found.pop("role", None)
    if role not in ROLES:
        raise FieldError(joined(place, "role"), f"{role!r:.60}; allowed: {', '.join(ROLES)}")
    calls = _calls(found, place, role)
    if role != "assistant" and "content" not in found:
        raise FieldError(joined(place, "content"), "missing; give a text, which an assistant's turn alone may lack")
    text = _text(found.pop("content", ""), joined(place, "content"))
    others = {name: found.pop(name) for name in OTHERS if name in found}
    for name, value in others.items():
        if not isinstance(value, str):
            raise FieldError(joined(place, name), f"must be text, got {value!r:.60}")
    for name, value in found.items():
        if name not in SILENT and value not in ([], {}, ""):
            raise FieldError(joined(place, name), "is not supported; leave it out")
    return Message("tool" if role == "function" else role, text, calls, others)


def _text(given: Any, place: str) -> str:
    """Text, or the text of parts."""
    if isinstance(given, str):
        return given
    if not isinstance(given, list):
        raise FieldError(place, f"must be text or a list of parts, got {given!r:.60}")
    return "".join(_part(part, joined(place, number)) for number, part in enumerate(given))


def _part(part: Any, place: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind not in ("text", "refusal"):
        raise FieldError(joined(place, "type") if isinstance(part, dict) else place, f"{kind!r:.60}; allowed: text")
    text = part.get(kind)
    if not isinstance(text, str):
        raise FieldError(joined(place, kind), f"must be text, got {text!r:.60}")
    return text


def _calls(found: dict[str, Any], place: str, role: str) -> tuple[dict[str, Any], ...]:
    """Takes tool_calls, and the older function_call, out of a message."""
    calls, old = found.pop("tool_calls", []), found.pop("function_call", None)
    where = joined(place, "tool_calls")
    if not isinstance(calls, list):
        raise FieldError(where, f"must be a list, got {calls!r:.60}")
    named = [(joined(where, number), call) for number, call in enumerate(calls)]
    if old is not None:
        named.append((joined(place, "function_call"), {"type": "function", "function": old}))
    if named and role != "assistant":
        raise FieldError(named[0][0], f"an assistant's turn alone has calls, this is {role}'s")
    return tuple(_call(call, where) for where, call in named)


def _call(call: Any, place: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise FieldError(place, 'must be {"id": …, "type": "function", "function": {"name": …, "arguments": …}}')
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        with contextlib.suppress(ValueError, RecursionError):  # a model wrote it: it needn't be JSON
            arguments = json.loads(arguments) if arguments else {}
    own = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    return own | {"type": "function", "function": {"name": function["name"], "arguments": arguments or {}}}


def said(messages: Sequence[Message]) -> str:
    """What the user said, which the router reads; without a user's turn, the last one."""
    return "\n".join(one.text for one in messages if one.role == "user") or messages[-1].plain


def turns_for(tokenizer: Any, messages: Sequence[Message]) -> list[dict[str, Any]]:
    """As the tokenizer's template takes them, by the words that are in it."""
    template = str(tokenizer.chat_template)
    tools, developer = "tool_calls" in template, "developer" in template
    return [message.turn(tools=tools, developer=developer) for message in messages]


def as_lines(messages: Sequence[Message]) -> str:
    """A chat for a model without a template; a lone message is the prompt as it is."""
    if len(messages) == 1:
        return messages[0].plain
    lines = [f"{NAMES.get(one.role, 'System')}: {one.plain}" for one in messages]
    return "\n".join([*lines, "Assistant:"])
