"""Right and wrong choices of multiple-choice items, as rows of which the choice's tokens alone count.

What a loss that sets the right choice against the wrong ones is made of (GISP's, arXiv 2510.18030). It goes with the
calibration text of the same items, which holds the right choices alone.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from seap.text.encode import encode, in_template
from seap.text.options import Calibration
from seap.text.rows import counted_of, num_counted
from seap.text.seeing import sees
from seap.text.shapes import Item

Rows = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Contrast:
    """Rows of right and of wrong choices; none where the text isn't of choices."""

    right: Rows = ()
    wrong: Rows = ()

    def __bool__(self) -> bool:
        return bool(self.right and self.wrong)

    def as_lists(self) -> list[Any]:
        """What it is, for a digest: ids and which of them count, row by row."""
        return [[[*row], counted_of(row)] for rows in (self.right, self.wrong) for row in rows] + [len(self.right)]

    @property
    def rows(self) -> Rows:
        """Of both."""
        return (*self.right, *self.wrong)

    @classmethod
    def joined(cls, parts: Sequence["Contrast"]) -> "Contrast":
        """That of several texts together, each row once; none where one of them has none."""
        if not parts or not all(parts):
            return cls()
        return cls(
            _once(row for part in parts for row in part.right), _once(row for part in parts for row in part.wrong)
        )


NO_CONTRAST = Contrast()


def _once(rows: Iterable[tuple[int, ...]]) -> Rows:
    return tuple(dict.fromkeys(rows))


def contrast_of(
    texts: Sequence[str | Item], tokenizer: Any, options: Calibration, *, seq_len: int, num_tokens: int
) -> Contrast:
    """The choices of the first items that calibration draws, until their rows have `num_tokens` tokens in all.

    None where an item has no choices, is read in a chat template, or has images.
    """
    order = list(texts)
    random.Random(options.seed).shuffle(order)
    items = [item for item in order[: options.num_texts] if isinstance(item, Item) and _has_choices(item)]
    if len(items) < len(order[: options.num_texts]) or any(_is_other(tokenizer, item, options) for item in items):
        return NO_CONTRAST
    right: list[tuple[int, ...]] = []
    wrong: list[tuple[int, ...]] = []
    for item in items:
        rows = [_row(tokenizer, with_choice(item, place), options, seq_len) for place in range(len(item.choices))]
        if all(map(num_counted, rows)):
            right.append(rows.pop(item.label or 0))
            wrong += rows
        if sum(map(len, (*right, *wrong))) >= num_tokens:
            break
    return Contrast(tuple(right), tuple(wrong))


def _is_other(tokenizer: Any, item: Item, options: Calibration) -> bool:
    return in_template(tokenizer, item, options) or sees(tokenizer, item, options) is not None


def _has_choices(item: Item) -> bool:
    return len(item.choices) > 1 and item.label is not None and (bool(item.contexts) or item.answer_start is not None)


def with_choice(item: Item, place: int) -> Item:
    """The item as if this choice were the right one."""
    choice = item.choices[place]
    start = item.text[: item.answer_start] if not item.contexts else item.contexts[place]
    return replace(item, text=f"{start} {choice.strip()}", label=place, answer=None)


def _row(tokenizer: Any, item: Item, options: Calibration, seq_len: int) -> tuple[int, ...]:
    """Cut from the left, since what counts is at the end."""
    row = encode(tokenizer, item, replace(options, weigh="answer")).row
    return row[-seq_len:] if len(row) > seq_len else row
