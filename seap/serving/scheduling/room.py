"""What batches take of the room for tokens in flight.

A task's batch is a rectangle: as many rows as have places in its cache, free ones too, each with as many columns as the
batch will have until its last row is done. So that is what counts, not each row's own tokens.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from seap.serving.scheduling.rows import Rows
from seap.serving.scheduling.tickets import Ticket


@dataclass(frozen=True)
class Extent:
    """A batch: live rows and places for rows, columns now and those its buffers have, and the most that a row has still
    to write."""

    live: int = 0
    places: int = 0
    width: int = 0
    buffers: int = 0
    left: int = 0

    @classmethod
    def of(cls, rows: Rows | None) -> "Extent":
        if rows is None:
            return cls()
        left = most_left([*rows.live.values()])
        return cls(len(rows), len(rows.owners), rows.mask.shape[1], rows.columns, left)

    def joined(self, ticket: Ticket) -> "Extent":
        """With one more row, whose prompt is read."""
        live, width = self.live + 1, max(self.width, len(ticket.request.ids))
        return replace(self, live=live, places=max(self.places, live), width=width, left=max(self.left, ticket.left))

    @property
    def columns(self) -> int:
        """The most that it will have: rows end at one place, so what is left to write comes after the widest."""
        return max(self.buffers, self.width + self.left)

    @property
    def slots(self) -> int:
        return self.places * self.columns


class Held:
    """What is in flight of all tasks, and would be with one more request of this one. joining: those that it takes."""

    def __init__(self, running: Mapping[str, Rows], task: str, joining: Sequence[Ticket]) -> None:
        self.own = Extent.of(running.get(task))
        for one in joining:
            self.own = self.own.joined(one)
        owners = [*joining, *(running[task].live.values() if task in running else ())]
        self.rows = Counter[str](one.request.client for one in owners)
        self.elsewhere, self.slots_elsewhere = 0, Counter[str]()
        for name in running.keys() - {task}:
            extent = Extent.of(running[name])
            self.elsewhere += extent.slots
            for one in running[name].live.values():
                self.slots_elsewhere[one.request.client] += extent.columns

    def with_(self, ticket: Ticket) -> int:
        """Slots of all batches."""
        return self.elsewhere + self.own.joined(ticket).slots

    def of_client(self, ticket: Ticket) -> int:
        """Slots of its client's rows with it; 0 where it is the client's only one."""
        client = ticket.request.client
        if not client or not (self.rows[client] or self.slots_elsewhere[client]):
            return 0
        return self.slots_elsewhere[client] + (self.rows[client] + 1) * self.own.joined(ticket).columns


def most_left(tickets: Sequence[Ticket]) -> int:
    return max((one.left for one in tickets), default=0)


def columns_of(tickets: Sequence[Ticket]) -> int:
    """What a batch of these alone will have."""
    return max(len(one.request.ids) for one in tickets) + most_left(tickets)
