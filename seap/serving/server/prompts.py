"""From what was asked to token rows: tokenised prompts, chat templates, and how long an answer may be."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from seap.errors import UserError
from seap.serving.server.messages import Message, as_lines, said, turns_for
from seap.text.templates import render

DEFAULT_COMPLETION = 16  # OpenAI's
MOST_BY_DEFAULT = 512  # tokens of a chat answer whose length isn't asked for


@dataclass(frozen=True)
class Prompt:
    """Token ids, and the text that the router reads."""

    ids: tuple[int, ...]
    text: str


def encode(tokenizer: Any, given: str | Sequence[int], vocabulary: int) -> Prompt:
    """A completion's prompt. Raises UserError for an empty one or ids out of range."""
    if isinstance(given, str):
        ids = tokenizer(given, verbose=False)["input_ids"]
        if not ids:
            raise UserError("the prompt is empty; give at least one token")
        return Prompt(tuple(ids), given)
    if not given:
        raise UserError("the prompt is empty; give at least one token")
    if strange := [token for token in given if not 0 <= token < vocabulary]:
        raise UserError(f"token {strange[0]}: must be from 0 to {vocabulary - 1}")
    return Prompt(tuple(given), tokenizer.decode(given, skip_special_tokens=True))


def encode_chat(tokenizer: Any, messages: Sequence[Message]) -> Prompt:
    """A chat, by the tokenizer's template; without one, a lone user message is the prompt itself.

    The router reads what the user said, without template.
    """
    routed = said(messages)
    if getattr(tokenizer, "chat_template", None):
        text = render(tokenizer, turns_for(tokenizer, messages))
        return Prompt(tuple(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]), routed)
    return replace(encode(tokenizer, as_lines(messages), 0), text=routed)


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
