"""What batches take of the room for tokens in flight.

A task's batch is a rectangle: as many rows as have places in its cache, free ones too, each with as many columns as the
widest. So that is what counts, at its largest from now on, and not each row's own tokens.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from seap.serving.scheduling.rows import Rows
from seap.serving.scheduling.tickets import Ticket


@dataclass(frozen=True)
class Extent:
    """A batch: places for rows, columns now and those its buffers have, and what each row has still to write, most
    first."""

    places: int = 0
    width: int = 0
    buffers: int = 0
    lefts: tuple[int, ...] = ()

    @classmethod
    def of(cls, rows: Rows | None) -> "Extent":
        if rows is None:
            return cls()
        lefts = sorted((owner.left for owner in rows.live.values()), reverse=True)
        return cls(len(rows.owners), rows.mask.shape[1], rows.columns, tuple(lefts))

    def joined(self, *tickets: Ticket) -> "Extent":
        """With more rows, whose prompts are read."""
        lefts = sorted((*self.lefts, *(one.left for one in tickets)), reverse=True)
        width = max(self.width, *(len(one.request.ids) for one in tickets))
        return Extent(max(self.places, len(lefts)), width, self.buffers, tuple(lefts))

    @property
    def slots(self) -> int:
        """The most that it has until the last row is done. While n rows are live there are fewer than 2n places, as
        `Rows.leave_` sees to it, and the n-th has written all before those that have less to write are done."""
        ends = enumerate(self.lefts, 1)
        wide = [min(self.places, 2 * n - 1) * (self.width + left) for n, left in ends]
        return max(self.places * max(self.buffers, self.width), *wide, 0)

    @property
    def columns(self) -> int:
        """The most that its buffers may have by that, with the places of now."""
        return min(self.width + max(self.lefts, default=0), self.slots // max(self.places, 1))


class Held:
    """What is in flight of all tasks, and would be with one more request of this one. joining: those that it takes."""

    def __init__(self, running: Mapping[str, Rows], task: str, joining: Sequence[Ticket]) -> None:
        here = [*joining, *(running[task].live.values() if task in running else ())]
        self.own = Extent.of(running.get(task))
        if joining:
            self.own = self.own.joined(*joining)
        self.rows = Counter[str](one.request.client for one in here)
        self.left, self.elsewhere, self.slots_elsewhere = Counter[str](), 0, Counter[str]()
        self.tokens = sum(one.request.tokens for one in here)
        for one in here:
            self.left[one.request.client] += one.left
        for name in running.keys() - {task}:
            extent = Extent.of(running[name])
            self.elsewhere += extent.slots
            for one in running[name].live.values():
                self.tokens += one.request.tokens
                self.slots_elsewhere[one.request.client] += extent.width + one.left

    def with_(self, ticket: Ticket) -> int:
        """Slots of all batches, or all rows' own tokens where those are more: not all of them are there at a time."""
        return max(self.elsewhere + self.own.joined(ticket).slots, self.tokens + ticket.request.tokens)

    def of_client(self, ticket: Ticket) -> int:
        """Slots of its client's rows with it, when each has written all; 0 where it is the client's only one."""
        client = ticket.request.client
        if not client or not (self.rows[client] or self.slots_elsewhere[client]):
            return 0
        width = max(self.own.width, len(ticket.request.ids))
        return self.slots_elsewhere[client] + (self.rows[client] + 1) * width + self.left[client] + ticket.left
