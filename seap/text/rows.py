"""A row of token ids of which some count: whose tokens statistics, damage and losses are of; and a row with images."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Seen = Mapping[str, Tensor]  # what a model reads beside the ids of one row, by the names of its inputs
TYPES = "token_type_ids"  # in the name of what there is of each token, (1, T)


class CountedRow(tuple[int, ...]):
    """Token ids, and at which places what the model does counts: a place counts where the *next* token is an answer's.

    It is what predicts that token: the last token of a prompt counts, the last one of an answer doesn't. A row that is
    a plain tuple counts everywhere. Of slices the last place doesn't count.
    """

    counted: tuple[bool, ...]

    def __new__(cls, ids: Sequence[int], counted: Sequence[bool]) -> "CountedRow":
        row = super().__new__(cls, ids)
        row.counted = tuple(counted)
        assert len(row.counted) == len(row)
        return row

    def __getnewargs__(self) -> tuple[Any, ...]:  # for copies and other processes
        return tuple(self), self.counted

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CountedRow) and super().__eq__(other) is True and self.counted == other.counted

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = tuple.__hash__

    def __getitem__(self, place: Any) -> Any:
        found = super().__getitem__(place)
        if not isinstance(place, slice):
            return found
        counted = self.counted[place]
        return CountedRow(found, (*counted[:-1], False) if counted else ())  # the token after its last one is cut off


class SeenRow(CountedRow):
    """A row with images: `places` says where what the model sees of them stands, `seen` is what its processor made.

    A slice has all images or none: it ends before the first or begins behind the last, whichever is longer, where it
    would have some of them.
    """

    places: tuple[bool, ...]
    seen: Seen

    def __new__(cls, ids: Sequence[int], counted: Sequence[bool], places: Sequence[bool], seen: Seen) -> "SeenRow":
        row = super().__new__(cls, ids, counted)
        assert isinstance(row, SeenRow)
        row.places, row.seen = tuple(places), dict(seen)
        assert len(row.places) == len(row)
        return row

    def __getnewargs__(self) -> tuple[Any, ...]:
        return tuple(self), self.counted, self.places, self.seen

    def __eq__(self, other: object) -> bool:
        if not (isinstance(other, SeenRow) and super().__eq__(other) is True and self.places == other.places):
            return False
        own, others = self.seen, other.seen
        return own.keys() == others.keys() and all(torch.equal(own[name], others[name]) for name in own)

    __hash__ = tuple.__hash__

    def __getitem__(self, place: Any) -> Any:
        found = super().__getitem__(place)
        if not isinstance(place, slice):
            return found
        if len(found) == len(self):
            return self
        kept = self.places[place]
        if sum(kept) == sum(self.places):
            seen = {name: value[:, place] if TYPES in name else value for name, value in self.seen.items()}
            return SeenRow(found, found.counted, kept, seen)
        if not any(kept):
            return found
        first, last = kept.index(True), len(kept) - 1 - kept[::-1].index(True)
        return found[:first] if first >= len(kept) - 1 - last else found[last + 1 :]


def places_of(row: Sequence[int]) -> tuple[bool, ...] | None:
    """Where a row has what a model sees; None for a row of text."""
    return row.places if isinstance(row, SeenRow) else None


def seen_of(row: Sequence[int]) -> Seen:
    return row.seen if isinstance(row, SeenRow) else {}


def look_of(row: Sequence[int]) -> tuple[Any, ...]:
    """Rows whose looks are the same can be in one batch."""
    seen = seen_of(row)
    return tuple((n, seen[n].dtype, () if TYPES in n else seen[n].shape[1:]) for n in sorted(seen))


def row_of(ids: Sequence[int], written: Sequence[bool] | None) -> tuple[int, ...]:
    """A row of tokens of which some are an answer's (`written`); all count where that isn't said."""
    return tuple(ids) if written is None else CountedRow(ids, [*written[1:], False])


def counted_of(row: Sequence[int]) -> tuple[bool, ...] | None:
    """Which places of a row count; None for all."""
    return row.counted if isinstance(row, CountedRow) else None


def num_counted(row: Sequence[int]) -> int:
    """How many places of a row count."""
    counted = counted_of(row)
    return len(row) if counted is None else sum(counted)


def anchored(row: tuple[int, ...]) -> tuple[int, ...]:
    """The row with its first place counted too: there stand the few huge activations that all later tokens attend to.

    Statistics without it lose them, and every token with them (docs/findings.md, Which tokens to calibrate on).
    """
    counted, places = counted_of(row), places_of(row)
    if not counted or (places and places[0]):  # an image there counts as --images says
        return row
    marks = (True, *counted[1:])
    return SeenRow(row, marks, row.places, row.seen) if isinstance(row, SeenRow) else CountedRow(row, marks)


def cut_to(row: Sequence[int], count: int) -> Sequence[int]:
    """The beginning of a row in which so many places count, or all of it."""
    counted = counted_of(row)
    if counted is None:
        return row[:count]
    places = [place for place, counts in enumerate(counted) if counts]
    if len(places) <= count:
        return row
    end = places[count - 1] + 2  # with the token that it predicts
    return row if any((places_of(row) or ())[end:]) else row[:end]  # images stay whole
