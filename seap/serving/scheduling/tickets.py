"""What goes into the scheduler and what comes out: requests, tickets and their events."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from seap.serving.routing.router import Route
from seap.writing.sampling import Sampler, Token, Writer


class FullError(Exception):
    """No more requests can wait; `retry_after` in seconds."""

    def __init__(self, retry_after: int, why: str = "the server is full") -> None:
        super().__init__(f"{why}; try again in {retry_after} s")
        self.retry_after = retry_after


class StoppedError(Exception):
    """No request is run any more; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked for. task None: route it by `prompt`, its text.

    max_tokens 0 reads the prompt and writes nothing. scored: how many likeliest tokens to tell of each place in the
    prompt, beside its own; None tells nothing. stop_ids: tokens that end the text, beside the model's own unless
    ignore_ends. continues: the client reads the answer's text right behind the prompt's. client: whom it counts for;
    nobody's may take all places.
    """

    ids: tuple[int, ...]
    prompt: str
    max_tokens: int
    task: str | None = None
    sampler: Sampler = field(default_factory=Sampler)
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    ignore_ends: bool = False
    scored: int | None = None
    continues: bool = False
    client: str = ""

    @property
    def tokens(self) -> int:
        """Most tokens that it will hold in the cache."""
        return len(self.ids) + self.max_tokens


@dataclass(frozen=True)
class Started:
    """The task is known."""

    task: str
    route: Route | None


@dataclass(frozen=True)
class Read:
    """The prompt's tokens with their log-probabilities; nothing predicts the first one."""

    tokens: tuple[Token, ...]


@dataclass(frozen=True)
class Piece:
    """One token, and the text that it made certain (often its own, at times none or more)."""

    text: str
    token: Token


@dataclass(frozen=True)
class Finished:
    """The end: `stop` (end of text or a stop sequence) or `length`; text: what was held back."""

    reason: str
    text: str
    num_tokens: int


@dataclass(frozen=True)
class Failed:
    """It could not be run; the message is for the user."""

    message: str


Event = Started | Read | Piece | Finished | Failed


class Ticket:
    """A request on its way. `sink` gets its events, on the scheduler's thread."""

    def __init__(self, request: Request, sink: Callable[[Event], None], writer: Writer) -> None:
        self.request, self.sink, self.writer = request, sink, writer
        self.task = request.task
        self.submitted = time.monotonic()
        self.num_tokens = 0
        self.turn = 0.0  # of `fairness.FairQueue`
        self.cancelled = self.done = False

    @property
    def left(self) -> int:
        """Most tokens that it has still to write."""
        return self.request.max_tokens - self.num_tokens

    def fail(self, message: str) -> None:
        """Tell the failure, unless the end was told before."""
        if not self.done:
            self.done = True
            self.sink(Failed(message))

    def finish(self, reason: str, text: str) -> None:
        self.done = True
        self.sink(Finished(reason, text, self.num_tokens))
