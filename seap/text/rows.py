"""A row of token ids of which some count: whose tokens statistics, damage and losses are of."""

from collections.abc import Sequence
from typing import Any


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


def cut_to(row: Sequence[int], count: int) -> Sequence[int]:
    """The beginning of a row in which so many places count, or all of it."""
    counted = counted_of(row)
    if counted is None:
        return row[:count]
    places = [place for place, counts in enumerate(counted) if counts]
    return row if len(places) <= count else row[: places[count - 1] + 2]  # with the token that it predicts
