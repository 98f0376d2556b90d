"""The scheduler: requests of many tasks through one task runtime, batched by task, continuously and fairly.

One thread owns the model. Its turns are short: it takes the task that was served least (in seconds), lets that task's
waiting requests join (their prompts read together), decodes a few steps for all its rows, and looks again; rows that
are done leave after any step. A task that comes back from rest starts level with the least served, so no task waits
longer than the others' turns. What is in flight is bounded in tokens as they lie in memory (`room`); the first request
that finds no room is the next to get some, so that small ones don't pass a large one for ever, and batches give up what
they don't need. What waits is bounded in requests and tokens: beyond it, `submit` refuses. Requests without a task are
routed first, together.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from seap.models.families import refuse_states
from seap.serving.networks.runtime import DENSE, TaskRuntime
from seap.serving.options import Limits
from seap.serving.routing.router import Route, Router
from seap.serving.scheduling.fairness import FairQueue, check_possible, check_room
from seap.serving.scheduling.room import Extent, Held
from seap.serving.scheduling.rows import Rows
from seap.serving.scheduling.steps import Stepped, isolated, read, step
from seap.serving.scheduling.telling import Teller, failed
from seap.serving.scheduling.tickets import Event, Request, Started, StoppedError, Ticket
from seap.writing.sampling import Writer

ROUTED = 32  # prompts that the router reads before others get a turn
CONTEXT = 8  # tokens of a prompt that decide how an answer's first one is written behind it

FAILED = "the scheduler has failed; the server must be started again"

log = logging.getLogger(__name__)


class Scheduler:
    """Runs tickets on a thread of its own, from `start` to `close`."""

    def __init__(
        self,
        runtime: TaskRuntime,
        tokenizer: Any,
        limits: Limits,
        *,
        router: Router | None = None,
        fallback: str = DENSE,
    ) -> None:
        instead = "call model.generate, or serve one pruned checkpoint with transformers or vLLM"
        refuse_states(runtime.model.config, "serving requests together", instead)
        self.runtime, self.tokenizer, self.limits = runtime, tokenizer, limits
        self.router, self.fallback = router, runtime.known(fallback)
        self.unrouted = FairQueue()
        self.waiting = {task: FairQueue() for task in runtime.tasks}
        self.running: dict[str, Rows] = {}
        self.served = dict.fromkeys(runtime.tasks, 0.0)
        self.blocked: Ticket | None = None  # found no room: nobody else may join before it
        self.speed = 100.0  # tokens read or written per second, over the last turns
        self.num_tokens = 0
        size = runtime.model.get_input_embeddings().weight.shape[0]
        self.teller = Teller(frozenset(_end_tokens(runtime.model, tokenizer)), size)
        self._changed = threading.Condition()
        self._closing = self._dropping = False
        self._why = "the server is stopping"  # once it is closing
        self._thread = threading.Thread(target=self._run, name="seap-scheduler", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self, *, timeout: float | None = None) -> None:
        """Finish what was accepted, then stop; what isn't done after the timeout fails."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout)
        self._dropping = True
        self._thread.join()

    def submit(self, requests: Sequence[Request], sinks: Sequence[Callable[[Event], None]]) -> list[Ticket]:
        """Take in what one client asks for together: all of it or nothing.

        Raises FullError when too much waits, UserError for what could never run, and StoppedError once it is closed
        or has failed.
        """
        check_possible(requests, self.limits)
        tickets = [self._ticket(request, sink) for request, sink in zip(requests, sinks, strict=True)]
        with self._changed:
            if self._closing:
                raise StoppedError(self._why)
            check_room(requests, [one.request for one in self._all_waiting()], self.limits, self.retry_after)
            for ticket in tickets:
                if ticket.task is None:
                    self.unrouted.append(ticket)
                else:
                    self._enqueue(ticket, ticket.task)
                    ticket.sink(Started(ticket.task, None))
            self._changed.notify()
        return tickets

    def _ticket(self, request: Request, sink: Callable[[Event], None]) -> Ticket:
        if request.task is not None:
            self.runtime.known(request.task)
        before = request.ids[-CONTEXT:] if request.continues else ()
        return Ticket(request, sink, Writer(self.tokenizer, request.stop, before))

    def cancel(self, ticket: Ticket) -> None:
        """Free a ticket's place: at once where it waits, after the step at hand where it runs."""
        with self._changed:
            ticket.cancelled = True
            for queue in (self.unrouted, *self.waiting.values()):
                if ticket in queue:
                    queue.drop(ticket)
            if self.blocked is ticket:
                self.blocked = None
            self._changed.notify()

    def retry_after(self, queued_tokens: int) -> int:
        """Seconds until about half of what waits is done, at the speed of late."""
        return int(min(max(queued_tokens / 2 / max(self.speed, 1.0), self.limits.retry_after), 60))

    @property
    def alive(self) -> bool:
        """Whether requests are still run."""
        return self._thread.is_alive() and not self._closing

    @property
    def num_waiting(self) -> int:
        return len(self._all_waiting())

    @property
    def num_running(self) -> dict[str, int]:
        return {task: len(rows) for task, rows in [*self.running.items()]}

    def _all_waiting(self) -> list[Ticket]:
        return [*self.unrouted, *(ticket for queue in self.waiting.values() for ticket in queue)]

    def _enqueue(self, ticket: Ticket, task: str) -> None:
        """Behind the others of its task; a task that rested starts level with the least served of the busy ones."""
        busy = [name for name in self.waiting if self._has_work(name)]
        if task not in busy and busy:
            self.served[task] = max(self.served[task], min(self.served[name] for name in busy))
        ticket.task = task
        self.waiting[task].append(ticket)

    def _has_work(self, task: str) -> bool:
        return bool(self.waiting[task]) or task in self.running

    def _run(self) -> None:
        try:
            self._run_until_closed()
        except Exception:  # nobody would answer those who wait
            log.exception("the scheduler has failed")
            with self._changed:
                self._closing, self._why = True, FAILED
            self._fail_all(FAILED)

    def _run_until_closed(self) -> None:
        while True:
            with self._changed:
                while not (self.unrouted or self.running or any(self.waiting.values()) or self._closing):
                    self._changed.wait()
                if self._closing and not (self.unrouted or self.running or any(self.waiting.values())):
                    return
            if self._dropping:
                self._fail_all("the server is shutting down")
                return
            self._route_new()
            ready = [task for task in self.waiting if task in self.running or self._next_of(task)]
            if ready:
                self._turn(min(ready, key=lambda task: self.served[task]))

    def _route_new(self) -> None:
        with self._changed:
            tickets = [*self.unrouted][:ROUTED]
            for ticket in tickets:
                self.unrouted.take(ticket)
        routes = self._routes(tickets)
        for ticket, route in zip(tickets, routes, strict=True):
            known = route is not None and route.task in self.waiting
            task = route.task if known and route is not None and route.task else self.fallback
            with self._changed:
                if not ticket.cancelled:
                    self._enqueue(ticket, task)
            ticket.sink(Started(task, route))

    def _routes(self, tickets: Sequence[Ticket]) -> list[Route | None]:
        """One each; None where the router fails on a prompt: that request still runs, on the fallback."""
        router = self.router
        if router is None or not tickets:
            return [None] * len(tickets)

        def attempt(some: Sequence[int]) -> list[tuple[int, Route]]:
            prompts = [tickets[place].request.prompt for place in some]
            return [*zip(some, router.predict(self.runtime.model, self.tokenizer, prompts), strict=True)]

        made, failed = isolated(attempt, range(len(tickets)))
        for _, error in failed:
            log.error("routing failed", exc_info=error)
        known = dict(pair for pairs in made for pair in pairs)
        return [known.get(place) for place in range(len(tickets))]

    def _turn(self, task: str) -> None:
        """Let waiting rows of a task join, and decode a few steps."""
        started, before = time.perf_counter(), self.num_tokens
        joining = self._admit(task)
        at_work = [*joining, *(self.running[task].live.values() if task in self.running else ())]
        try:
            with self.runtime.task(task) as model:
                if joining:
                    self._settle(task, read(model, joining), self.running.get(task))
                for _ in range(self.limits.steps):
                    self._sweep(task)
                    if task not in self.running:
                        break
                    self._settle(task, step(model, self.running[task]))
                self._sweep(task)
                if self.blocked is not None and task in self.running:
                    self.running[task].tighten_()
        except Exception as error:  # no row's fault: the network couldn't be switched to, or there is no room to join
            log.error("a turn of task %s failed", task)
            self.running.pop(task, None)
            for ticket in at_work:
                failed(ticket, error)
        seconds = time.perf_counter() - started
        self.served[task] += seconds
        if done := self.num_tokens - before + sum(len(ticket.request.ids) for ticket in joining):
            self.speed = 0.9 * self.speed + 0.1 * done / seconds

    def _admit(self, task: str) -> list[Ticket]:
        """The waiting requests that fit beside what runs: rows of the task, tokens of all tasks together, and those
        that are read together, padded as they will be."""
        room = self.limits.max_rows - (len(self.running[task]) if task in self.running else 0)
        taken: list[Ticket] = []
        with self._changed:
            while len(taken) < room and (ticket := self._next_of(task, taken)):
                longest = max(len(one.request.ids) for one in (*taken, ticket))
                if taken and (len(taken) + 1) * longest > self.limits.prefill_tokens:
                    break
                self.waiting[task].take(ticket)
                if self.blocked is ticket:
                    self.blocked = None
                taken.append(ticket)
        return taken

    def _next_of(self, task: str, joining: Sequence[Ticket] = ()) -> Ticket | None:
        """The task's next request, if there is room for it beside what runs and what joins; clients that have their
        share of what runs are passed over."""
        limits = self.limits
        with self._changed:
            queue = self.waiting[task]
            if not queue or (self.blocked is not None and self.blocked not in queue):
                return None
            held = Held(self.running, task, joining)
            most = max(int(limits.max_rows * limits.client_share), 1)
            for ticket in queue if self.blocked is None else [self.blocked]:
                own = held.of_client(ticket)
                if own > limits.max_tokens_in_flight * limits.client_share:
                    continue
                if own and held.rows[ticket.request.client] >= most:
                    continue
                if held.with_(ticket) <= limits.max_tokens_in_flight:
                    return ticket
                self.blocked = ticket
                break
            return None

    def _settle(self, task: str, made: Stepped, running: Rows | None = None) -> None:
        """Choose tokens after a step, and put what goes on together, beside what was running before."""
        for ticket, error in made.failed:
            failed(ticket, error)
        together = running
        for part in made.parts:
            self.num_tokens += self.teller.advance_(part)
            if together is None or not len(together):
                together = part.rows
            else:
                together.join_(part.rows)
        if together is None or not len(together):
            self.running.pop(task, None)
        else:
            together.bound_(Extent.of(together).columns)
            self.running[task] = together

    def _sweep(self, task: str) -> None:
        """Drop rows whose clients hung up, and a group without rows."""
        if task in self.running:
            rows = self.running[task]
            rows.leave_([place for place, owner in rows.live.items() if owner.cancelled])
            rows.bound_(Extent.of(rows).columns)
            if not len(rows):
                del self.running[task]

    def _fail_all(self, message: str) -> None:
        running = [owner for rows in self.running.values() for owner in rows.live.values()]
        for ticket in [*self._all_waiting(), *running]:
            ticket.fail(message)


def _end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """Tokens that end a text, by the model's generation config or its tokenizer."""
    found = getattr(model.generation_config, "eos_token_id", None)
    found = tokenizer.eos_token_id if found is None else found
    return set(found) if isinstance(found, list) else {found} - {None}
