"""Text → token ids: what a tokenizer puts around a text is there once, and every id has an embedding."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from seap.errors import UserError


def encode(tokenizer: Any, text: str) -> list[int]:
    """The ids of a text, with what the tokenizer puts around it, once: a text may begin with that already.

    A chat template writes the beginning-of-text token, and the tokenizer would write it again.
    """
    ids: list[int] = tokenizer(text, truncation=False, verbose=False)["input_ids"]
    if not (_repeats(ids) or _repeats(ids[::-1])):
        return ids
    before, after = marks(tokenizer)
    if before and ids[: 2 * len(before)] == before * 2:
        ids = ids[len(before) :]
    if after and ids[-2 * len(after) :] == after * 2:
        ids = ids[: -len(after)]
    return ids


def _repeats(ids: Sequence[int]) -> bool:
    """Whether the first token comes again at once, as where marks are doubled; they are a few tokens at most."""
    return bool(ids) and ids[0] in ids[1:5]


def marks(tokenizer: Any) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and after every text."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return whole[:start], whole[start + len(plain) :]
    return [], []


def byte_counter(tokenizer: Any) -> Callable[[Sequence[int]], int]:
    """What says how many bytes of UTF-8 tokens stand for.

    It is the same for a text however it is cut into tokens, so that losses of different vocabularies compare by it. A
    space that the tokenizer puts before a text counts; a special token counts as it is written.
    """
    steps = decoder_steps(tokenizer)
    if b"ByteLevel" in steps:
        added = {token.content for token in tokenizer.added_tokens_decoder.values()}

        def length(token: str) -> int:
            return len(token.encode()) if token in added else len(token)

    elif b"ByteFallback" in steps or b"Metaspace" in steps:

        def length(token: str) -> int:
            return 1 if re.fullmatch("<0x[0-9A-F]{2}>", token) else len(token.replace("▁", " ").encode())

    else:
        return lambda ids: len(tokenizer.decode(list(ids), skip_special_tokens=False).encode())
    return lambda ids: sum(map(length, tokenizer.convert_ids_to_tokens(list(ids))))


def decoder_steps(tokenizer: Any) -> bytes:
    """How a tokenizer makes text of tokens, as its tokenizer.json says it; nothing where it doesn't."""
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    return b"" if decoder is None else bytes(decoder.__getstate__())


def check_ids(rows: Iterable[Sequence[int]], model: Any, tokenizer: Any, what: str) -> None:
    """Raise UserError for a token that the model has no embedding of: on a GPU reading it would end the process."""
    size = model.get_input_embeddings().weight.shape[0]
    beyond = {token for row in rows for token in row if token >= size}
    if beyond:
        first = min(beyond)
        raise UserError(
            f"{what}: its text has the token {tokenizer.convert_ids_to_tokens(first)!r} (id {first}), and the model "
            f"has embeddings of {size} tokens only; take it out of the text, or use the tokenizer that the model was "
            "trained with"
        )
