"""The scheduler: requests of many tasks through one task runtime, batched by task, continuously and fairly.

One thread owns the model. Its turns are short: it takes the task that was served least (in seconds), lets that task's
waiting requests join (their prompts read together), decodes a few steps for all its rows, and looks again; rows that
are done leave after any step. A task that comes back from rest starts level with the least served, so no task waits
longer than the others' turns. What is in flight is bounded in tokens; the first request that finds no room is the next
to get some, so that small ones don't pass a large one for ever. What waits is bounded in requests and tokens: beyond
it, `submit` refuses. Requests without a task are routed first, together.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from seap.errors import UserError
from seap.serving.networks.runtime import DENSE, TaskRuntime
from seap.serving.options import Limits
from seap.serving.routing.router import Route, Router
from seap.serving.scheduling.rows import Rows, decode, prefill
from seap.serving.scheduling.tickets import Event, Failed, Finished, FullError, Piece, Request, Started, Ticket
from seap.writing.sampling import Token, Writer

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
        self.runtime, self.tokenizer, self.limits = runtime, tokenizer, limits
        self.router, self.fallback = router, runtime.known(fallback)
        self.unrouted: deque[Ticket] = deque()
        self.waiting: dict[str, deque[Ticket]] = {task: deque() for task in runtime.tasks}
        self.running: dict[str, Rows] = {}
        self.served = dict.fromkeys(runtime.tasks, 0.0)
        self.blocked: Ticket | None = None  # found no room: nobody else may join before it
        self.speed = 100.0  # tokens per second, over the last turns
        self.num_tokens = 0
        self.ends = _end_tokens(runtime.model, tokenizer)
        self._changed = threading.Condition()
        self._closing = self._dropping = False
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

    def submit(self, request: Request, sink: Callable[[Event], None]) -> Ticket:
        """Take a request in. Raises FullError when too much waits, UserError for one that could never run."""
        if request.tokens > self.limits.max_tokens_in_flight:
            raise UserError(
                f"{request.tokens} tokens with max_tokens; the server holds {self.limits.max_tokens_in_flight} in all"
            )
        ticket = Ticket(request, sink, Writer(self.tokenizer, request.stop))
        with self._changed:
            if self._closing:
                raise FullError(self.limits.retry_after)
            held = [one.request.tokens for one in self._all_waiting()]
            if len(held) >= self.limits.max_queue or sum(held) + request.tokens > self.limits.max_queued_tokens:
                raise FullError(self.retry_after(sum(held)))
            if request.task is None:
                self.unrouted.append(ticket)
            else:
                self._enqueue(ticket, self.runtime.known(request.task))
                sink(Started(request.task, None))
            self._changed.notify()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Free a ticket's place: at once where it waits, after the step at hand where it runs."""
        with self._changed:
            ticket.cancelled = True
            for queue in (self.unrouted, *self.waiting.values()):
                if ticket in queue:
                    queue.remove(ticket)
            if self.blocked is ticket:
                self.blocked = None
            self._changed.notify()

    def retry_after(self, queued_tokens: int) -> int:
        """Seconds until about half of what waits is done, at the speed of late."""
        return int(min(max(queued_tokens / 2 / max(self.speed, 1.0), self.limits.retry_after), 60))

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
            ready = [task for task in self.waiting if task in self.running or self._next_of(task, 0)]
            if ready:
                self._turn(min(ready, key=lambda task: self.served[task]))

    def _route_new(self) -> None:
        with self._changed:
            tickets = [*self.unrouted]
            self.unrouted.clear()
        routes: Sequence[Route | None] = [None] * len(tickets)
        if self.router is not None and tickets:
            try:
                prompts = [ticket.request.prompt for ticket in tickets]
                routes = self.router.predict(self.runtime.model, self.tokenizer, prompts)
            except Exception:  # the requests still run, on the fallback
                log.exception("routing failed")
        for ticket, route in zip(tickets, routes, strict=True):
            known = route is not None and route.task in self.waiting
            task = route.task if known and route is not None and route.task else self.fallback
            with self._changed:
                if not ticket.cancelled:
                    self._enqueue(ticket, task)
            ticket.sink(Started(task, route))

    def _turn(self, task: str) -> None:
        """Let waiting rows of a task join, and decode a few steps."""
        started, before = time.perf_counter(), self.num_tokens
        joining = self._admit(task)
        try:
            with self.runtime.task(task) as model:
                if joining:
                    self._join(model, task, joining)
                for _ in range(self.limits.steps):
                    self._sweep(task)
                    if task not in self.running:
                        break
                    rows = self.running[task]
                    self._advance(rows, decode(model, rows))
                self._sweep(task)
        except Exception as error:
            log.exception("a turn of task %s failed", task)
            owners = self.running.pop(task).live.values() if task in self.running else ()
            for ticket in {*joining, *owners}:
                ticket.sink(Failed(f"the model failed: {type(error).__name__}"))
        seconds = time.perf_counter() - started
        self.served[task] += seconds
        if made := self.num_tokens - before:
            self.speed = 0.9 * self.speed + 0.1 * made / seconds

    def _admit(self, task: str) -> list[Ticket]:
        """The waiting requests that fit beside what runs: rows of the task, and tokens of all tasks together."""
        room = self.limits.max_rows - (len(self.running[task]) if task in self.running else 0)
        taken: list[Ticket] = []
        with self._changed:
            while len(taken) < room and (ticket := self._next_of(task, sum(one.request.tokens for one in taken))):
                read = sum(len(one.request.ids) for one in (*taken, ticket))
                if taken and read > self.limits.prefill_tokens:
                    break
                self.waiting[task].remove(ticket)
                if self.blocked is ticket:
                    self.blocked = None
                taken.append(ticket)
        return taken

    def _next_of(self, task: str, joining: int) -> Ticket | None:
        """The task's next request, if there is room for it beside what runs and so many tokens that join."""
        with self._changed:
            queue = self.waiting[task]
            if not queue:
                return None
            if self.blocked is not None and self.blocked is not queue[0]:
                return None
            held = sum(owner.request.tokens for rows in self.running.values() for owner in rows.live.values())
            if held + joining + queue[0].request.tokens <= self.limits.max_tokens_in_flight:
                return queue[0]
            self.blocked = queue[0]
            return None

    def _join(self, model: Any, task: str, tickets: Sequence[Ticket]) -> None:
        rows, logits = prefill(model, [ticket.request.ids for ticket in tickets], tickets)
        self._advance(rows, logits)
        if task in self.running:
            self.running[task].join_(rows)
        elif len(rows):
            self.running[task] = rows

    def _advance(self, rows: Rows, logits: Tensor) -> None:
        """Choose every row's next token, tell its owner, and let finished rows leave."""
        likeliest = logits.argmax(-1).tolist()
        chosen = {
            place: owner.request.sampler.choose(logits[place], likeliest[place]) for place, owner in rows.live.items()
        }
        rows.last = rows.last.new_tensor([chosen[i].id if i in chosen else 0 for i in range(len(rows.owners))])
        self.num_tokens += len(chosen)
        rows.leave_([place for place, token in chosen.items() if self._told(rows.owners[place], token)])

    def _told(self, ticket: Ticket, token: Token) -> bool:
        """Pass a token on; whether it was the last one."""
        ticket.num_tokens += 1
        ended = token.id in self.ends
        text = "" if ended else ticket.writer.push(token.id)
        ticket.sink(Piece(text, token))
        if ended or ticket.writer.stopped or ticket.num_tokens >= ticket.request.max_tokens:
            reason = "stop" if ended or ticket.writer.stopped else "length"
            ticket.sink(Finished(reason, ticket.writer.flush(), ticket.num_tokens))
            return True
        return False

    def _sweep(self, task: str) -> None:
        """Drop rows whose clients hung up, and a group without rows."""
        if task in self.running:
            rows = self.running[task]
            rows.leave_([place for place, owner in rows.live.items() if owner.cancelled])
            if not len(rows):
                del self.running[task]

    def _fail_all(self, message: str) -> None:
        running = [owner for rows in self.running.values() for owner in rows.live.values()]
        for ticket in [*self._all_waiting(), *running]:
            ticket.sink(Failed(message))


def _end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """Tokens that end a text, by the model's generation config or its tokenizer."""
    found = getattr(model.generation_config, "eos_token_id", None)
    found = tokenizer.eos_token_id if found is None else found
    return set(found) if isinstance(found, list) else {found} - {None}
