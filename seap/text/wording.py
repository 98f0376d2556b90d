"""Multiple choice in words: its question asked openly or with its choices listed, to be answered by what is written.

One place for calibration (`--wording`) and for tests (`--say`), so that both ask alike.
"""

from dataclasses import replace

from seap.text.options import Wording
from seap.text.shapes import Item
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
    prompt, answer = f"Question: {question}\nAnswer:", f" {gold}"
    asked = replace(item, text=prompt + answer, prompt=prompt, answer=answer, turns=turns)
    return replace(asked, choices=(), question=None, contexts=())


def worded(item: Item, place: int, wording: Wording) -> Item:
    """The item as calibration reads it. place: its place among those that are drawn, from 0.

    What has no question of its own, such as contexts to be told apart, stays as it is, and so does a text that the data
    gives beside the choices.
    """
    if not item.choices or item.question is None or item.label is None or item.has_own_text:
        return item
    if wording == "plain" or (wording == "both" and place % 2 == 0):
        return item
    return in_free_form(item, listed=True)
