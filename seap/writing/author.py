"""A model that writes: what it is prompted with, what it writes after that, and how likely it finds a text."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import inf, nan
from typing import Any

import torch

from seap.errors import UserError
from seap.evaluation.metrics import Row, log_likelihoods
from seap.files import digest
from seap.models.continuing import continuations, ends_of
from seap.text.templates import render
from seap.writing.options import Writing
from seap.writing.sieve import Candidate

ABOUT_CHAT = "Write one text of this kind: {}\nReply with the text alone, nothing before or after it."
ABOUT_PLAIN = "Below is a text of this kind: {}\n\n"


@dataclass(frozen=True)
class Prompt:
    """What the model reads, and the tokens after it with which the text begins."""

    ids: Sequence[int]
    start: Sequence[int] = ()


Prompts = Callable[[random.Random], Prompt]


@dataclass(frozen=True)
class Author:
    """A model with its tokenizer, and how it is to write."""

    model: Any
    tokenizer: Any
    options: Writing

    @property
    def longest(self) -> int:
        """Tokens that a text may have: --max-new-tokens, or half of what the model can read."""
        return int(min(self.options.max_new_tokens, self._positions // 2))

    @property
    def room(self) -> int:
        """Tokens that a prompt made of examples may have."""
        return int(min(self.options.context_tokens, self._positions - self.longest))

    @property
    def room_to_answer(self) -> float:
        """Tokens that a prompt may have whose answer is to be written."""
        return self._positions - self.longest

    @property
    def mark(self) -> list[int]:
        """The token that the tokenizer puts before a text by itself, if it does."""
        bos = self.tokenizer.bos_token_id
        return [bos] if bos is not None and self.tokenizer("a", verbose=False)["input_ids"][:1] == [bos] else []

    @property
    def between(self) -> list[int]:
        """What stands between two texts. Raises UserError for a tokenizer that has no token for it."""
        if self.options.separator is not None:
            return self.encode(self.options.separator)
        if self.tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no end-of-text token; give --separator, such as '\\n###\\n'")
        eos = [self.tokenizer.eos_token_id]
        return eos if self.mark == eos else eos + self.mark

    @property
    def ends(self) -> list[int]:
        """The tokens after which the model has said all."""
        return ends_of(self.model, self.tokenizer)

    @property
    def _positions(self) -> float:
        return getattr(self.model.config, "max_position_embeddings", None) or inf

    def encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def prompts_like(author: Author, encoded: Sequence[Sequence[int]]) -> Prompts:
    """Prompts of examples drawn anew each time: whole ones and the start of another, or a stretch of a long one.

    A first example is drawn; where it fits, others that fit come after it, so that long and short ones get their share.
    """
    begin = author.mark or ([] if author.options.separator else author.between)
    room = author.room - len(begin) - author.options.start_tokens

    def draw(generator: random.Random) -> Prompt:
        first, *others = generator.sample(encoded, len(encoded))
        if len(first) + len(author.between) > room:
            length = min(room, author.longest)
            place = generator.randrange(len(first) - length + 1)
            return Prompt([*author.mark, *first[place : place + length]])
        start = generator.choice(others or [first])
        start = start[: generator.randint(min(1, author.options.start_tokens), author.options.start_tokens)]
        shown = [*first, *author.between]
        for ids in others[: author.options.shots - 1]:
            if len(shown) + len(ids) + len(author.between) <= room:
                shown += [*ids, *author.between]
        return Prompt([*begin, *shown], start)

    return draw


def prompt_about(author: Author, about: str) -> Prompts:
    """One prompt: in the tokenizer's chat template if it has one, else a line that leads to such a text."""
    if author.tokenizer.chat_template:
        asked = [{"role": "user", "content": ABOUT_CHAT.format(about.strip())}]
        text = render(author.tokenizer, asked, enable_thinking=False)
        ids = author.encode(text)
    else:
        ids = author.mark + author.encode(ABOUT_PLAIN.format(about.strip()))
    if len(ids) > author.room:
        raise UserError(f"--about has {len(ids)} tokens, room is for {author.room}; say it in fewer words")
    return lambda generator: Prompt(ids)


def drafts(author: Author, prompts: Prompts) -> Iterator[Candidate]:
    """What the model writes, batch after batch, each seeded by itself; at most `num · attempts` texts."""
    options = author.options
    for start in range(0, most := options.num * options.attempts, options.batch_size):
        places = range(start, min(start + options.batch_size, most))
        drawn = [prompts(random.Random(f"{options.seed} {place}")) for place in places]
        texts = sampled(author, drawn, seed=int(digest([options.seed, start]), 16) >> 1)
        encoded = [author.encode(text) for text in texts]
        for text, ids, loss in zip(texts, encoded, losses_of(author, encoded), strict=True):
            yield Candidate(text=text, ids=tuple(ids), loss=loss)


def sampled(author: Author, prompts: Sequence[Prompt], *, seed: int) -> list[str]:
    """One text after each prompt. The caller's own random numbers go on as if nothing had been drawn."""
    new = continued(author, prompts, seed=seed)
    return [cleaned(author, [*prompt.start, *ids][: author.longest]) for prompt, ids in zip(prompts, new, strict=True)]


def continued(author: Author, prompts: Sequence[Prompt], *, seed: int) -> list[list[int]]:
    """The tokens written after each prompt, with its end; after a separator some may follow."""
    options = author.options
    device = next(author.model.parameters()).device
    how = {"temperature": options.temperature, "top_p": options.top_p, "top_k": 0, "repetition_penalty": 1.0}

    def is_apart(ids: list[int]) -> bool:
        return options.separator is not None and options.separator in author.decode(ids)

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        try:
            return continuations(
                author.model,
                author.tokenizer,
                [[*prompt.ids, *prompt.start] for prompt in prompts],
                max_new_tokens=author.longest,
                has_ended=is_apart,
                do_sample=True,
                **how,
            )
        except torch.cuda.OutOfMemoryError as error:
            raise UserError(
                f"the GPU's memory doesn't hold {options.batch_size} texts at a time; lower --batch-size"
            ) from error


def cleaned(author: Author, ids: Sequence[int]) -> str:
    """A text up to its end, without half a character there and blank lines around."""
    ends = set(author.ends)
    end = next((place for place, token in enumerate(ids) if token in ends), len(ids))
    text = author.decode(ids[:end])
    if author.options.separator:
        text = text.split(author.options.separator)[0]
    return (text.rstrip("\ufffd") if end == len(ids) else text).strip("\n").rstrip()


def losses_of(author: Author, encoded: Sequence[Sequence[int]]) -> list[float]:
    """Nats per token of each text by itself, as calibration would read it; NaN where no token is predicted."""
    mark = author.mark
    rows = [Row((*mark, *ids[: author.longest * 2 - len(mark)])) for ids in encoded]
    scored = [place for place, row in enumerate(rows) if len(row.ids) > 1]
    found = [nan] * len(rows)
    sums = log_likelihoods(author.model, [rows[place] for place in scored]) if scored else []
    for place, (total, count) in zip(scored, sums, strict=True):
        found[place] = -total / count
    return found
