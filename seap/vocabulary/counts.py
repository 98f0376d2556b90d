"""How often the texts of the tasks use each token, and some of the texts held out, on which a choice is measured."""

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from seap.errors import UserError
from seap.text.corpus import separator
from seap.text.encode import encode
from seap.text.items import Item
from seap.text.options import Calibration
from seap.text.rows import counted_of
from seap.text.templates import render
from seap.text.tokens import byte_counter
from seap.text.wording import worded

MOST_TEXTS = 20_000  # of a task that are counted
HELD_SHARE = 5  # every fifth text is held out, up to
HELD_TOKENS = 16_384  # of all tasks together, but of each at least
ENOUGH = 8192  # tokens: with fewer, what rare words cost is hardly seen, and it is said
LONGEST = 512  # tokens of a held-out text
LONGEST_PLAIN = 2000  # characters that are read of a held-out text without turns


@dataclass(frozen=True)
class HeldText:
    """A text that a choice is measured on: its tokens with the whole vocabulary, and the bytes of those scored."""

    task: str
    item: Item
    row: tuple[int, ...]
    num_bytes: int


@dataclass
class Counts:
    """Uses of each token id by task, without the held-out texts, and in those; texts: those that aren't held out."""

    texts: dict[str, list[Item]] = field(default_factory=dict)
    seen: dict[str, Counter[int]] = field(default_factory=dict)
    unseen: dict[str, Counter[int]] = field(default_factory=dict)
    held: list[HeldText] = field(default_factory=list)

    def num_held(self) -> dict[str, int]:
        """Tokens of each task's held-out texts that are scored."""
        found = dict.fromkeys(self.seen, 0)
        for text in self.held:
            found[text.task] += len(scored_tokens(text.row))
        return found

    def tokens_per_byte(self) -> float:
        """Of the held-out texts as the whole vocabulary reads them: the mean over the tasks."""
        tokens = self.num_held()
        sizes = {task: sum(text.num_bytes for text in self.held if text.task == task) for task in tokens}
        shares = [tokens[task] / sizes[task] for task in tokens if sizes[task]]
        return sum(shares) / len(shares)

    def whole(self) -> dict[str, Counter[int]]:
        return {task: self.seen[task] + self.unseen[task] for task in self.seen}


def count(tokenizer: Any, texts: Mapping[str, Sequence[Item]], reading: Calibration) -> Counts:
    """Read all training items of the tasks, `MOST_TEXTS` of each at most."""
    found = Counts()
    for task, items in texts.items():
        drawn = list({item.text: item for item in items}.values())
        if not drawn:
            raise UserError(f"--vocabulary: task {task} has no texts, by which its tokens are known")
        random.Random(reading.seed).shuffle(drawn)
        drawn = [worded(item, place, reading.wording) for place, item in enumerate(drawn[:MOST_TEXTS])]
        held = hold_out(tokenizer, task, drawn, reading, tokens_held(len(texts)) // len(texts))
        apart = {text.item.text for text in held}
        found.held += [replace(text, item=shortened(text.item)) for text in held]
        found.texts[task] = [item for item in drawn if item.text not in apart]
        found.seen[task] = counted(tokenizer, found.texts[task], reading)
        found.unseen[task] = counted(tokenizer, [item for item in drawn if item.text in apart], reading)
    return found


def tokens_held(num_tasks: int) -> int:
    """Tokens of held-out text that are wanted of so many tasks together."""
    return max(HELD_TOKENS, ENOUGH * num_tasks)


def counted(tokenizer: Any, items: Sequence[Item], reading: Calibration) -> Counter[int]:
    """Uses of each token in these texts, as calibration reads them."""
    found: Counter[int] = Counter()
    for item in items:
        found.update(encode(tokenizer, item, reading).ids)
    return found


def hold_out(tokenizer: Any, task: str, items: Sequence[Item], reading: Calibration, tokens: int) -> list[HeldText]:
    """The first of the items, a fifth of them at most (of few, one), until there are so many tokens."""
    held: list[HeldText] = []
    left, num_bytes = tokens, byte_counter(tokenizer)
    for item in items[: max(len(items) // HELD_SHARE, min(len(items) - 1, 1))]:
        if left <= 0:
            break
        row = row_of(tokenizer, shortened(item), reading)
        size = scored_bytes(num_bytes, row)
        if len(row) <= LONGEST and size:
            held.append(HeldText(task, item, row, size))
            left -= len(row)
    return held


def shortened(item: Item) -> Item:
    """The beginning of a plain text, cut at a space."""
    if item.turns or item.prompt is not None or item.question is not None or len(item.text) <= LONGEST_PLAIN:
        return item
    start = item.text[:LONGEST_PLAIN]
    return replace(item, text=start.rpartition(" ")[0] or start)


def row_of(tokenizer: Any, item: Item, reading: Calibration) -> tuple[int, ...]:
    """The tokens of a text after a mark of its beginning, so that its first one is scored too."""
    return encode(tokenizer, item, reading).after(separator(tokenizer)).row


def scored_bytes(num_bytes: Callable[[Sequence[int]], int], row: Sequence[int]) -> int:
    """Of the tokens that are predicted and count."""
    return num_bytes(scored_tokens(row))


def scored_tokens(row: Sequence[int]) -> list[int]:
    """Those of a row that are predicted and count."""
    counts = counted_of(row)
    return [token for i, token in enumerate(row) if i and (counts is None or counts[i - 1])]


def template_tokens(tokenizer: Any) -> Counter[int]:
    """Those that the chat template writes around what is said; none where there is no template."""
    if not getattr(tokenizer, "chat_template", None):
        return Counter()
    asked = {"role": "user", "content": "a"}
    found: Counter[int] = Counter()
    for messages in ([asked], [{"role": "system", "content": "a"}, asked], [asked, asked | {"role": "assistant"}]):
        try:
            text = render(tokenizer, messages, add_generation_prompt=len(messages) == 1)
        except UserError:  # a template that knows no system text, for instance
            continue
        found.update(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    return found
