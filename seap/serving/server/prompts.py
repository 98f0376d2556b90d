"""From what was asked to token rows: tokenised prompts, chat templates, and how long an answer may be."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from seap.errors import UserError
from seap.serving.server.messages import Message, as_lines, said, turns_for
from seap.serving.server.tokenizing import Tokenizing
from seap.text.templates import render

DEFAULT_COMPLETION = 16  # OpenAI's
MOST_BY_DEFAULT = 512  # tokens of a chat answer whose length isn't asked for


@dataclass(frozen=True)
class Prompt:
    """Token ids, and as much of the text as the router reads."""

    ids: tuple[int, ...]
    text: str


async def encode_all(
    tokenizing: Tokenizing, given: Sequence[str | Sequence[int]], vocabulary: int, client: str
) -> list[Prompt]:
    """`encode` for one after the other."""
    among = sum(len(one) for one in given)
    return [await encode(tokenizing, one, vocabulary, client, among) for one in given]


async def encode(
    tokenizing: Tokenizing, given: str | Sequence[int], vocabulary: int, client: str, among: int = 0
) -> Prompt:
    """A completion's prompt. Raises UserError for an empty one, one beyond the context, or ids out of range."""
    if isinstance(given, str):
        ids = await tokenizing.ids(given, client, among=among)
        if not ids:
            raise UserError("the prompt is empty; give at least one token")
        return Prompt(ids, given[: tokenizing.reach])
    if not given:
        raise UserError("the prompt is empty; give at least one token")
    if strange := [token for token in given if not 0 <= token < vocabulary]:
        raise UserError(f"token {strange[0]}: must be from 0 to {vocabulary - 1}")
    return Prompt(tuple(given), await tokenizing.text(given))


async def encode_chat(tokenizing: Tokenizing, messages: Sequence[Message], client: str) -> Prompt:
    """A chat, by the tokenizer's template; without one, a lone user message is the prompt itself.

    The router reads what the user said, without template.
    """
    plain, routed = as_lines(messages), said(messages)[: tokenizing.reach]
    tokenizing.size(plain)
    if getattr(tokenizing.tokenizer, "chat_template", None):
        turns = turns_for(tokenizing.tokenizer, messages)
        text = await tokenizing.pools.apart(render, tokenizing.tokenizer, turns)
        return Prompt(await tokenizing.ids(text, client, special=False), routed)
    return replace(await encode(tokenizing, plain, 0, client), text=routed)


def check_readable(tokenizer: Any, ids: Sequence[int], size: int) -> None:
    """Raise UserError for a token beyond the model's embedding: on a GPU, reading it would end the process."""
    if beyond := [token for token in ids if not 0 <= token < size]:
        raise UserError(
            f"token {beyond[0]} ({tokenizer.decode(beyond[:1])!r}) is beyond the model's embedding of {size} tokens; "
            "take it out"
        )


def answer_length(asked: int | None, prompt: Prompt, context: int | None, *, default: int) -> int:
    """Tokens that the answer may have. Raises UserError where prompt and answer don't fit into the context."""
    length = len(prompt.ids)
    usual = default if asked is None else asked
    if context is None:
        return usual
    if length >= context:
        raise UserError(f"the prompt has {length} tokens, the model's context {context}; shorten it")
    if asked is not None and length + asked > context:
        raise UserError(
            f"{length} tokens of prompt and max_tokens {asked} exceed the model's context of {context}; "
            "lower max_tokens"
        )
    return min(usual, context - length)
