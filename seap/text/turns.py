"""Conversations as data sets write them → turns: who says what.

`messages` (role, content) as chat APIs have them, `conversations` (from, value) as ShareGPT has them; contents may be
strings, lists of parts, parts in parts, or null beside a tool call.
"""

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from seap.errors import UserError
from seap.text.pictures import TYPES, Part, Picture, picture_of

ROLES = {
    "system": ("system", "developer"),
    "user": ("user", "human", "prompter", "customer"),
    "assistant": ("assistant", "gpt", "chatgpt", "bard", "bot", "model", "ai", "chatbot", "function_call"),
    "tool": ("tool", "function", "observation", "tool_response", "function_response", "ipython"),
}
ROLE_OF = {name: role for role, names in ROLES.items() for name in names}
SPEAKER = ("role", "from", "speaker")
SAID = ("content", "value", "text")
KEPT = ("tool_calls", "tool_call_id", "name", "reasoning_content", "thinking")  # that templates may read
NAMES = {"system": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"}


@dataclass(frozen=True)
class Turn:
    """What one side says. more: JSON of what else a template may read, such as tool calls.

    parts: what is said and shown, in order, where something is shown.
    """

    role: str
    content: str
    more: str = ""
    parts: tuple[Part, ...] = ()

    @property
    def message(self) -> dict[str, Any]:
        """For a chat template."""
        return {"role": self.role, "content": self.content} | (json.loads(self.more) if self.more else {})


def pictures_in(turns: Sequence[Turn]) -> tuple[Picture, ...]:
    """What turns show, in order."""
    return tuple(part for turn in turns for part in turn.parts if isinstance(part, Picture))


def turns_of(given: Any) -> tuple[Turn, ...]:
    """The turns of one conversation; none where all of it is blank. Raises UserError naming the message amiss."""
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except json.JSONDecodeError as error:
            raise UserError(f"messages {given!r:.60}: not JSON; allowed: a list of messages") from error
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise UserError(f"messages is {given!r:.60}, a {type(given).__name__}; it must be a list of messages")
    found = [_turn(number, message) for number, message in enumerate(given, start=1)]
    return tuple(found) if any(turn.content.strip() or turn.more or turn.parts for turn in found) else ()


def _turn(number: int, message: Any) -> Turn:
    if not isinstance(message, Mapping):
        raise UserError(f'message {number} is {message!r:.60}; allowed: {{"role": …, "content": …}}')
    role = next((message[key] for key in SPEAKER if message.get(key) is not None), None)
    known = ROLE_OF.get(str(role).strip().lower())
    if known is None:
        raise UserError(f"message {number} has the role {role!r}; allowed: {', '.join(ROLE_OF)}")
    content = next((message[key] for key in SAID if message.get(key) is not None), "")
    more = {key: _bare(message[key]) for key in KEPT if message.get(key) not in (None, [], "")}
    for call in more.get("tool_calls", ()) if isinstance(more.get("tool_calls"), list) else ():
        _open_arguments_(call)
    parts = _parts(number, content)
    words = "".join(part for part in parts if isinstance(part, str))
    shown = tuple(parts) if any(isinstance(part, Picture) for part in parts) else ()
    return Turn(known, words, json.dumps(more, ensure_ascii=False) if more else "", shown)


def _parts(number: int, content: Any) -> list[Part]:
    """A content as texts and images. Raises UserError for parts that are neither, such as sound."""
    if isinstance(content, str):
        return [content]
    if isinstance(content, Sequence):
        return [found for part in content if part is not None for found in _parts(number, part)]
    if isinstance(content, Mapping):
        kind = content.get("type")
        inner = next(
            (content[key] for key in ("text", "content", "parts", "value") if content.get(key) is not None), None
        )
        if inner is not None and kind in (None, "text", "input_text", "output_text"):
            return _parts(number, inner)
        if kind in TYPES:
            return [picture_of(_bare(content))]
        raise UserError(
            f"message {number} has a part of type {kind!r}; only text and images can be read, so leave such rows out"
        )
    raise UserError(f"message {number} says {content!r:.60}, a {type(content).__name__}; it must be text")


def _open_arguments_(call: Any) -> None:
    """A call's arguments as an object, where they are JSON as chat APIs have them."""
    function = call.get("function") if isinstance(call, dict) else None
    if isinstance(function, dict) and isinstance(function.get("arguments"), str):
        with contextlib.suppress(ValueError, RecursionError):  # a model wrote them: they needn't be JSON
            function["arguments"] = json.loads(function["arguments"]) if function["arguments"] else {}


def _bare(value: Any) -> Any:
    """Without the nulls with which tables fill in what an entry lacks."""
    if isinstance(value, Mapping):
        return {key: _bare(part) for key, part in value.items() if part is not None}
    return [_bare(part) for part in value] if isinstance(value, list) else value


def messages_for(tokenizer: Any, turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """As the tokenizer's template takes them: calls and tools' answers are told as text where it knows no calls."""
    if "tool_calls" in str(tokenizer.chat_template):
        return [turn.message for turn in turns]
    return [{"role": "user" if turn.role == "tool" else turn.role, "content": _written(turn)} for turn in turns]


def asked_and_answered(prompt: str, answer: str | None, *, system: str = "", history: Any = None) -> tuple[Turn, ...]:
    """A prompt and its answer as turns. history: pairs of earlier prompts and answers, as Alpaca's relatives have."""
    turns = [Turn("system", system)] if system.strip() else []
    for number, pair in enumerate(history or (), start=1):
        if not (isinstance(pair, Sequence) and len(pair) == 2 and all(isinstance(part, str) for part in pair)):
            raise UserError(f"history entry {number} is {pair!r:.60}; allowed: [prompt, answer]")
        turns += [Turn("user", pair[0]), Turn("assistant", pair[1])]
    turns.append(Turn("user", prompt))
    return (*turns, Turn("assistant", answer)) if answer is not None else tuple(turns)


def said_by_user(turns: Sequence[Turn]) -> str:
    """What the user said: what a router reads."""
    return "\n".join(turn.content for turn in turns if turn.role == "user") or (turns[-1].content if turns else "")


def plain(turns: Sequence[Turn], *, cue: bool = False) -> tuple[str, tuple[tuple[int, int], ...]]:
    """Turns as text for a model without a chat template, and where the answers stand. cue: ask for one at the end.

    A lone user turn is the text itself, as if it had been given without a chat, and its answer goes on from there.
    """
    roles = [turn.role for turn in turns]
    if cue and len(turns) == 1:
        return turns[0].content, ()
    if roles == ["user", "assistant"]:
        prompt, answer = turns[0].content, joined(turns[0].content, _written(turns[1]))
        return prompt + answer, ((len(prompt), len(prompt) + len(answer)),)
    text, spans = "", []
    for turn in turns:
        text += f"{NAMES[turn.role]}:" if not text else f"\n{NAMES[turn.role]}:"
        start, written = len(text), _written(turn)
        text += f" {written}" if written else ""
        if turn.role == "assistant":
            spans.append((start, len(text)))
    return text + ("\nAssistant:" if cue else ""), tuple(spans)


def joined(prompt: str, answer: str) -> str:
    """An answer with the space that joins it to its prompt, where neither has one."""
    apart = not prompt or not answer or prompt[-1].isspace() or answer[0].isspace()
    return answer if apart else f" {answer}"


def _written(turn: Turn) -> str:
    calls = json.loads(turn.more).get("tool_calls") if turn.more else None
    told = [json.dumps(call.get("function", call), ensure_ascii=False) for call in calls or ()]
    return "\n".join([*([turn.content] if turn.content or not told else []), *told])
