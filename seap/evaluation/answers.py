"""Saying: answers in what a model writes, by the gold answer's wording, or by which of the choices is said first."""

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from seap.evaluation.generations import Written, written_after
from seap.evaluation.metrics import Figure, mean_of
from seap.evaluation.options import Evaluation
from seap.text.encode import prompt_ids
from seap.text.items import Item
from seap.text.wording import in_free_form

NUMBER = re.compile(r"[-+]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?(?:[eE][-+]?[0-9]{1,3})?|[-+]?\.[0-9]+")
ARTICLES = {"a", "an", "the"}


def generated_answers(model: Any, tokenizer: Any, prompts: Sequence[str | Sequence[int]], **limits: Any) -> list[str]:
    """The texts of `generations.written_after`."""
    return [one.text for one in written_after(model, tokenizer, prompts, **limits)]


def written_answers(model: Any, tokenizer: Any, items: Sequence[Item], options: Evaluation) -> list[Written]:
    """What the model writes to each item's prompt, or its question (by --say) where it has choices."""
    asked = [in_free_form(item, listed=options.say == "listed") for item in items]
    prompts = [prompt_ids(tokenizer, item, options) for item in asked]
    return written_after(model, tokenizer, prompts, max_new_tokens=options.max_new_tokens)


def extract_answer(text: str, pattern: str | None, gold: str) -> str:
    """The answer in a text: by the user's pattern, a number where gold is one after GSM8K's ####, or the first line.

    Of a pattern the last match counts. A number is the last one after ####, or the last of all in a text without ####,
    as models write it in a chat (lm-evaluation-harness's flexible-extract); commas in it are dropped.
    """
    if pattern is None and "####" in gold:
        marked = extract_answer(text, r"####\s*(-?[\d,.]*\d)", "")
        return (marked or extract_answer(text, r"-?\d[\d,]*(?:\.\d+)?", "")).replace(",", "").rstrip(".")
    if pattern is None:
        return text.strip().split("\n")[0].strip()
    found = re.findall(pattern, text)
    if not found:
        return ""
    last = found[-1]
    return (last if isinstance(last, str) else last[0]).strip()


def same_answer(text: str, gold: str) -> bool:
    """Equal as text, or as numbers where both are: 8.0 is 8, and 1,000 is 1000."""
    if text == gold:
        return True
    numbers = [Decimal(one.replace(",", "")) if NUMBER.fullmatch(one) else None for one in (text, gold)]
    return numbers[0] is not None and numbers[0] == numbers[1]


def exact_match(model: Any, tokenizer: Any, items: Sequence[Item], options: Evaluation) -> Figure:
    """Share of items whose generated answer is the gold one: `matches`."""
    return matches(written_answers(model, tokenizer, items, options), items, options)


def matches(written: Sequence[Written], items: Sequence[Item], options: Evaluation) -> Figure:
    """Share of items with the gold answer in what was written, both as `extract_answer` finds them: `same_answer`."""
    right = []
    for one, item in zip(written, items, strict=True):
        gold = item.answer or ""
        wanted = extract_answer(gold, options.extract, gold)
        right.append(float(wanted != "" and same_answer(extract_answer(one.text, options.extract, gold), wanted)))
    return mean_of(right)


def said(text: str, choices: Sequence[str]) -> int | None:
    """Which choice a text says: the one whose words come first in it, of those that begin at one word the longest.

    Words are compared without case, marks and articles. None where it says none of them.
    """
    told = f" {' '.join(_words(text))} "
    known = [(i, words) for i, words in enumerate(map(_words, choices)) if words]
    found = [(told.find(f" {' '.join(words)} "), -len(words), i) for i, words in known]
    found = [place for place in found if place[0] >= 0]
    return min(found)[2] if found else None


def _words(text: str) -> list[str]:
    return [word for word in re.findall(r"[^\W_]+", text.casefold()) if word not in ARTICLES]


def recalled(written: Sequence[Written], items: Sequence[Item], chosen: Sequence[float]) -> dict[str, Figure | None]:
    """Right by saying, of all items and of those that were right by choice ("recall given recognised").

    arXiv 2606.17609 has the measure; what counts as said is `said`. chosen: 1 where an item was right by choice.
    """
    right = [float(said(one.text, item.choices) == item.label) for one, item in zip(written, items, strict=True)]
    known = [says for says, chose in zip(right, chosen, strict=True) if chose]
    return {"said": mean_of(right), "recall": mean_of(known) if known else None}
