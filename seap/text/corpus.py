"""Corpora: texts of a task → rows of token ids → padded batches; padding is never counted.

Shapes: B rows, T tokens.
"""

import hashlib
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from seap.errors import UserError
from seap.text.options import Calibration
from seap.text.tokens import encode


@dataclass(frozen=True)
class Corpus:
    """The token rows that a task is measured on, and where they come from."""

    name: str
    rows: tuple[tuple[int, ...], ...]
    source: str
    skipped: int = 0  # texts shorter than two tokens

    @property
    def num_tokens(self) -> int:
        return sum(len(row) for row in self.rows)

    @property
    def data_hash(self) -> str:
        """Of the token ids in the order used."""
        return hashlib.sha256(repr(self.rows).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Batch:
    """Right-padded rows: ids and mask (B, T); the mask is True on real tokens."""

    ids: Tensor
    mask: Tensor


def longest_sequence(model: Any, options: Calibration) -> int:
    """--seq-len, or what the model's positions allow if that is less."""
    return min(options.seq_len, getattr(model.config, "max_position_embeddings", None) or options.seq_len)


def build_corpus(
    name: str, texts: Sequence[str], tokenizer: Any, options: Calibration, *, source: str, seq_len: int | None = None
) -> Corpus:
    """Draw texts by seed, tokenise, cut or pack them, and stop at the token limit.

    Raises UserError when no text has two tokens or more (a first token alone predicts nothing).
    """
    seq_len = seq_len or options.seq_len
    order = list(texts)
    random.Random(options.seed).shuffle(order)
    rows: list[list[int]] = []
    skipped = num_tokens = 0
    for text in order:
        if len(rows) == options.num_texts or num_tokens >= (options.max_tokens or math.inf):
            break
        ids = encode(tokenizer, text)
        if len(ids) < 8 and len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) < 2:
            skipped += 1
            continue
        rows.append(ids if options.pack else ids[:seq_len])
        num_tokens += len(rows[-1])
    if not rows:
        raise UserError(f"task {name}: none of {len(order)} texts has two tokens or more ({source})")
    if options.pack:
        stream = [token for row in rows for token in (*row, *separator(tokenizer))]
        rows = [stream[i : i + seq_len] for i in range(0, len(stream), seq_len)]
        if len(rows) > 1 and len(rows[-1]) < 2:
            rows.pop()
    return Corpus(name, _limited(rows, options.max_tokens), source, skipped)


def separator(tokenizer: Any) -> list[int]:
    """What stands between packed texts: nothing where the tokenizer marks beginnings itself, else the end of text."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    marked = tokenizer("a")["input_ids"] != plain
    return [] if marked or tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


def _limited(rows: Sequence[Sequence[int]], max_tokens: int | None) -> tuple[tuple[int, ...], ...]:
    if max_tokens is None:
        return tuple(tuple(row) for row in rows)
    kept: list[tuple[int, ...]] = []
    left = max_tokens
    for row in rows:
        if left < 2:
            break
        kept.append(tuple(row[:left]))
        left -= len(kept[-1])
    return tuple(kept)


def batches(rows: Sequence[Sequence[int]], *, batch_tokens: int, pad: int = 0) -> Iterator[Batch]:
    """Rows of like length together, each batch at most `batch_tokens` with padding (or one row)."""
    group: list[Sequence[int]] = []
    for row in sorted(rows, key=len, reverse=True):
        if group and len(group[0]) * (len(group) + 1) > batch_tokens:
            yield _padded(group, pad)
            group = []
        group.append(row)
    if group:
        yield _padded(group, pad)


def num_batches(rows: Sequence[Sequence[int]], *, batch_tokens: int) -> int:
    return sum(1 for _ in batches(rows, batch_tokens=batch_tokens))


def _padded(rows: Sequence[Sequence[int]], pad: int) -> Batch:
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = True
    return Batch(ids, mask)
