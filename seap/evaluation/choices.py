"""Choosing: multiple choice by likelihood, and the true continuation among four."""

import random
from collections.abc import Sequence
from typing import Any

from seap.errors import UserError
from seap.evaluation.metrics import Figure, Row, log_likelihoods, mean_of
from seap.evaluation.options import Evaluation
from seap.evaluation.shared_prompts import likelihoods_of_choices
from seap.text.encode import in_template, prompt_ids
from seap.text.items import Item
from seap.text.options import Reading
from seap.text.tokens import encode

PLAIN = Reading()  # multiple choice is in no template unless that is asked for


def encode_pair(tokenizer: Any, context: str, continuation: str) -> Row:
    """Context and continuation tokenised together, the continuation scored: as lm-evaluation-harness does it.

    White space at the end of the context counts to the continuation; without a context, the beginning-of-text token
    (or the end-of-text one) stands for it.
    """
    if not context:
        ids = tokenizer(continuation, add_special_tokens=False, verbose=False)["input_ids"]
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        return Row(tuple(ids) if ids[:1] == [start] else (start, *ids))
    spaces = len(context) - len(context.rstrip())
    if spaces:
        context, continuation = context[:-spaces], context[-spaces:] + continuation
    whole = encode(tokenizer, context + continuation)
    start = len(encode(tokenizer, context))
    return Row(tuple(whole), max(start, 1))


def choice_rows(
    tokenizer: Any,
    items: Sequence[Item],
    reading: Reading = PLAIN,
    *,
    longest: int | None = None,
) -> list[Row]:
    """Every item's choices, one after the other, each after its question and a space; cut to `longest` tokens.

    In the chat template, where --template chat asks for it, a choice is what the assistant begins to say.
    """
    if items and in_template(tokenizer, items[0], reading):
        return _cropped([row for item in items for row in _said_choices(tokenizer, item, reading)], longest)
    pairs = [(item.contexts or (item.question or "",) * len(item.choices), item.choices) for item in items]
    asked = [pair for contexts, choices in pairs for pair in zip(contexts, choices, strict=True)]
    return _cropped([encode_pair(tokenizer, context, f" {choice}") for context, choice in asked], longest)


def _said_choices(tokenizer: Any, item: Item, reading: Reading) -> list[Row]:
    asked = prompt_ids(tokenizer, item, reading)
    said = [tokenizer(choice, add_special_tokens=False, verbose=False)["input_ids"] for choice in item.choices]
    return [Row((*asked, *ids), len(asked)) for ids in said]


def multiple_choice(
    model: Any, rows: Sequence[Row], items: Sequence[Item], *, batch_tokens: int | None = None
) -> tuple[Figure, Figure]:
    """Accuracy by log-likelihood of the choice, and by that per character (acc and acc_norm). rows: `choice_rows`.

    What an item's choices begin with, their question, is read once (`shared_prompts.py`).
    """
    sizes = [len(item.choices) for item in items]
    scores = iter(likelihoods_of_choices(model, rows, sizes, batch_tokens=batch_tokens))
    plain, normalised = [], []
    for item in items:
        totals = [next(scores) for _ in item.choices]
        per_character = [total / len(choice) for total, choice in zip(totals, item.choices, strict=True)]
        plain.append(float(totals.index(max(totals)) == item.label))
        normalised.append(float(per_character.index(max(per_character)) == item.label))
    return mean_of(plain), mean_of(normalised)


def _cropped(rows: Sequence[Row], longest: int | None) -> list[Row]:
    """Rows cut from the left to what a model can read; the last token is only predicted, so it comes on top."""
    limit = (longest or max(len(row.ids) for row in rows)) + 1
    return [Row(row.ids[-limit:], max(row.start - max(len(row.ids) - limit, 0), 1)) for row in rows]


def continuation_rows(texts: Sequence[Sequence[int]], options: Evaluation) -> list[Row]:
    """Four rows per item: a context with its true continuation, then with three of other texts of the same task.

    Raises UserError when fewer than four texts are long enough.
    """
    length = options.context + options.continuation
    generator = random.Random(options.test_seed)
    long = [text for text in texts if len(text) >= length]
    if len(long) < 4:
        raise UserError(
            f"true continuation among four needs four texts of {length} tokens or more, got {len(long)}; "
            "lower --continuation-context or --continuation, or use --metric loss"
        )
    starts = [generator.randrange(len(text) - length + 1) for text in long]
    contexts = [tuple(t[s : s + options.context]) for t, s in zip(long, starts, strict=True)]
    endings = [tuple(t[s + options.context : s + length]) for t, s in zip(long, starts, strict=True)]
    rows: list[Row] = []
    for i in range(min(len(long), options.num_items)):
        others = generator.sample([j for j in range(len(long)) if j != i], 3)
        rows += [Row(contexts[i] + endings[j], options.context) for j in (i, *others)]
    return rows


def continuation_among_four(model: Any, rows: Sequence[Row], *, batch_tokens: int | None = None) -> Figure:
    """Share of contexts whose true continuation is likelier than three others of the same length. Chance is 0.25.

    rows: `continuation_rows`.
    """
    scores = [total for total, _ in log_likelihoods(model, rows, batch_tokens=batch_tokens)]
    fours = [scores[i : i + 4] for i in range(0, len(scores), 4)]
    return mean_of([float(max(four) == four[0]) for four in fours])
