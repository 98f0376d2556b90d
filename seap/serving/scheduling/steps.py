"""Steps of a batch in which a row that makes the model raise fails alone.

A batch that raises is halved until the row is found; the halves that don't raise keep what they computed, so nobody's
step is run twice and nobody's cache holds what a failed step wrote.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from seap.serving.scheduling.room import Extent
from seap.serving.scheduling.rows import Rows, decode, prefill, prefill_scored
from seap.serving.scheduling.tickets import Ticket
from seap.writing.sampling import Token

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Part:
    """Rows that made a step together, and the next token's logits (B, V). read: of scored prompts, one for each row."""

    rows: Rows
    logits: Tensor
    read: tuple[tuple[Token, ...], ...] = ()


@dataclass(frozen=True)
class Stepped:
    """What a step came to: the parts that made it, and whose rows failed, with the reason."""

    parts: tuple[Part, ...]
    failed: tuple[tuple[Ticket, Exception], ...] = ()

    def __add__(self, other: "Stepped") -> "Stepped":
        return Stepped(self.parts + other.parts, self.failed + other.failed)


def read(model: Any, tickets: Sequence[Ticket]) -> Stepped:
    """Read the tickets' prompts; those whose prompts are scored apart from the others."""

    def plain(some: Sequence[Ticket]) -> Part:
        return Part(*prefill(model, [ticket.request.ids for ticket in some], some, most=Extent().joined(*some).columns))

    def scored(some: Sequence[Ticket]) -> Part:
        tops = [ticket.request.scored or 0 for ticket in some]
        prompts = [ticket.request.ids for ticket in some]
        rows, logits, told = prefill_scored(model, prompts, some, tops, most=Extent().joined(*some).columns)
        return Part(rows, logits, tuple(told))

    found = Stepped(())
    for attempt, wanted in ((plain, False), (scored, True)):
        if some := [ticket for ticket in tickets if (ticket.request.scored is not None) == wanted]:
            parts, failed = isolated(attempt, some)
            found += Stepped(tuple(parts), tuple(failed))
    return found


def step(model: Any, rows: Rows) -> Stepped:
    """Decode one token for every row."""
    length = rows.mask.shape[1]

    def attempt(places: Sequence[int]) -> Part:
        own = rows if len(places) == len(rows) else rows.part(places)
        try:
            return Part(own, decode(model, own))
        except Exception:
            own.rewind_(length)
            raise

    parts, failed = isolated(attempt, [*rows.live])
    return Stepped(tuple(parts), tuple((rows.owners[place], error) for place, error in failed))


def isolated(
    attempt: Callable[[Sequence[Item]], Result], items: Sequence[Item]
) -> tuple[list[Result], list[tuple[Item, Exception]]]:
    """What `attempt` makes of the items, of as many at a time as go together; and the items that fail alone."""
    try:
        return [attempt(items)], []
    except Exception as error:
        if len(items) == 1:
            return [], [(items[0], error)]
    middle = len(items) // 2
    halves = [isolated(attempt, items[:middle]), isolated(attempt, items[middle:])]
    return [one for made, _ in halves for one in made], [one for _, failed in halves for one in failed]
