"""What one example of a task is, and the shapes of a row that make one.

A shape is a set of fields (`columns.py`: the names under which they may stand), the first whose fields are all there:

    messages                    a conversation (`turns.py`); text = its turns, one a line
    question, choices, answer   multiple choice (or label for answer); text = question + " " + gold choice
    prompt, answer              text = prompt + answer, with a space between where there is no whitespace; with choices
                                multiple choice
    question, answer            the same with prompt = "Question: {question}\\nAnswer:"
    text                        alone, or beside one of the above: then it replaces the text made there

A context beside a question or a prompt comes before it, on lines of its own; an input beside an instruction after it. A
system text and a history beside a prompt are turns before it. Images may stand beside any of them, or in messages.
"""

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from seap.text.columns import is_missing
from seap.text.gold import choices_of, gold, string
from seap.text.pictures import Picture, pictures_of
from seap.text.turns import Turn, asked_and_answered, joined, pictures_in, plain, turns_of

SHAPES_TOLD = (
    "messages",
    "question + choices + answer",
    "prompt + answer (or question + answer, instruction + output)",
    "text",
)

Values = dict[str, Any]


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
    is_continued: bool = field(default=False, compare=False)
    """Choices go on with the question's text, and don't answer it."""
    turns: tuple[Turn, ...] = field(default=(), compare=False)
    """The same as a conversation, for models that have a chat template; none where it is plain text."""
    tools: str = ""
    """JSON of the tools that the conversation may use."""
    checks: str = ""
    """Python that raises where an answer that is a program is wrong."""
    head: str = ""
    """What such a program begins with, where the model goes on with it."""
    lead: str = ""
    """What the assistant is made to begin its answer with in a chat, so that it comes to the point."""
    is_free: bool = False
    """An answer of a conversation, which no other answer need equal word by word."""
    is_generated: bool = False
    """The model itself wrote the last answer."""
    has_own_text: bool = field(default=False, compare=False)
    """The data says what calibration sees."""
    images: tuple[Picture, ...] = field(default=(), compare=False)
    """Of a column of their own; those of a message are parts of its turn."""

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """All that is shown."""
        return (*self.images, *pictures_in(self.turns))

    def at(self, where: str, folder: Path | None) -> "Item":
        """With images that know the row and the folder that they are of."""
        if not self.pictures:
            return self
        turns = [
            replace(t, parts=tuple(p if isinstance(p, str) else p.at(where, folder) for p in t.parts))
            for t in self.turns
        ]
        return replace(self, turns=tuple(turns), images=tuple(image.at(where, folder) for image in self.images))

    @property
    def answer_start(self) -> int | None:
        """Where in `text` the answer begins, with the white space before it; None where there is none."""
        gold = self.answer if self.answer is not None else self.choices[self.label] if self.label is not None else ""
        wanted = gold.strip()
        if not wanted or not self.text.rstrip().lower().endswith(wanted.lower()):
            return None
        return len(self.text[: len(self.text.rstrip()) - len(wanted)].rstrip())

    @property
    def opening(self) -> str:
        """What texts that belong together begin with: a conversation's first question, or the whole text."""
        return next((turn.content for turn in self.turns if turn.role == "user" and self.is_free), self.text)


def without_answer(item: Item) -> Item:
    """What is asked alone."""
    places = [place for place, turn in enumerate(item.turns) if turn.role == "assistant"]
    asked = item.turns[: places[-1]] if places else item.turns
    text = item.prompt or item.question or item.text
    return Item(text=text, prompt=text, turns=asked, tools=item.tools)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Fields that make an item: `needs` must be there, `reads` may be. Of any shape `text` replaces the text.

    item: the item of a row's fields, None where one that it needs is blank. Raises UserError for what can't be meant.
    """

    needs: tuple[str, ...]
    reads: tuple[str, ...] = ()
    item: Callable[[Values], Item | None]

    def fields(self, there: Collection[str]) -> list[str]:
        """Those of a row's fields that it reads."""
        return [name for name in (*self.needs, *self.reads, "text", "images") if name in there]


def shape_of(fields: Collection[str], *, unanswered: bool = False) -> Shape | None:
    """The first shape whose fields are there. unanswered: prompts and questions alone will do."""
    shapes = (*SHAPES, *UNANSWERED) if unanswered else SHAPES
    return next((shape for shape in shapes if all(name in fields for name in shape.needs)), None)


def made(shape: Shape, values: Values) -> Item | None:
    """The item of a row's fields; None for a row that is blank or without a label."""
    item, text = shape.item(values), values.get("text")
    if item is None:
        return None
    item = replace(item, images=() if is_missing(values.get("images")) else pictures_of(values["images"]))
    return item if is_missing(text) else replace(item, text=string("text", text), has_own_text=True)


def _text_item(values: Values) -> Item | None:
    return None if is_missing(values["text"]) else Item(text=string("text", values["text"]))


def _chat_item(values: Values) -> Item | None:
    if is_missing(values["messages"]):
        return None
    turns = turns_of(values["messages"])
    if system := _system(values):
        turns = (Turn("system", system), *turns) if turns and turns[0].role != "system" else turns
    return _conversation(turns, values)


def _conversation(turns: Sequence[Turn], values: Values) -> Item | None:
    if not turns:
        return None
    text, spans = plain(turns)
    prompt, answer = plain(turns, cue=True)[0], None
    if spans:
        start, end = spans[-1]
        prompt, answer = text[:start], text[start:end]
    made = Item(text=text, prompt=prompt or None, answer=answer, turns=tuple(turns), tools=_tools(values), is_free=True)
    return replace(made, is_generated=_generated(values))


def _tools(values: Values) -> str:
    tools = values.get("tools")
    if is_missing(tools) or tools in ([], "[]"):
        return ""
    return tools if isinstance(tools, str) else json.dumps(tools, ensure_ascii=False)


def _generated(values: Values) -> bool:
    return not is_missing(values.get("generated")) and str(values["generated"]).strip().lower() in ("true", "1")


def _system(values: Values) -> str:
    return "" if is_missing(values.get("system")) else string("system", values["system"])


def _prompt_item(values: Values) -> Item | None:
    if isinstance(values["prompt"], list):  # of messages, as its answer may be
        if is_missing(values["answer"]):
            return None
        answer = values["answer"]
        answer = turns_of(answer) if isinstance(answer, list) else (Turn("assistant", string("answer", answer)),)
        return _conversation((*turns_of(values["prompt"]), *answer), values)
    if is_missing(values.get("choices")):
        return _answered(values, "prompt", "{}")
    return _choice_item(values | {"question": values["prompt"]})


def _unanswered_item(values: Values) -> Item | None:
    name = "prompt" if "prompt" in values else "question"
    if is_missing(values[name]):
        return None
    asked = string(name, values[name])
    if not is_missing(more := values.get("input")) and more != asked:
        asked = f"{asked.rstrip()}\n{string('input', more)}"
    turns = asked_and_answered(in_context(values, asked), None, system=_system(values), history=values.get("history"))
    prompt = plain(turns, cue=True)[0]
    if name == "question" and len(turns) == 1:
        prompt = in_context(values, QUESTION.format(asked))
    return Item(text=prompt, prompt=prompt, turns=turns, tools=_tools(values))


def _question_item(values: Values) -> Item | None:
    return _answered(values, "question", QUESTION)


def _answered(values: Values, name: str, template: str) -> Item | None:
    asked, answer = values[name], values["answer"]
    if is_missing(asked) or is_missing(answer):
        return None
    asked, answer = string(name, asked), string("answer", answer)
    more = values.get("input" if name == "prompt" else "instruction")
    if not is_missing(more) and more != asked:
        parts = (asked, string("input", more)) if name == "prompt" else (string("instruction", more), asked)
        asked = f"{parts[0].rstrip()}\n{parts[1]}"
    system, history = _system(values), values.get("history")
    turns = asked_and_answered(in_context(values, asked), answer, system=system, history=history)
    if len(turns) > 2:
        return replace(_conversation(turns, values) or Item(text=""), is_free=False)
    prompt = in_context(values, template.format(asked))
    answer = joined(prompt, answer)
    checks = "" if is_missing(values.get("checks")) else string("checks", values["checks"])
    made = Item(text=prompt + answer, prompt=prompt, answer=answer, turns=turns, tools=_tools(values), checks=checks)
    return replace(made, is_generated=_generated(values))


def in_context(values: Values, asked: str) -> str:
    """A question or prompt with the context before it, unless it has that in it already."""
    context: str = values.get("context") or ""
    return asked if context.strip() in asked else f"{context.rstrip()}\n{asked}"


def _choice_item(values: Values) -> Item | None:
    answer = values["answer" if "answer" in values else "label"]
    if any(is_missing(value) for value in (values["question"], values["choices"], answer)):
        return None
    question = in_context(values, string("question", values["question"]))
    choices, labels = choices_of(values["choices"])
    label = gold(answer, choices, labels)
    if label is None:
        return None
    turns = asked_and_answered(question, choices[label])
    return Item(text=f"{question} {choices[label]}", question=question, choices=choices, label=label, turns=turns)


QUESTION = "Question: {}\nAnswer:"
CHAT = ("system", "tools", "generated")

SHAPES = (
    Shape(needs=("messages",), reads=CHAT, item=_chat_item),
    Shape(needs=("question", "choices", "answer"), reads=("context",), item=_choice_item),
    Shape(needs=("question", "choices", "label"), reads=("context",), item=_choice_item),
    Shape(
        needs=("prompt", "answer"), reads=("context", "choices", "input", "history", "checks", *CHAT), item=_prompt_item
    ),
    Shape(
        needs=("question", "answer"), reads=("context", "instruction", "history", "checks", *CHAT), item=_question_item
    ),
    Shape(needs=("text",), item=_text_item),
)
UNANSWERED = (
    Shape(needs=("prompt",), reads=("context", "input", "history", *CHAT), item=_unanswered_item),
    Shape(needs=("question",), reads=("context", "history", *CHAT), item=_unanswered_item),
)
