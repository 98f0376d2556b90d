"""What one client may take: a share of the places, and its turn among those who wait.

A client is a string: a key or an address. `Places` counts what is held now. `FairQueue` orders what waits by
start-time fair queueing (Goyal, Vin, Cheng 1997): a request starts, in virtual time, where its client's last one
ended or where the queue is now, whichever is later, and lasts as long as it has tokens; so clients take turns by
tokens, and whoever has asked for much waits behind those who have asked for little, but never for ever.
"""

import bisect
import contextlib
from collections import Counter
from collections.abc import Iterator

from seap.serving.scheduling.tickets import FullError, Ticket


def most_for_one(total: int, share: float, others: int) -> int:
    """What one client may hold of `total`: a share of what the others leave, at least 1.

    So that a few who take all they get never fill the whole (dynamic thresholds: Choudhury and Hahne, 1998).
    """
    return max(int((total - others) * share), 1)


class Places:
    """So many things may be held at a time, by one client a share of what the others leave. Not for several threads."""

    def __init__(self, total: int, share: float, *, retry_after: int = 1, what: str = "requests") -> None:
        self.total, self.share, self.retry_after, self.what = total, share, retry_after, what
        self.held: Counter[str] = Counter()

    @contextlib.contextmanager
    def taken(self, client: str) -> Iterator[None]:
        """Hold a place. Raises FullError where there is none, or none for this client."""
        self.take(client, 1)
        try:
            yield
        finally:
            self.give_back(client, 1)

    def take(self, client: str, number: int) -> None:
        if self.held.total() + number > self.total:
            raise FullError(self.retry_after)
        most = most_for_one(self.total, self.share, self.held.total() - self.held[client])
        if self.held[client] + number > most:
            raise FullError(self.retry_after, f"{most} {self.what} are the most for one client at a time")
        self.held[client] += number

    def give_back(self, client: str, number: int) -> None:
        self.held[client] -= number
        if not self.held[client]:
            del self.held[client]


class FairQueue:
    """Tickets that wait, in the order in which they are to be taken."""

    def __init__(self) -> None:
        self._tickets: list[Ticket] = []
        self._now = 0.0
        self._ends: dict[str, float] = {}

    def append(self, ticket: Ticket) -> None:
        client = ticket.request.client
        ticket.turn = max(self._now, self._ends.get(client, 0.0))
        self._ends[client] = ticket.turn + ticket.request.tokens
        bisect.insort(self._tickets, ticket, key=lambda one: one.turn)

    def take(self, ticket: Ticket) -> None:
        """Remove a ticket whose turn it is."""
        clients = len({one.request.client for one in self._tickets})
        self._tickets.remove(ticket)
        self._now = max(self._now, ticket.turn) + ticket.request.tokens / clients
        self._ends = {client: end for client, end in self._ends.items() if end > self._now}

    def drop(self, ticket: Ticket) -> None:
        """Remove a ticket that gives its turn up."""
        self._tickets.remove(ticket)
        self._ends[ticket.request.client] = max(self._ends.get(ticket.request.client, 0.0) - ticket.request.tokens, 0.0)

    def __iter__(self) -> Iterator[Ticket]:
        return iter(self._tickets)

    def __len__(self) -> int:
        return len(self._tickets)
