"""Which tokens stay: those of the task's text, most used first, then those of general text, then those that the model
expects in the task's text (`expected.py`), up to a number.

The number is given, or the smallest whose cost on held-out text is within a tolerance.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from seap.errors import UserError
from seap.models.modes import evaluation
from seap.text.items import Item
from seap.text.options import Calibration
from seap.text.tokens import check_ids
from seap.vocabulary.closure import closed_order
from seap.vocabulary.counts import ENOUGH, Counts, count, counted, template_tokens
from seap.vocabulary.described import Described, describe_tokenizer
from seap.vocabulary.embedding import check_embeddings, cut_embeddings_, named_ids
from seap.vocabulary.expected import expected_uses
from seap.vocabulary.measuring import Trial, said, sizes_between, told
from seap.vocabulary.options import Vocabulary
from seap.vocabulary.rewriting import Source, become_, check_reads_alike, restore_

CHECKED = 200  # texts that the new tokenizer is tried on

# Costs of beginnings of an order, tokens per byte of the text that they are measured on → how many stay, what is to
# be told of it.
Pick = Callable[[Trial, float], tuple[int, dict[str, Any]]]


@dataclass(frozen=True)
class Choice:
    """The ids that stay, ascending, the tokenizer that has them, and what is to be told of the choice.

    notes: what the user should know of it.
    """

    kept: tuple[int, ...]
    tokenizer: Any
    about: dict[str, Any]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Words:
    """A tokenizer's tokens, those that must stay, those of its chat template, how often general text has each.

    expected: how likely the model finds each in the tasks' texts; none where it wasn't asked.
    """

    described: Described
    foundation: frozenset[int]
    template: Counter[int]
    general: Counter[int]
    expected: Sequence[float] = ()

    def order(self, by_task: Mapping[str, Counter[int]]) -> tuple[list[int], int]:
        """All ids that may stay, the most wanted first, every beginning closed; and how many the tasks use."""
        shares: Counter[int] = Counter()
        for uses in by_task.values():
            for token, number in uses.items():
                shares[token] += number / uses.total()  # type: ignore[assignment]
        rank = {token: i for i, token in enumerate(self.described.by_use)}
        placeholders = self.described.placeholders
        known = [i for i in rank if i not in placeholders]
        if self.expected:
            known.sort(key=lambda i: (-self.expected[i], rank[i]))

        def by(uses: Mapping[int, float]) -> list[int]:
            return sorted((i for i in uses if i in rank), key=lambda i: (-uses[i], rank[i]))

        parts = self.described.parts
        wanted = [*by(self.template), *by(shares)]
        needed = closed_order(sorted(self.foundation), wanted, parts)
        return closed_order(needed, [*by(self.general), *known], parts), len(needed)

    @property
    def least(self) -> int:
        return len(closed_order(self.foundation, self.template, self.described.parts))


def choose(
    model: Any,
    tokenizer: Any,
    texts: Mapping[str, Sequence[Item]],
    options: Vocabulary,
    reading: Calibration,
    *,
    general: Sequence[Item] = (),
    pick: Pick | None = None,
    progress: bool = True,
) -> Choice:
    """Choose the tokens that stay. Neither model nor tokenizer is changed.

    texts: the training items of each task, of which a fifth at most is held out. pick: chooses how many stay with
    `auto`, by default the tolerance does. Raises UserError for a model or a
    tokenizer that can't be cut, and for a number that is too small or too large.
    """
    check_embeddings(model)
    described = describe_tokenizer(tokenizer, model.config.vocab_size)
    counts = count(tokenizer, texts, reading)
    for task, uses in counts.whole().items():
        check_ids([sorted(uses)], model, tokenizer, f"task {task}")
    words = words_of(model, tokenizer, described, counts, counted(tokenizer, general, reading))
    source = Source(tokenizer, described)
    order, needed = ([], 0) if options.vocabulary == "auto" else words.order(counts.whole())
    if options.vocabulary == "auto" or needed < int(options.vocabulary) < len(order):
        words = replace(words, expected=expected_uses(model, tokenizer, counts.texts, reading, progress).tolist())
        order, needed = words.order(counts.whole())
    if options.vocabulary == "auto":
        size, measured = _measure(model, source, words, counts, options, reading, pick, progress)
    else:
        size, measured = int(options.vocabulary), {}
        check_size(size, words.least, len(order), model.config.vocab_size)
    kept = tuple(sorted(order[:size]))
    smaller = source.smaller(kept)
    check_reads_alike(tokenizer, smaller, kept, [i.text for items in texts.values() for i in items][:CHECKED])
    about = {
        "asked": options.vocabulary,
        "tokenizer": described.kind,
        "tokens_before": model.config.vocab_size,
        "tokens_after": len(kept),
        "tokens_of_tasks": needed,
        "covered": covered(counts, set(words.order(counts.seen)[0][:size])),
    }
    return Choice(kept, smaller, about | measured, notes_on(counts) if measured else ())


def notes_on(counts: Counts) -> tuple[str, ...]:
    """What is to be said of a choice that was measured on few tokens."""
    few = [f"{task} {number:,}" for task, number in counts.num_held().items() if number < ENOUGH]
    if not few:
        return ()
    return (
        f"what fewer tokens cost was measured on few tokens of held-out text ({', '.join(few)}; {ENOUGH:,} are wanted, "
        "and a fifth of the task's texts can be held out): words that are rare in the task are hardly seen in them; "
        "measure the result, or give more texts",
    )


def words_of(model: Any, tokenizer: Any, described: Described, counts: Counts, general: Counter[int]) -> Words:
    """What must stay: what the tokenizer can't do without, what the model's configs name, added tokens in use."""
    template = template_tokens(tokenizer)
    named = named_ids(model) | {described.ids[t] for t in tokenizer.all_special_tokens if t in described.ids}
    used = set(template).union(named, *counts.whole().values())
    used |= {i for i in described.placeholders if described.texts[i] in str(tokenizer.chat_template)}
    foundation = (described.foundation - (described.placeholders - used)) | named
    return Words(described, frozenset(foundation & described.texts.keys()), template, general)


def _measure(
    model: Any,
    source: Source,
    words: Words,
    counts: Counts,
    options: Vocabulary,
    reading: Calibration,
    pick: Pick | None,
    progress: bool,
) -> tuple[int, dict[str, Any]]:
    """The smallest number that keeps within the tolerance, or what `pick` says, and what was measured.

    The order of the tokens is without the held-out texts.
    """
    if not counts.held:
        raise UserError("--vocabulary auto: no text could be held out to measure on; give more texts, or a number")
    order, needed = words.order(counts.seen)
    sizes = sizes_between(words.least, len(order))
    with evaluation(model):
        trial = Trial(model, source, order, sizes, counts.held, reading, progress)
        if pick is None:
            size = trial.smallest(options.vocabulary_tolerance, needed)
            more: dict[str, Any] = {"tolerance": options.vocabulary_tolerance}
        else:
            size, more = pick(trial, counts.tokens_per_byte())
        cost = trial.cost(size)
    held = {"texts": len(counts.held), "bytes": sum(text.num_bytes for text in counts.held)}
    return size, {
        **said(cost),
        "tried": told(trial.tried),
        "held_out": held | {"tokens": sum(counts.num_held().values())},
        **more,
    }


def check_size(size: int, least: int, most: int, there: int) -> None:
    """Raise UserError for a number of tokens that can't stay."""
    if size < least:
        raise UserError(
            f"--vocabulary {size}: {least} tokens at least must stay (special ones, single bytes or characters, the "
            "chat template's); give more"
        )
    if size > most:
        unused = f" ({there} rows, of which {most} are in use)" if there > most else ""
        raise UserError(f"--vocabulary {size}: the tokenizer has {most} tokens{unused}; give fewer, or auto")


def covered(counts: Counts, there: set[int]) -> float | None:
    """The share of the held-out texts' tokens that stay, where the choice didn't see those texts."""
    unseen: Counter[int] = Counter()
    for uses in counts.unseen.values():
        unseen.update(uses)
    total = unseen.total()
    return sum(number for token, number in unseen.items() if token in there) / total if total else None


@contextlib.contextmanager
def cut(model: Any, tokenizer: Any, choice: Choice) -> Iterator[None]:
    """Model and tokenizer with the chosen tokens alone, for good; as they were, where what is inside fails."""
    undo = cut_embeddings_(model, choice.kept)
    before = become_(tokenizer, choice.tokenizer)
    try:
        yield
    except BaseException:
        restore_(tokenizer, before)
        undo()
        raise
