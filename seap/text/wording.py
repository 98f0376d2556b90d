"""Multiple choice in words: its question asked openly or with its choices listed, to be answered by what is written.

One place for calibration (`--wording`) and for tests (`--say`), so that both ask alike.
"""

from dataclasses import replace

from seap.text.options import Wording
from seap.text.shapes import QUESTION, Item
from seap.text.turns import asked_and_answered


def in_free_form(item: Item, *, listed: bool = False) -> Item:
    """An item of multiple choice as a question to be answered in words; any other one as it is.

    listed: with its choices, one a line; else without them.
    """
    if not item.choices or item.label is None:
        return item
    question, gold = item.question or item.contexts[item.label], item.choices[item.label]
    if listed:
        choices = "\n".join(f"- {choice}" for choice in item.choices)
        question = f"{question}\nChoices:\n{choices}\nAnswer with one of the choices."
    turns = asked_and_answered(question, gold) if item.turns else ()
    prompt, answer = prompt_of(question), f" {gold}"
    asked = replace(item, text=prompt + answer, prompt=prompt, answer=answer, turns=turns)
    return replace(asked, choices=(), question=None, contexts=())


def prompt_of(question: str) -> str:
    """A question as it is put to a model that goes on with text; one behind a passage has its `Question:` already.

    As EleutherAI's lm-evaluation-harness asks ARC, PIQA and BoolQ.
    """
    return f"{question}\nAnswer:" if "\nQuestion:" in question else QUESTION.format(question)


def worded(item: Item, place: int, wording: Wording) -> Item:
    """The item as calibration reads it. place: its place among those that are drawn, from 0.

    What has no question of its own, such as contexts to be told apart, stays as it is, and so does a text that the data
    gives beside the choices. A text that is asked without its choices is plain text, as choices are weighed, and one
    whose choices go on with it stays plain.
    """
    if not item.choices or item.question is None or item.label is None or item.has_own_text:
        return item
    if wording == "both":
        wording = "listed" if place % 2 else "asked"
    if wording == "listed":
        return in_free_form(item, listed=True)
    if wording == "plain" or item.is_continued:
        return item
    return replace(item, text=f"{prompt_of(item.question)} {item.choices[item.label]}")
