"""Texts to token ids, within a limit that is looked at before and while they are made.

A text is refused by its bytes first: no token has more than the longest one, so a context of C tokens holds no more
than C times as many. A long text is then counted piece by piece, until there are too many; only what fits is
tokenized as a whole. Pieces of several long texts take turns in one thread, and short texts have threads of their
own.
"""

import contextlib
from collections.abc import Sequence
from typing import Any

from seap.errors import UserError
from seap.serving.options import Limits
from seap.serving.scheduling.fairness import Places
from seap.serving.server.answers import Echo
from seap.serving.server.reading import SHORT, Pools

PIECE = 8 << 10  # characters that are counted at a time, about 20 ms of work
LONG_TEXTS = 8  # that are tokenized at a time
USUAL = 16  # characters that a token seldom has in the mean: the router need not read more
ECHOED = 8  # bytes of a text whose tokens are found while one token is put into an echo
MARGIN = 1  # a space that a word-level vocabulary doesn't hold


def longest_token(tokenizer: Any) -> int:
    """Bytes of a vocabulary's longest token, and a space."""
    return max((len(token.encode(errors="replace")) for token in tokenizer.get_vocab()), default=1) + MARGIN


class Tokenizing:
    """context: tokens that the model can read, None where it doesn't say. routed: tokens that the router reads.

    longest is the bytes of the longest token, reach the characters that the router may need.
    """

    def __init__(self, tokenizer: Any, pools: Pools, limits: Limits, context: int | None, routed: int = 0) -> None:
        self.tokenizer, self.pools = tokenizer, pools
        self.most = min(context or limits.max_tokens_in_flight, limits.max_tokens_in_flight)
        self.longest = longest_token(tokenizer)
        self.routed, self.reach = routed, routed * min(self.longest, USUAL)
        self.long = Places(LONG_TEXTS, limits.client_share, what="long prompts")

    @property
    def max_bytes(self) -> int:
        return self.most * self.longest

    def size(self, text: str) -> int:
        """Its bytes. Raises UserError where so many can't be within the context, or where it is no text."""
        try:
            found = len(text.encode())
        except UnicodeEncodeError as error:
            raise UserError(f"the prompt has half a character at {error.start} (a lone surrogate); mend it") from None
        if found > self.max_bytes:
            raise UserError(
                f"the prompt has {found} bytes; the model's context {self.most} holds {self.max_bytes} at most; "
                "shorten it"
            )
        return found

    async def ids(self, text: str, client: str, *, special: bool = True, among: int = 0) -> tuple[int, ...]:
        """The text's tokens. special: with those that the tokenizer puts around a text. among: characters of all texts
        that are asked for together, which count as one. Raises UserError for a text beyond the context, FullError where
        too many long ones are at it."""
        size = self.size(text)
        together = max(size, among)
        if together <= SHORT:
            return await self.pools.run(together, self._tokens, text, special)
        with self.long.taken(client):
            if size > max(self.most, SHORT):
                await self._count(text)
            return await self.pools.run(together, self._tokens, text, special)

    async def text(self, ids: Sequence[int]) -> str:
        """What the router reads of token ids."""
        decode = self.tokenizer.decode
        return str(await self.pools.run(0, lambda: decode(ids[: self.routed], skip_special_tokens=True)))

    async def echoes(
        self, prompts: Sequence[Sequence[int]], given: Sequence[str | Sequence[int]], client: str
    ) -> list[Echo]:
        """What answers begin with, of prompts' tokens and as they were given; all of them are one long text or a short
        one. Raises FullError as `ids` does."""
        size = ECHOED * sum(len(ids) for ids in prompts)
        with self.long.taken(client) if size > SHORT else contextlib.nullcontext():
            asked = zip(prompts, given, strict=True)
            return [await self.pools.run(size, Echo.of, self.tokenizer, ids, one) for ids, one in asked]

    async def _count(self, text: str) -> None:
        """Raise UserError as soon as the pieces so far have too many tokens. A cut through a token makes several of it:
        no more than it has bytes."""
        found = 0
        for start in range(0, len(text), PIECE):
            piece = text[start : start + PIECE]
            found += len(await self.pools.run(SHORT + 1, self._tokens, piece, False)) - self.longest
            if found > self.most:
                raise UserError(f"the prompt has more than {found} tokens, the model's context {self.most}; shorten it")

    def _tokens(self, text: str, special: bool) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])
