"""From what was asked to token rows: tokenised prompts, chat templates, and how long an answer may be."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from seap.errors import UserError
from seap.serving.server.protocol import Message
from seap.text.templates import render

NAMES = {"user": "User", "assistant": "Assistant"}
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
    said = "\n".join(message.text for message in messages if message.role == "user") or messages[-1].text
    turns = [{"role": message.role, "content": message.text} for message in messages]
    if getattr(tokenizer, "chat_template", None):
        text = render(tokenizer, turns)
        return Prompt(tuple(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]), said)
    if len(messages) == 1:
        text = messages[0].text
    else:
        lines = [f"{NAMES.get(message.role, 'System')}: {message.text}" for message in messages]
        text = "\n".join([*lines, "Assistant:"])
    return encode(tokenizer, text, 0)


def answer_length(asked: int | None, prompt: Prompt, context: int | None, *, default: int) -> int:
    """Tokens that the answer may have. Raises UserError where prompt and answer don't fit into the context."""
    length = len(prompt.ids)
    if context is None:
        return asked or default
    if length >= context:
        raise UserError(f"the prompt has {length} tokens, the model's context {context}; shorten it")
    if asked is not None and length + asked > context:
        raise UserError(
            f"{length} tokens of prompt and max_tokens {asked} exceed the model's context of {context}; "
            "lower max_tokens"
        )
    return asked or min(default, context - length)
