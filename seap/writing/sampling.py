"""From logits to a token, and from tokens to text with stop sequences.

Shapes: V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

UNFINISHED = "�"  # what a tokenizer decodes the first bytes of a character to


@dataclass(frozen=True)
class Token:
    """A chosen token, its log-probability, and the likeliest tokens with theirs (before temperature and top_p)."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass
class Sampler:
    """How one request's tokens are chosen. temperature 0 takes the likeliest; logprobs: how many to report, or None."""

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    logprobs: int | None = None
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.generator = torch.Generator()
        if self.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(self.seed)

    def choose(self, logits: Tensor, likeliest: int | None = None) -> Token:
        """logits (V,) on any device. likeliest: where they are largest, if that is known."""
        if self.temperature == 0 and self.logprobs is None and likeliest is not None:
            return Token(likeliest)
        logits = logits.float().cpu()
        chosen = int(logits.argmax()) if self.temperature == 0 else self._draw(logits)
        if self.logprobs is None:
            return Token(chosen)
        known = logits.log_softmax(-1)
        values, places = known.topk(min(self.logprobs, len(known)))
        return Token(chosen, float(known[chosen]), tuple(zip(places.tolist(), values.tolist(), strict=True)))

    def _draw(self, logits: Tensor) -> int:
        scaled = (logits - logits.max()) / max(self.temperature, 1e-5)
        probabilities = scaled.softmax(-1)
        if self.top_p < 1:
            ordered, places = probabilities.sort(descending=True, stable=True)
            before = ordered.cumsum(-1) - ordered
            probabilities = torch.zeros_like(probabilities)
            probabilities[places] = ordered.where(before < self.top_p, torch.zeros(()))
        return int(torch.multinomial(probabilities, 1, generator=self.generator))


class Writer:
    """Turns one sequence's tokens into text as they come, holding back what may yet be part of a stop sequence."""

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self.tokenizer, self.stop = tokenizer, tuple(stop)
        self.ids: list[int] = []
        self.start = self.read = 0  # tokens before `start` don't matter any more; those before `read` are text already
        self.text = ""
        self.sent = 0
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that a token makes certain; sets `stopped` where a stop sequence has come up."""
        self.ids.append(token)
        before = self._decode(self.ids[self.start : self.read])
        after = self._decode(self.ids[self.start :])
        if not after.endswith(UNFINISHED) and len(after) > len(before):
            self._add(after[len(before) :])
        return self._certain()

    def flush(self) -> str:
        """What was held back, at the end."""
        if not self.stopped:
            before = self._decode(self.ids[self.start : self.read])
            self._add(self._decode(self.ids[self.start :])[len(before) :])
        certain = self.text[self.sent :]
        self.sent = len(self.text)
        return certain

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def _add(self, new: str) -> None:
        self.start, self.read = self.read, len(self.ids)
        self.text += new
        found = [place for place in (self.text.find(stop) for stop in self.stop) if place >= 0]
        if found:
            self.text, self.stopped = self.text[: min(found)], True

    def _certain(self) -> str:
        end = len(self.text)
        if not self.stopped:
            end -= max((_overlap(self.text, stop) for stop in self.stop), default=0)
        certain = self.text[self.sent : end]
        self.sent = max(self.sent, end)
        return certain


def _overlap(text: str, stop: str) -> int:
    """How long the end of the text is that could begin the stop sequence."""
    most = min(len(stop) - 1, len(text))
    return next((size for size in range(most, 0, -1) if text.endswith(stop[:size])), 0)
