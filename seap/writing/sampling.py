"""From logits to a token, and from tokens to text with stop sequences.

Shapes: V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

LEAST = -9999.0  # the log-probability of what has none: JSON knows no infinity
UNFINISHED = "�"  # what a tokenizer decodes the first bytes of a character to
LONGEST = 4  # bytes of a character, so tokens that it may be spread over


@dataclass(frozen=True)
class Token:
    """A chosen token, its log-probability, and the likeliest tokens with theirs (before temperature and top_p)."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Adjustments:
    """What is added to logits before a token is chosen.

    repetition divides positive and multiplies negative logits of tokens in the prompt or the answer; presence is taken
    off those in the answer once, frequency as often as they are there; bias: token ids with what they get.
    """

    repetition: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0
    bias: tuple[tuple[int, float], ...] = ()

    @property
    def neutral(self) -> bool:
        return self == Adjustments()

    def applied(self, logits: Tensor, prompt: Sequence[int], written: Sequence[int]) -> Tensor:
        """New logits (V,), in float32 on the CPU."""
        logits = logits.clone()
        if self.bias:
            ids, values = zip(*self.bias, strict=True)
            logits[list(ids)] += torch.tensor(values)
        seen = list({*prompt, *written} if self.repetition != 1 else ())
        logits[seen] = torch.where(logits[seen] > 0, logits[seen] / self.repetition, logits[seen] * self.repetition)
        if written and (self.presence or self.frequency):
            counts = torch.bincount(torch.tensor(written), minlength=len(logits)).float()
            logits -= self.presence * (counts > 0) + self.frequency * counts
        return logits


@dataclass
class Sampler:
    """How one request's tokens are chosen. temperature 0 takes the likeliest; logprobs: how many to report, or None.

    top_k 0 and min_p 0 leave all tokens in; min_p: least probability, as a share of the likeliest one's. prompt: ids
    that the adjustments count as seen.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    logprobs: int | None = None
    top_k: int = 0
    min_p: float = 0.0
    adjustments: Adjustments = field(default_factory=Adjustments)
    prompt: Sequence[int] = ()
    generator: torch.Generator = field(init=False)
    written: list[int] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.generator = torch.Generator()
        if self.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(self.seed)

    def choose(self, logits: Tensor, likeliest: int | None = None) -> Token:
        """logits (V,) on any device. likeliest: where they are largest, if that is known."""
        plain = self.adjustments.neutral
        if plain and self.temperature == 0 and self.logprobs is None and likeliest is not None:
            return Token(likeliest)
        logits = logits.float().cpu()
        adjusted = logits if plain else self.adjustments.applied(logits, self.prompt, self.written)
        chosen = int(adjusted.argmax()) if self.temperature == 0 else self._draw(adjusted)
        self.written.append(chosen)
        if self.logprobs is None:
            return Token(chosen)
        known = logits.log_softmax(-1)
        return tokens_of(known[None], torch.tensor([chosen]), self.logprobs)[0]

    def _draw(self, logits: Tensor) -> int:
        scaled = (logits - logits.max()) / max(self.temperature, 1e-5)
        probabilities = scaled.softmax(-1)
        if self.top_p < 1 or self.top_k or self.min_p:
            ordered, places = probabilities.sort(descending=True, stable=True)
            probabilities = torch.zeros_like(probabilities)
            probabilities[places] = self._kept(ordered)
        return int(torch.multinomial(probabilities, 1, generator=self.generator))

    def _kept(self, ordered: Tensor) -> Tensor:
        """Probabilities from the largest (V,), with zeros for those that top_k, min_p and top_p leave out.

        The first one always stays, whatever the numbers round to.
        """
        nothing = torch.zeros(())
        if self.top_k or self.min_p:
            ordered = ordered.where(ordered >= self.min_p * ordered[0], nothing)
            ordered[self.top_k or len(ordered) :] = 0
            ordered = ordered / ordered.sum()
        inside = ordered.cumsum(-1) - ordered < self.top_p
        inside[0] = True
        return ordered.where(inside, nothing)


def tokens_of(known: Tensor, chosen: Tensor, num_top: int) -> list[Token]:
    """Tokens (T,) with their log-probabilities and the num_top likeliest; known (T, V), nothing below LEAST."""
    own = known.gather(1, chosen[:, None].to(known.device)).clamp_min(LEAST)[:, 0].tolist()
    values, places = known.topk(min(num_top, known.shape[1]), dim=-1)
    tops = [
        tuple(zip(*row, strict=True)) for row in zip(places.tolist(), values.clamp_min(LEAST).tolist(), strict=True)
    ]
    return [Token(*found) for found in zip(chosen.tolist(), own, tops, strict=True)]


class Writer:
    """Turns one sequence's tokens into text as they come, holding back what may yet be part of a stop sequence, or of a
    character: at most LONGEST tokens, so that each costs the same whatever came before.

    after: the last tokens of a text that this one is put behind: tokenizers leave a space out where a text begins.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = (), after: Sequence[int] = ()) -> None:
        self.tokenizer, self.stop = tokenizer, tuple(stop)
        self.ids = [*after]
        self.start, self.read = (
            0,
            len(after),
        )  # tokens before `start` don't matter any more; before `read` they are text
        self.text = ""
        self.sent = 0
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that a token makes certain; sets `stopped` where a stop sequence has come up."""
        self.ids.append(token)
        before = self._decode(self.ids[self.start : self.read])
        after = self._decode(self.ids[self.start :])
        unfinished, new = after.endswith(UNFINISHED), _behind(before, after)
        if new and not unfinished:
            self._add(new, len(self.ids))
        elif self._is_skipped(token):
            self.ids.pop()
        elif unfinished and len(self.ids) - self.read > LONGEST:
            end = len(self.ids) - (LONGEST - 1)  # what is before can't become part of a character any more
            settled = _shared(self._decode(self.ids[self.start : end]), after)
            self._add(_behind(before, settled), end)
        return self._certain()

    def flush(self) -> str:
        """What was held back, at the end."""
        if not self.stopped:
            before = self._decode(self.ids[self.start : self.read])
            self._add(_behind(before, self._decode(self.ids[self.start :])), len(self.ids))
        certain = self.text[self.sent :]
        self.sent = len(self.text)
        return certain

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def _is_skipped(self, token: int) -> bool:
        """Whether it is special: no text has anything of it."""
        return not self._decode([token]) and bool(self.tokenizer.decode([token], skip_special_tokens=False))

    def _add(self, new: str, end: int) -> None:
        """Add to the text what the tokens up to `end` have made certain."""
        self.start, self.read = self.read, end
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


def _behind(before: str, after: str) -> str:
    """What a text has beyond its beginning, whose last character may have become another since."""
    same = len(_shared(before, after)) if before.endswith(UNFINISHED) else len(before)
    return after[same:]


def _shared(one: str, other: str) -> str:
    """The beginning that two texts have in common."""
    apart = (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return one[: next(apart, min(len(one), len(other)))]


def _overlap(text: str, stop: str) -> int:
    """How long the end of the text is that could begin the stop sequence."""
    most = min(len(stop) - 1, len(text))
    return next((size for size in range(most, 0, -1) if text.endswith(stop[:size])), 0)
