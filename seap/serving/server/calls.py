"""One HTTP request as tickets of the scheduler: submitted together, their events read by the event loop."""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from seap.errors import UserError
from seap.serving.scheduling.scheduler import Scheduler
from seap.serving.scheduling.tickets import (
    Event,
    Failed,
    Finished,
    FullError,
    Piece,
    Read,
    Request,
    Started,
    StoppedError,
    Ticket,
)
from seap.serving.server.answers import Choice
from seap.serving.server.metrics import Metrics


class ModelError(Exception):
    """The model failed on a request; the message is for the user."""


class Outbox:
    """Events on their way from other threads to the event loop, which is woken once for all that wait."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[tuple[asyncio.Queue[Any], Any]] = []

    def put(self, loop: asyncio.AbstractEventLoop, queue: asyncio.Queue[Any], event: Any) -> None:
        with self._lock:
            self._waiting.append((queue, event))
            if len(self._waiting) > 1:
                return  # who came first has woken the loop
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(self._empty)

    def _empty(self) -> None:
        with self._lock:
            taken, self._waiting = self._waiting, []
        for queue, event in taken:
            queue.put_nowait(event)


class Call:
    """The choices of one HTTP request. Use as a context manager: leaving it frees whatever isn't done."""

    def __init__(self, scheduler: Scheduler, metrics: Metrics, outbox: Outbox) -> None:
        self.scheduler, self.metrics, self.outbox = scheduler, metrics, outbox
        self.choices: list[Choice] = []
        self.tickets: list[Ticket] = []
        self.began = time.monotonic()
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._early: list[tuple[Choice, Piece | Finished]] = []

    def submit(self, requests: Sequence[Request], prompts: Sequence[int]) -> None:
        """prompts: the tokens that each request's prompt counts for. Raises what `Scheduler.submit` does, with nothing
        submitted."""
        loop = asyncio.get_running_loop()

        def sink_of(place: int) -> Callable[[Event], None]:
            return lambda event: self.outbox.put(loop, self._events, (place, event))

        self.choices = [Choice(place, tokens) for place, tokens in enumerate(prompts)]
        self.tickets = self.scheduler.submit(requests, [sink_of(place) for place in range(len(requests))])

    def __enter__(self) -> "Call":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        refused = kind is not None and issubclass(kind, FullError | StoppedError | UserError)
        outcome = "failed" if kind is not None and issubclass(kind, ModelError) else "hung up"
        for ticket, choice in zip(self.tickets, self.choices, strict=False):
            if choice.reason is None:
                self.scheduler.cancel(ticket)
                if not refused:
                    self.metrics.requests.labels(ticket.task or "unrouted", outcome).inc()

    async def started(self) -> None:
        """Wait until every choice's task is known."""
        while any(choice.started is None for choice in self.choices):
            found = await self._next()
            if found is not None:
                self._early.append(found)

    async def events(self) -> AsyncIterator[tuple[Choice, Piece | Finished]]:
        """Events in order, each before it is added to its choice, until all choices are finished."""
        while any(choice.reason is None for choice in self.choices):
            found = self._early.pop(0) if self._early else await self._next()
            if found is not None:
                choice, event = found
                yield choice, event
                self._count(choice, event)
                choice.add(event)

    async def _next(self) -> tuple[Choice, Piece | Finished] | None:
        place, event = await self._events.get()
        if isinstance(event, Failed):
            raise ModelError(event.message)
        if isinstance(event, Started):
            self.choices[place].started = event
            self.metrics.saw(event.route)
            return None
        if isinstance(event, Read):
            self.choices[place].read = event.tokens
            return None
        return self.choices[place], event

    def _count(self, choice: Choice, event: Piece | Finished) -> None:
        assert choice.started is not None
        task, since = choice.started.task, time.monotonic() - self.began
        if isinstance(event, Piece):
            self.metrics.tokens.labels(task).inc()
            if not choice.tokens:
                self.metrics.first.labels(task).observe(since)
        else:
            self.metrics.prompt_tokens.labels(task).inc(choice.prompt_tokens)
            self.metrics.latency.labels(task).observe(since)
            self.metrics.requests.labels(task, event.reason).inc()
