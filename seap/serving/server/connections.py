"""Connections: how long the server waits for a client, how many it holds, and how it lets go of them.

uvicorn has a limit for idle connections between requests only (its issue 157 asks for more; hypercorn and granian
time headers, not bodies, and would still leave draining to us), so its protocol is extended here: a deadline for
headers and one for bodies, 408 past them; where all connections are taken, the one that does nothing gives way; an
answer that comes before the end of a body is followed by reading on for a while, since closing at once would reset
the connection, and with it the answer; a client that takes nothing of its answer is dropped.
"""

import asyncio
import contextlib
from collections import Counter
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from seap.serving.options import Connections
from seap.serving.server.common import error

LINGER_SECONDS = 10.0
LINGER_BYTES = 64 << 20


class Transport:
    """An asyncio transport whose `close` is the protocol's to do."""

    def __init__(self, real: Any, protocol: "GuardedProtocol") -> None:
        self.real, self.protocol = real, protocol

    def close(self) -> None:
        self.protocol.let_go()

    def is_closing(self) -> bool:
        return self.protocol.lingering or bool(self.real.is_closing())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


class GuardedProtocol(H11Protocol):
    """One connection. phase: `headers` (none or part of them are there), `body`, `working` (the request is complete, so
    it is accepted) or `idle` (between requests)."""

    transport: Any
    cycle: Any

    def __init__(self, *args: Any, grants: Connections, **more: Any) -> None:
        super().__init__(*args, **more)
        self.grants = grants
        self.phase = ""
        self.lingering = False
        self.since = self.loop.time()
        self._dropped = 0
        self._timer: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None

    @property
    def address(self) -> str:
        return self.client[0] if self.client else ""

    @property
    def arriving(self) -> bool:
        """A request may be on its way that isn't accepted yet."""
        return self.phase in ("headers", "body") and not self.lingering

    def connection_made(self, transport: Any) -> None:
        full = len(self.connections) >= self.grants.max_connections and not self._make_room()
        super().connection_made(Transport(transport, self))  # type: ignore[arg-type]
        self._watch()
        if full:
            self.refuse(503, f"all {self.grants.max_connections} connections are in use; try again later")

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._timer, self._stalled):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self.lingering:
            super().data_received(data)
            return
        self._dropped += len(data)
        if self._dropped > LINGER_BYTES:
            self.transport.real.close()

    def handle_events(self) -> None:
        super().handle_events()
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def send_400_response(self, msg: str) -> None:
        self.refuse(400, msg)

    def shutdown(self) -> None:
        if self.lingering:
            self.transport.real.close()
        else:
            super().shutdown()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def refuse(self, status: int, message: str) -> None:
        """Answer in the application's stead, where it hasn't begun to, and close."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # the application sees a client that is gone
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            answer = error(status, message, headers={"connection": "close"})
            head = h11.Response(status_code=status, headers=answer.raw_headers)
            for event in (head, h11.Data(data=bytes(answer.body)), h11.EndOfMessage(), h11.ConnectionClosed()):
                self.transport.write(self.conn.send(event) or b"")
            self._linger()
        else:
            self._close()

    def let_go(self) -> None:
        """Close; a client that is still sending first gets time to read its answer."""
        if not self.lingering and self.cycle is not None and self.cycle.more_body and not self.cycle.disconnected:
            self._linger()
        elif not self.lingering:
            self._close()

    def _phase(self) -> str:
        if self.cycle is None:
            return "headers"
        if not self.cycle.response_complete:
            return "body" if self.cycle.more_body else "working"
        if self.conn.their_state is h11.SEND_BODY:
            return "body"
        return "headers" if self.conn.trailing_data[0] else "idle"

    def _watch(self) -> None:
        """Set the deadline of the phase that the connection is in now."""
        phase = self._phase()
        if phase == self.phase or self.lingering or self.transport.is_closing():
            return
        self.phase, self.since = phase, self.loop.time()
        if self._timer is not None:
            self._timer.cancel()
        if phase == "headers":  # a next request has begun
            self._unset_keepalive_if_required()
        seconds = {"headers": self.grants.header_timeout, "body": self.grants.body_timeout}.get(phase)
        self._timer = None if seconds is None else self.loop.call_later(seconds, self._late)

    def _late(self) -> None:
        if self.phase == "headers" and not self.conn.trailing_data[0]:
            self._close()
        else:
            seconds = self.grants.header_timeout if self.phase == "headers" else self.grants.body_timeout
            self.refuse(408, f"the request's {self.phase} did not arrive within {seconds:g} s")

    def _make_room(self) -> bool:
        """Close the connection that does nothing for longest, of the address that has most of them."""
        others = [one for one in self.connections if isinstance(one, GuardedProtocol)]
        idle = [one for one in others if one.phase != "working"]
        if not idle:
            return False
        held = Counter(one.address for one in others)
        chosen = max(idle, key=lambda one: (held[one.address], -one.since))
        chosen.transport.abort()
        self.connections.discard(chosen)
        return True

    def _linger(self) -> None:
        self.lingering = True
        if self._timer is not None:
            self._timer.cancel()
        if self.transport.can_write_eof():
            with contextlib.suppress(OSError):  # the client is gone
                self.transport.write_eof()
        self.flow.resume_reading()
        self._timer = self.loop.call_later(LINGER_SECONDS, self._close)

    def _close(self) -> None:
        """Close once what is written was taken; at the latest after the idle time."""
        real = self.transport.real
        real.close()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(self.grants.idle_timeout, real.abort)

    def _watch_reader(self, before: int | None = None) -> None:
        left = self.transport.get_write_buffer_size()
        if before is not None and left >= before:
            self.transport.abort()
        else:
            self._stalled = self.loop.call_later(self.grants.idle_timeout, self._watch_reader, left)
