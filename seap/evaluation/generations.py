"""What a model writes after prompts, greedily, and whether that comes to an end or goes round in circles."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from seap.evaluation.metrics import Figure, halving, mean_of
from seap.models.continuing import continuations, ends_of
from seap.text.tokens import encode

PERIOD = 32  # tokens: the longest round that counts as a loop
TURNS = 3  # rounds
LEAST = 16  # tokens of rounds


@dataclass(frozen=True)
class Written:
    """What was written after one prompt. ids: without the token that ends it."""

    ids: tuple[int, ...]
    text: str
    ended: bool


def written_after(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str | Sequence[int]],
    *,
    max_new_tokens: int = 24,
    batch_size: int = 64,
) -> list[Written]:
    """What the model writes after each prompt (a text or token ids), greedily, in order."""
    encoded: list[Sequence[int]] = [
        encode(tokenizer, prompt) if isinstance(prompt, str) else prompt for prompt in prompts
    ]
    order = sorted(range(len(prompts)), key=lambda i: len(encoded[i]))
    ends = ends_of(model, tokenizer)
    written: list[Written] = [Written((), "", False)] * len(prompts)

    def run(size: int) -> None:
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            asked: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": False}
            made = continuations(model, tokenizer, [encoded[i] for i in chosen], **asked)
            for i, ids in zip(chosen, made, strict=True):
                written[i] = _made_of(tokenizer, ids, ends)

    halving(run, batch_size)
    return written


def _made_of(tokenizer: Any, ids: list[int], ends: list[int]) -> Written:
    ended = bool(ids) and ids[-1] in ends
    own = tuple(ids[:-1] if ended else ids)
    return Written(own, tokenizer.decode(own, skip_special_tokens=True), ended)


def loops(ids: Sequence[int]) -> bool:
    """Whether a text goes round in a circle at its end: the one definition of a loop.

    There is a period p of at most 32 tokens such that the last max(3 p, 16) tokens repeat with it, x_i = x_(i − p). A
    text that counts up in its rounds ("1. … 2. …") isn't found by that.
    """
    for period in range(1, PERIOD + 1):
        length = max(TURNS * period, LEAST)
        tail = tuple(ids[-length:])
        if len(tail) == length and tail[period:] == tail[:-period]:
            return True
    return False


def conduct(written: Sequence[Written]) -> dict[str, Figure]:
    """Shares of what was written that loop at their end, and that don't end within the tokens allowed."""
    return {
        "loops": mean_of([float(loops(one.ids)) for one in written]),
        "endless": mean_of([float(not one.ended) for one in written]),
    }
