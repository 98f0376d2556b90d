"""What a token stands for, by the vocabulary: its bytes, and the text that clients are given of it.

A token decoded alone is another thing: parts of a character become U+FFFD, whatever they are, and some decoders take
away the space that a token begins with.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from seap.text.tokens import decoder_steps

SPACE = "▁"
_ALONE = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes that are written as the character of that number
# the alphabet of byte-level BPE: every other byte is a character from U+0100 on, in their order
BYTES = {chr(byte): byte for byte in _ALONE} | {
    chr(256 + place): byte for place, byte in enumerate(sorted({*range(256)} - {*_ALONE}))
}


class Spelled(NamedTuple):
    """data: the token's bytes; text: theirs, or as OpenAI writes them where they are no UTF-8: `bytes:\\xc3`."""

    text: str
    data: bytes

    @classmethod
    def of(cls, data: bytes) -> "Spelled":
        try:
            return cls(data.decode(), data)
        except UnicodeDecodeError:
            return cls("bytes:" + data.decode(errors="backslashreplace"), data)


class Spelling:
    """A tokenizer's tokens; each is looked up once."""

    def __init__(self, tokenizer: Any) -> None:
        self._read = reader_of(tokenizer)
        self._known: dict[int, Spelled] = {}

    def of(self, token: int, *, bare: bool = False) -> Spelled:
        """bare: without a space that it begins with, as where the text has none."""
        found = self._known.get(token)
        if found is None:
            found = self._known[token] = Spelled.of(self._read(token))
        return Spelled.of(found.data[1:]) if bare and found.data[:1] == b" " else found


def reader_of(tokenizer: Any) -> Callable[[int], bytes]:
    """What says a token's bytes: by the alphabet of a byte-level vocabulary, as SentencePiece writes them (`▁` a space,
    `<0xC3>` a byte), or for others by decoding it alone. Nothing for a token that the vocabulary doesn't have."""
    steps = decoder_steps(tokenizer)

    def byte_level(token: int) -> bytes:
        text = tokenizer.convert_ids_to_tokens(token) or ""
        return bytes(BYTES[sign] for sign in text) if BYTES.keys() >= {*text} else text.encode()

    def pieces(token: int) -> bytes:
        text = tokenizer.convert_ids_to_tokens(token) or ""
        if b"ByteFallback" in steps and re.fullmatch("<0x[0-9A-F]{2}>", text):
            return bytes([int(text[3:5], 16)])
        return text.replace(SPACE, " ").encode()

    def alone(token: int) -> bytes:
        return str(tokenizer.decode([token])).encode()

    if b"ByteLevel" in steps:
        return byte_level
    return pieces if any(step in steps for step in (b"ByteFallback", b"Metaspace", SPACE.encode())) else alone
