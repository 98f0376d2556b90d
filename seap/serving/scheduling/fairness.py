"""What one client may take: a share of the places, its turn among those who wait, and what it may ask for at once.

A client is a string: a key or an address. `Places` counts what is held now. `FairQueue` orders what waits by
start-time fair queueing (Goyal, Vin, Cheng 1997): a request starts, in virtual time, where its client's last one
ended or where the queue is now, whichever is later, and lasts as long as it has tokens; so clients take turns by
tokens, and whoever has asked for much waits behind those who have asked for little, but never for ever.
"""

import bisect
import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from seap.errors import UserError
from seap.serving.options import Limits
from seap.serving.scheduling.tickets import FullError, Request, Ticket


def most_for_one(total: int, share: float, others: int) -> int:
    """What one client may hold of `total`: a share of what the others leave, at least 1.

    So that a few who take all they get never fill the whole (dynamic thresholds: Choudhury and Hahne, 1998).
    """
    return max(int((total - others) * share), 1)


def check_possible(requests: Sequence[Request], limits: Limits) -> None:
    """Raise UserError for what a server of these limits can't take though nothing else is there."""
    most = max(one.tokens for one in requests)
    if most > limits.max_tokens_in_flight:
        raise UserError(f"{most} tokens with max_tokens; the server holds {limits.max_tokens_in_flight} in all")
    tokens = sum(one.tokens for one in requests)
    if tokens > limits.max_queued_tokens:
        raise UserError(
            f"{len(requests)} answers of {tokens} tokens in all, prompts and max_tokens; at most "
            f"{limits.max_queued_tokens} may wait; lower max_tokens or n, or send fewer prompts at a time"
        )
    if len(requests) > limits.max_queue:
        raise UserError(
            f"{len(requests)} answers; at most {limits.max_queue} may wait; lower n, or send fewer prompts at a time"
        )


def check_room(
    requests: Sequence[Request], waiting: Sequence[Request], limits: Limits, retry_after: Callable[[int], int]
) -> None:
    """Raise FullError where these may not wait beside those: too much of all, or of the client's beside what it has.

    retry_after: seconds by tokens that wait.
    """
    added, tokens = [one.tokens for one in requests], sum(one.tokens for one in waiting)
    if len(waiting) + len(added) > limits.max_queue or tokens + sum(added) > limits.max_queued_tokens:
        raise FullError(retry_after(tokens))
    client = requests[0].client
    own = [one.tokens for one in waiting if one.client == client != ""]
    places = most_for_one(limits.max_queue, limits.client_share, len(waiting) - len(own))
    room = most_for_one(limits.max_queued_tokens, limits.client_share, tokens - sum(own))
    if own and (len(own) + len(added) > places or sum(own) + sum(added[:-1]) > room):
        raise FullError(retry_after(sum(own)), "what waits of yours is the most for one client")


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
