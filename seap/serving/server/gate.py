"""What every request passes before a route sees it: host, origin, key, and its client's share of the places.

`Front` comes first: it also sees to it that an answer given before the body was read closes the connection, and that
what is cut off when the server stops is told so. `Door` lies behind the cross-origin headers, so that pages of allowed
origins can read its refusals.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from seap.serving.scheduling.fairness import Places
from seap.serving.scheduling.tickets import FullError
from seap.serving.server.access import Guard
from seap.serving.server.common import error
from seap.serving.server.hosts import host_fits, origin_fits

OPEN = ("/health", "/")  # paths that need no key and take no place


def header(scope: Scope, name: bytes) -> bytes | None:
    """A header's value, None where there is none; the last one counts, as it does for the routes."""
    found: bytes | None = dict(scope["headers"]).get(name)
    return found


class Front:
    """count gets the status of each refusal."""

    def __init__(self, app: ASGIApp, guard: Guard, count: Callable[[int], None]) -> None:
        self.app, self.guard, self.count = app, guard, count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body_left = b"transfer-encoding" in dict(scope["headers"]) or header(scope, b"content-length") not in (
            None,
            b"0",
        )
        started = False

        async def received() -> Message:
            nonlocal body_left
            message = await receive()
            body_left = body_left and message.get("more_body", False)
            return message

        async def sent(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                if message["status"] >= 400:
                    self.count(message["status"])
                if body_left:
                    message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send(message)

        try:
            await (self._refusal(scope) or self.app)(scope, received, sent)
        except asyncio.CancelledError:
            if started:
                raise
            stopped = error(503, "the server is stopping and had no time to finish this", headers={"retry-after": "5"})
            await stopped(scope, received, sent)

    def _refusal(self, scope: Scope) -> ASGIApp | None:
        if scope["path"] == "/health":
            return None
        host, origin = header(scope, b"host"), header(scope, b"origin")
        name = None if host is None else host.decode("latin-1")
        if not host_fits(name, self.guard.hosts):
            return error(403, f"this server doesn't answer to the host {name!r}; start it with --allowed-host NAME")
        if origin is not None and not origin_fits(origin.decode("latin-1"), name, self.guard.origins):
            return error(403, "web pages of this origin may not use the server; start it with --allow-origin ORIGIN")
        return None


class Door:
    """Asks for the key, and lets each client have its share of the places; `scope["seap.client"]` says whom it counts
    for."""

    def __init__(self, app: ASGIApp, guard: Guard, places: Places) -> None:
        self.app, self.guard, self.places = app, guard, places

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN:
            await self.app(scope, receive, send)
            return
        key = self.guard.key_of(header(scope, b"authorization") or b"")
        if self.guard.keys and key is None:
            told = {"www-authenticate": "Bearer"}
            refusal = error(401, "wrong or no API key; send it as Authorization: Bearer KEY", headers=told)
            await refusal(scope, receive, send)
            return
        scope["seap.client"] = client = self.guard.client_of(scope, key)
        try:
            with self.places.taken(client):
                await self.app(scope, receive, send)
        except FullError as full:
            await error(429, str(full), headers={"retry-after": str(full.retry_after)})(scope, receive, send)


def add_gate(app: Any, guard: Guard, places: Places, count: Callable[[int], None]) -> None:
    """Put Front, the cross-origin headers and Door before an application's routes."""
    from starlette.middleware.cors import CORSMiddleware

    app.add_middleware(Door, guard=guard, places=places)
    if guard.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=[*guard.origins],
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["retry-after", "x-seap-task", "x-seap-confidence", "x-seap-weights"],
        )
    app.add_middleware(Front, guard=guard, count=count)
