"""A tokenizer as its tokenizer.json says it: its tokens, what they are merged from, and those that must stay."""

import itertools
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from seap.errors import UserError

SPACE = "▁"
PLACEHOLDER = re.compile(r"[<\[].*(unused|reserved|placeholder).*[>\]]", re.IGNORECASE)
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class Described:
    """A BPE or Unigram tokenizer. told: its tokenizer.json; rows: of the model's embedding, if there are fewer."""

    told: Mapping[str, Any]
    rows: int = sys.maxsize

    @property
    def model(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.told["model"]
        return found

    @property
    def is_bpe(self) -> bool:
        return bool(self.model["type"] == "BPE")

    @property
    def is_byte_level(self) -> bool:
        """Whether every character of a token stands for a byte."""
        return "ByteLevel" in set(kinds(self.told.get("decoder")))

    @cached_property
    def falls_back(self) -> bool:
        """Whether any character without a token is read as the tokens of its bytes."""
        return bool(self.model.get("byte_fallback")) and all(f"<0x{byte:02X}>" in self.ids for byte in range(256))

    @property
    def kind(self) -> str:
        """For reports."""
        if not self.is_bpe:
            return "Unigram"
        return "byte-level BPE" if self.is_byte_level else "SentencePiece BPE" if self.falls_back else "BPE"

    @cached_property
    def added(self) -> dict[str, int]:
        """Tokens that are found in a text before anything else."""
        return {token: i for token, i in self._all_added.items() if i < self.rows}

    @cached_property
    def beyond(self) -> list[int]:
        """Added tokens that have no row, which no text can have."""
        return sorted(i for i in self._all_added.values() if i >= self.rows)

    @cached_property
    def _all_added(self) -> dict[str, int]:
        return {token["content"]: token["id"] for token in self.told.get("added_tokens") or []}

    @cached_property
    def ids(self) -> dict[str, int]:
        """Token → id."""
        vocab = self.model["vocab"]
        own = dict(vocab) if self.is_bpe else {token: i for i, (token, _) in enumerate(vocab)}
        return {token: i for token, i in own.items() if i < self.rows} | self.added

    @cached_property
    def texts(self) -> dict[int, str]:
        return {i: token for token, i in self.ids.items()}

    @cached_property
    def merges(self) -> list[tuple[str, str]]:
        """In the order of their ranks."""
        pairs = self.model.get("merges") or []
        return [(pair[0], pair[1]) if isinstance(pair, list | tuple) else tuple(pair.split(" ", 1)) for pair in pairs]

    @cached_property
    def parts(self) -> dict[int, tuple[int, int]]:
        """Token → the two that it is merged from, last, wherever it comes out of a text.

        A merge never crosses the edge of a token that comes out in the end, so those inside it are done in the order in
        which they are done where it is read alone: what is found here, by reading it alone, holds in every text.
        """
        ranks = {pair: rank for rank, pair in enumerate(self.merges)}
        added, ids = self.added, self.ids
        found = {}
        for token, i in ids.items() if ranks else ():
            last = last_merge(token, ranks) if token not in added and len(token) > 1 else None
            if last is not None and last[0] in ids and last[1] in ids:
                found[i] = ids[last[0]], ids[last[1]]
        return found

    @cached_property
    def by_use(self) -> list[int]:
        """All ids, the likeliest in the text that the tokenizer was made of first, as its ranks or scores say."""
        if self.is_bpe:
            return sorted(self.texts)
        scores = {i: score for i, (_, score) in enumerate(self.model["vocab"])}
        return sorted(self.texts, key=lambda i: (-scores.get(i, 0.0), i))

    @cached_property
    def placeholders(self) -> set[int]:
        """Added tokens without a meaning, such as <unused7>."""
        return {i for token, i in self.added.items() if PLACEHOLDER.fullmatch(token)}

    @property
    def foundation(self) -> set[int]:
        """Ids without which some text couldn't be read, or would be read otherwise though its tokens stay."""
        found = set(self.added.values()) | set(self._inside())
        alone = {token: i for token, i in self.ids.items() if len(token) == 1}
        if self.is_byte_level:
            return found | set(alone.values())
        if self.falls_back:  # all but what the decoder makes something else of
            found |= {i for token, i in self.ids.items() if _BYTE.fullmatch(token)}
            needed = set(SPACE) | set(replaced(self.told.get("decoder")))
            found |= {alone[character] for character in needed & alone.keys()}
            return found | {i for token, i in self.ids.items() if (needed - alone.keys()) & set(token)}
        return found | set(alone.values()) | {i for token, i in self.ids.items() if set(token) - alone.keys()}

    def _inside(self) -> Iterator[int]:
        """Ids that the description itself names, and the least score, which says how unlikely the unknown is."""
        unknown = self.model.get("unk_token")
        if unknown in self.ids:
            yield self.ids[unknown]
        if not self.is_bpe:
            vocab = self.model["vocab"]
            yield min(range(len(vocab)), key=lambda i: vocab[i][1])
            if self.model.get("unk_id") is not None:
                yield self.model["unk_id"]
        yield from ids_of_processor(self.told.get("post_processor"))
        if (padding := self.told.get("padding")) is not None:
            yield padding["pad_id"]


def describe_tokenizer(tokenizer: Any, rows: int = sys.maxsize) -> Described:
    """Raises UserError for a tokenizer whose words can't be written in smaller pieces of its own."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _cant(f"a {type(tokenizer).__name__} has no tokenizer.json")
    found = Described(json.loads(backend.to_str()), rows)
    kind = found.model.get("type")
    if kind not in ("BPE", "Unigram"):
        raise _cant(f"a {kind} tokenizer has no smaller pieces for the words that go")
    for name in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if found.model.get(name):
            raise _cant(f"its merges have a {name.replace('_', ' ')}")
    return found


def _cant(why: str) -> UserError:
    return UserError(f"--vocabulary: this model's vocabulary can't be cut, since {why}; leave --vocabulary out")


def kinds(step: Any) -> Iterator[str]:
    """The types of a normalizer, pre-tokenizer or decoder and of its parts."""
    if not isinstance(step, Mapping):
        return
    yield str(step.get("type"))
    for name in ("normalizers", "pretokenizers", "decoders", "processors"):
        for part in step.get(name, ()):
            yield from kinds(part)


def replaced(decoder: Any) -> Iterator[str]:
    """The characters for which a decoder puts others."""
    if not isinstance(decoder, Mapping):
        return
    pattern = decoder.get("pattern")
    yield from (pattern or {}).get("String", "") if isinstance(pattern, Mapping) else ()
    yield from decoder.get("replacement") or ""
    for part in decoder.get("decoders", ()):
        yield from replaced(part)


def ids_of_processor(step: Any) -> Iterator[int]:
    """The ids that a post-processor puts around a text."""
    if not isinstance(step, Mapping):
        return
    for token in (step.get("special_tokens") or {}).values():
        yield from token["ids"]
    for name in ("sep", "cls"):
        if name in step:
            yield step[name][1]
    for part in step.get("processors", ()):
        yield from ids_of_processor(part)


def last_merge(token: str, ranks: Mapping[tuple[str, str], int]) -> tuple[str, str] | None:
    """The last two pieces of a token that is read alone; None where it doesn't come out whole."""
    pieces = list(token)
    while len(pieces) > 2:
        found = [(rank, i) for i, pair in enumerate(_pairs(pieces)) if (rank := ranks.get(pair)) is not None]
        if not found:
            return None
        i = min(found)[1]
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
    pair = pieces[0], pieces[1]
    return pair if pair in ranks else None


def _pairs(pieces: Sequence[str]) -> Iterable[tuple[str, str]]:
    return itertools.pairwise(pieces)
