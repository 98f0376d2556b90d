"""Items → token ids, in the model's own chat template or plain, and which of the tokens are an answer's.

One place for calibration, tests and generation, so that all of them see the same tokens. What a template writes is
tokenised without special tokens: it writes its own, and no second beginning of text stands before it.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from seap.errors import UserError
from seap.models.sight import Sight, sight_of
from seap.text import seeing, tokens
from seap.text.options import Reading
from seap.text.rows import Seen, SeenRow, counted_of, row_of
from seap.text.shapes import Item
from seap.text.templates import in_parts, render
from seap.text.turns import Turn, messages_for, pictures_in, plain

Spans = tuple[tuple[int, int], ...]
Rendered = Callable[..., str]  # a tokenizer, turns, their item, and whether they ask (`asks`) → text


@dataclass(frozen=True)
class Encoded:
    """Token ids of a text; `written` says of each whether it is an answer's, None where all count.

    seen: what the model reads beside them of images, which stand at `places`; counted: whether these count.
    """

    ids: tuple[int, ...]
    written: tuple[bool, ...] | None
    in_template: bool = False
    seen: Seen = field(default_factory=dict)
    places: tuple[bool, ...] = ()
    counted: bool = True

    @property
    def row(self) -> tuple[int, ...]:
        """For `corpus.batches`."""
        row = row_of(self.ids, self.written)
        if not self.seen:
            return row
        counts = counted_of(row) or (True,) * len(row)
        both = zip(counts, self.places, strict=True)
        return SeenRow(row, [own and (self.counted or not place) for own, place in both], self.places, self.seen)

    def after(self, start: Sequence[int]) -> "Encoded":
        """The same after a mark of its beginning, which a template writes itself."""
        if self.in_template or not start or self.seen:
            return self
        written = None if self.written is None else (*([False] * len(start)), *self.written)
        return replace(self, ids=(*start, *self.ids), written=written)


def in_template(tokenizer: Any, item: Item, reading: Reading) -> bool:
    """Whether an item is read in the chat template. Multiple choice is so only where --template chat asks for it.

    Raises UserError for --template chat where there is none, or nothing that could be turns.
    """
    there = bool(getattr(tokenizer, "chat_template", None))
    if reading.template == "chat":
        if not there:
            raise UserError("--template chat: the model's tokenizer has no chat template; use --template auto")
        if not item.turns:
            raise UserError(
                f"--template chat: {item.text!r:.60} is plain text, which nobody says; use --template auto, or "
                "give turns (messages) or prompts and answers"
            )
    return (
        there and bool(item.turns) and reading.template != "none" and (reading.template == "chat" or not item.choices)
    )


def encode(tokenizer: Any, item: Item, reading: Reading) -> Encoded:
    """The tokens that calibration and tests see of an item, and its images where the model sees. Nothing is cut."""
    if (sight := seeing.sees(tokenizer, item, reading)) is not None:
        return _seen(tokenizer, sight, item, reading)
    if in_template(tokenizer, item, reading):
        text = _rendered(tokenizer, item.turns, item, asks=False)
        if reading.weigh == "all":
            return Encoded(tuple(_ids(tokenizer, text, special=False)), None, True)
        spans = _wanted(item, _answers(tokenizer, item, text, _rendered), reading)
        return Encoded(*_marked(tokenizer, text, spans, special=False), True)
    if reading.weigh == "all":
        return Encoded(tuple(_ids(tokenizer, item.text, special=True)), None)
    return Encoded(*_marked(tokenizer, item.text, _wanted(item, _plain_answers(item), reading), special=True))


def prompt_ids(tokenizer: Any, item: Item, reading: Reading) -> tuple[int, ...]:
    """The tokens after which the model is to write the item's last answer."""
    seeing.refuse_images(tokenizer, item, reading, "what a model writes")
    if not in_template(tokenizer, item, reading):
        return tuple(_ids(tokenizer, item.prompt or "", special=True))
    places = [place for place, turn in enumerate(item.turns) if turn.role == "assistant"]
    asked = item.turns[: places[-1]] if places else item.turns
    return tuple(_ids(tokenizer, _rendered(tokenizer, asked, item, asks=True) + item.lead, special=False))


def _seen(tokenizer: Any, sight: Sight, item: Item, reading: Reading) -> Encoded:
    """The same of an item with images: what the model's processor makes of its template's text and the images."""
    processor, chat = sight.processor, item.turns and reading.template != "none" and not item.choices
    chat = bool(chat and (processor.chat_template or tokenizer.chat_template)) or in_template(tokenizer, item, reading)
    if chat:
        item = replace(item, turns=seeing.shown_turns(item), images=())
        pictures = pictures_in(item.turns)

        def rendered(tokenizer: Any, turns: Sequence[Turn], item: Item, *, asks: bool) -> str:
            own = processor if processor.chat_template else tokenizer
            return _written(own, list(map(seeing.message, turns)), item, asks=asks)

        text = rendered(tokenizer, item.turns, item, asks=False)
        spans = () if reading.weigh == "all" else _answers(tokenizer, item, text, rendered)
    else:
        text, spans, pictures = seeing.written_out(item, seeing.mark_of(sight))
    ids, seen = seeing.looked_at(sight, text, pictures, special=not chat)
    written = None
    if reading.weigh != "all":
        wanted = _wanted(item, spans, reading)
        written = tuple(seeing.marks_of(sight, text, pictures, wanted, len(ids), special=not chat))
    places = tuple(token == sight.token for token in ids)
    return Encoded(tuple(ids), written, chat, seen, places, reading.images == "count")


def _wanted(item: Item, spans: Spans, reading: Reading) -> Spans:
    """The answers that count. A text that has no prompt is all an answer."""
    if reading.weigh == "generated":
        return spans[-1:] if item.is_generated else ()
    return spans if spans or item.turns or item.prompt else ((0, len(item.text)),)


def _plain_answers(item: Item) -> Spans:
    if item.is_free:
        text, spans = plain(item.turns)
        return spans if text == item.text else ()
    start = item.answer_start
    return () if start is None else ((start, len(item.text)),)


def _rendered(tokenizer: Any, turns: Sequence[Turn], item: Item, *, asks: bool) -> str:
    messages = messages_for(tokenizer, turns)
    if sight_of(tokenizer) is not None:  # templates of models that see read lists of parts, and some nothing else
        messages = [in_parts(one) for one in messages]
    return _written(tokenizer, messages, item, asks=asks)


def _written(writer: Any, messages: Sequence[Mapping[str, Any]], item: Item, *, asks: bool) -> str:
    """Messages in the template of a tokenizer or a processor, with the item's tools."""
    tools = json.loads(item.tools) if item.tools else None
    return render(writer, messages, tools=tools, add_generation_prompt=asks)


def _answers(tokenizer: Any, item: Item, text: str, rendered: Rendered) -> Spans:
    """Where in a rendered conversation the answers stand, each with the token that ends its turn.

    An answer begins where the template would ask for it. Templates that write an earlier answer otherwise once another
    turn follows (that drop its thinking, for instance) are searched for the answer itself.
    """
    spans: list[tuple[int, int]] = []
    cursor = 0
    for place, turn in enumerate(item.turns):
        if turn.role != "assistant":
            continue
        before = rendered(tokenizer, item.turns[:place], item, asks=True) if place else ""
        upto = rendered(tokenizer, item.turns[: place + 1], item, asks=False)
        if before and text.startswith(before) and text.startswith(upto):
            start, end = len(before), len(upto)
        else:
            start = text.find(turn.content.strip(), cursor)
            if start < 0 or not turn.content.strip():
                continue
            end = _turn_end(tokenizer, text, start + len(turn.content.strip()))
        end = len(text[:end].rstrip())  # the line break after a turn is the template's
        spans.append((start, max(end, start)))
        cursor = end
    return tuple(spans)


def _turn_end(tokenizer: Any, text: str, end: int) -> int:
    """With the special token that follows, if there is one."""
    after = text[end:].lstrip()
    token = next(
        (token for token in sorted(tokenizer.all_special_tokens, key=len)[::-1] if after.startswith(token)), ""
    )
    return len(text) - len(after) + len(token) if token else end


def _ids(tokenizer: Any, text: str, *, special: bool) -> list[int]:
    if special:
        return tokens.encode(tokenizer, text)
    found: list[int] = tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
    return found


def _marked(tokenizer: Any, text: str, spans: Spans, *, special: bool) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """Tokens, and of each whether it has a character of a span."""
    if not tokenizer.is_fast:
        return _in_pieces(tokenizer, text, spans, special=special)
    found = tokenizer(text, add_special_tokens=special, truncation=False, return_offsets_mapping=True, verbose=False)
    marks = [any(start < b and a < end for a, b in spans) for start, end in found["offset_mapping"]]
    ids = _ids(tokenizer, text, special=special)
    whole = found["input_ids"]  # what stands twice around the text, where it begins or ends with that itself
    start = next((i for i in range(len(whole) - len(ids) + 1) if whole[i : i + len(ids)] == ids), 0)
    return tuple(ids), tuple(marks[start : start + len(ids)])


def _in_pieces(tokenizer: Any, text: str, spans: Spans, *, special: bool) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """The same for tokenizers that don't say where their tokens stand: tokens counted from both sides of a span."""
    ids = _ids(tokenizer, text, special=special)
    marks = [False] * len(ids)
    for start, end in spans:
        first = len(_ids(tokenizer, text[:start], special=special))
        last = len(_ids(tokenizer, text[:end], special=special))
        marks[first:last] = [True] * len(marks[first:last])
    return tuple(ids), tuple(marks)
