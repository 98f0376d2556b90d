"""Corpora: texts of a task → rows of token ids → padded batches; padding is never counted.

Shapes: B rows, T tokens.
"""

import hashlib
import logging
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from seap.errors import UserError
from seap.text.contrast import NO_CONTRAST, Contrast, contrast_of
from seap.text.encode import encode
from seap.text.items import Item
from seap.text.options import Calibration
from seap.text.rows import CountedRow, Seen, anchored, counted_of, look_of, num_counted, places_of, seen_of
from seap.text.wording import worded

log = logging.getLogger(__name__)

ENOUGH = 512  # tokens of a batch with which a processor is busy
ALIKE = 0.8  # of a batch's longest row: shorter ones wait for the next batch, since padding costs what tokens cost


@dataclass(frozen=True)
class Corpus:
    """The token rows that a task is measured on, and where they come from."""

    name: str
    rows: tuple[tuple[int, ...], ...]
    source: str
    skipped: int = 0  # texts shorter than two tokens
    uncounted: int = 0  # texts of which no token counts: without an answer, or with one beyond what is read
    in_template: int = 0  # texts that were read in the model's chat template
    contrast: Contrast = NO_CONTRAST  # of items with choices, beside the rows

    @property
    def num_tokens(self) -> int:
        return sum(len(row) for row in self.rows)

    @property
    def data_hash(self) -> str:
        """Of the token ids in the order used, and of which of them count where not all do."""
        counted = [counted_of(row) for row in self.rows]
        told = repr(self.rows) + (repr(counted) if any(counted) else "")
        found = hashlib.sha256(told.encode())
        for name, values in [pair for row in self.rows for pair in sorted(seen_of(row).items())]:
            found.update(f"{name} {tuple(values.shape)}".encode() + values.float().numpy().tobytes())
        return found.hexdigest()[:16]

    @property
    def num_counted(self) -> int:
        """Tokens that statistics are of."""
        return sum(num_counted(row) for row in self.rows)

    @property
    def told(self) -> dict[str, Any]:
        """For provenance; tokens that count, and texts in the chat template, where they aren't all or none."""
        told: dict[str, Any] = {"source": self.source, "tokens": self.num_tokens, "hash": self.data_hash}
        told |= {"counted": self.num_counted} if self.num_counted != self.num_tokens else {}
        return told | ({"in_template": self.in_template} if self.in_template else {})


@dataclass(frozen=True)
class Batch:
    """Right-padded rows: ids and mask (B, T); the mask is True on real tokens, `counted` on those that count.

    seen: of rows with images, what the model reads of each beside its ids; `places` is True where it stands. looked:
    what was made of that for the layers, once (`activations/looking.py`).
    """

    ids: Tensor
    mask: Tensor
    counted: Tensor
    places: Tensor | None = None
    seen: tuple[Seen, ...] = ()
    looked: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def said(self) -> Tensor:
        """(B, T): where what the model says counts: places that count and aren't followed by an image's."""
        if self.places is None:
            return self.counted
        after = torch.zeros_like(self.places)
        after[:, :-1] = self.places[:, 1:]
        return self.counted & ~after

    @property
    def predicting(self) -> Tensor:
        """(B, T − 1): where the next token is there, and what is said of it counts."""
        return self.said[:, :-1] & self.mask[:, 1:]

    def part(self, rows: slice) -> "Batch":
        """Some of its rows."""
        places = None if self.places is None else self.places[rows]
        return Batch(self.ids[rows], self.mask[rows], self.counted[rows], places, self.seen[rows])


def longest_sequence(model: Any, options: Calibration) -> int:
    """--seq-len, or what the model's positions allow if that is less."""
    return min(options.seq_len, getattr(model.config, "max_position_embeddings", None) or options.seq_len)


def build_corpus(
    name: str,
    texts: Sequence[str | Item],
    tokenizer: Any,
    options: Calibration,
    *,
    source: str,
    seq_len: int | None = None,
) -> Corpus:
    """Draw texts by seed, tokenise, cut or pack them, and stop at the token limit.

    Raises UserError when no text has two tokens or more (a first token alone predicts nothing), or none that counts.
    """
    seq_len = seq_len or options.seq_len
    order = [Item(text=text) if isinstance(text, str) else text for text in texts]
    random.Random(options.seed).shuffle(order)
    rows: list[tuple[int, ...]] = []
    skipped = uncounted = in_template = num_tokens = too_long = 0
    for place, item in enumerate(order):
        if len(rows) == options.num_texts or num_tokens >= (options.max_tokens or math.inf):
            break
        found = encode(tokenizer, worded(item, place, options.wording), options)
        if len(found.ids) < 8 and not found.in_template and _is_short(tokenizer, item.text):
            skipped += 1
            continue
        row = found.row if options.pack else found.row[:seq_len]
        if len(seen_of(row)) < len(found.seen):
            too_long += 1
            continue
        if not num_counted(row):
            uncounted += 1
            continue
        rows.append(row)
        num_tokens += len(row)
        in_template += found.in_template
    _tell_of_images(name, rows, too_long, seq_len, options)
    if not rows:
        raise _nothing(name, len(order), uncounted, options, source)
    if options.pack:
        rows = _packed(rows, separator(tokenizer), seq_len)
    rows = [anchored(row) for row in _limited(rows, options.max_tokens) if num_counted(row)]
    tokens = sum(map(len, rows))
    contrast = contrast_of(texts, tokenizer, options, seq_len=seq_len, num_tokens=tokens)
    return Corpus(name, tuple(rows), source, skipped, uncounted, in_template, contrast)


def _tell_of_images(name: str, rows: Sequence[Any], too_long: int, seq_len: int, options: Calibration) -> None:
    """Say which texts are left out for their images. Raises UserError where none is left, and for --pack."""
    if options.pack and any(map(seen_of, rows)):
        raise UserError(f"task {name}: --pack joins texts, and these have images; leave it out, or use --images none")
    if too_long:
        told = f"task {name}: the images of {too_long} texts don't fit into {seq_len} tokens (--seq-len)"
        if not rows:
            raise UserError(f"{told}, and no text is left; raise it, or give smaller images")
        log.warning("%s; they are left out", told)


def _is_short(tokenizer: Any, text: str) -> bool:
    return len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) < 2


def _nothing(name: str, num_texts: int, uncounted: int, options: Calibration, source: str) -> UserError:
    if not uncounted:
        return UserError(f"task {name}: none of {num_texts} texts has two tokens or more ({source})")
    wanted = {
        "answer": "an answer within --seq-len tokens; give prompts with answers, or use --weigh all",
        "generated": "an answer that the model wrote (column generated); seap corpus answer makes such data",
    }
    return UserError(
        f"task {name}: --weigh {options.weigh}: none of {num_texts} texts has {wanted[options.weigh]} ({source})"
    )


def _packed(rows: Sequence[Sequence[int]], between: Sequence[int], seq_len: int) -> list[tuple[int, ...]]:
    """Rows end to end in rows of `seq_len` tokens; what stands between them doesn't count where not all does."""
    stream = [token for row in rows for token in (*row, *between)]
    marks = [counted_of(row) for row in rows]
    counted = None
    if any(mark is not None for mark in marks):
        each = zip(rows, marks, strict=True)
        counted = [flag for row, mark in each for flag in (*(mark or [True] * len(row)), *([False] * len(between)))]
    starts = range(0, len(stream), seq_len)
    packed: list[tuple[int, ...]] = []
    for start in starts:
        ids = stream[start : start + seq_len]
        part = None if counted is None else counted[start : start + seq_len]
        if part is not None:
            part[-1] = False  # the token that it predicts is in the next row
        packed.append(tuple(ids) if part is None else CountedRow(ids, part))
    if len(packed) > 1 and len(packed[-1]) < 2:
        packed.pop()
    return packed


def separator(tokenizer: Any) -> list[int]:
    """What stands between packed texts: nothing where the tokenizer marks beginnings itself, else the end of text."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    marked = tokenizer("a")["input_ids"] != plain
    return [] if marked or tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


def _limited(rows: Sequence[Sequence[int]], max_tokens: int | None) -> tuple[tuple[int, ...], ...]:
    if max_tokens is None:
        return tuple(map(_frozen, rows))
    kept: list[tuple[int, ...]] = []
    left = max_tokens
    for row in rows:
        if left < 2:
            break
        kept.append(_frozen(row[:left]))
        left -= len(kept[-1])
    return tuple(kept)


def _frozen(row: Sequence[int]) -> tuple[int, ...]:
    return row if isinstance(row, CountedRow) else tuple(row)


def batches(rows: Sequence[Sequence[int]], *, batch_tokens: int, pad: int = 0) -> Iterator[Batch]:
    """Rows of like length together, each batch at most `batch_tokens` with padding (or one row)."""
    for group in _alike(rows, batch_tokens):
        yield _padded(group, pad)


def _alike(rows: Sequence[Sequence[int]], batch_tokens: int) -> Iterator[list[Sequence[int]]]:
    """The longest first; a batch that is large enough takes no rows that are much shorter than its first.

    Rows with images of other sizes, or none, begin another.
    """
    group: list[Sequence[int]] = []
    for row in sorted(rows, key=len, reverse=True):
        longest = len(group[0]) if group else 0
        is_full = longest * (len(group) + 1) > batch_tokens
        is_other = bool(group) and look_of(group[0]) != look_of(row)
        if group and (is_full or is_other or (longest * len(group) >= ENOUGH and len(row) < ALIKE * longest)):
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def num_batches(rows: Sequence[Sequence[int]], *, batch_tokens: int) -> int:
    return sum(1 for _ in _alike(rows, batch_tokens))


def num_with_padding(rows: Sequence[Sequence[int]], *, batch_tokens: int) -> int:
    """Tokens that run, padding among them."""
    return sum(len(group) * len(group[0]) for group in _alike(rows, batch_tokens))


def _padded(rows: Sequence[Sequence[int]], pad: int) -> Batch:
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    counted = mask.clone()
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = True
        own = counted_of(row)
        counted[i, : len(row)] = True if own is None else torch.tensor(own)
    if places_of(rows[0]) is None:
        return Batch(ids, mask, counted)
    places = torch.zeros_like(mask)
    for i, row in enumerate(rows):
        places[i, : len(row)] = torch.tensor(places_of(row))
    return Batch(ids, mask, counted, places, tuple(map(seen_of, rows)))
