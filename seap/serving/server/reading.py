"""Bodies and the work on them, away from the event loop and in two pools, so that short requests never wait for long
ones."""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from fastapi import HTTPException, Request
from starlette.requests import ClientDisconnect

from seap.serving.options import Connections, Limits
from seap.serving.scheduling.fairness import Places
from seap.serving.server.fields import FieldError
from seap.serving.server.protocol import Given, read_request
from seap.serving.server.shape import Bounds, parse

SHORT = 16 << 10  # bytes, about 40 ms of work
BODIES = 8  # of the largest size, that are held at a time

T = TypeVar("T")


class Pools:
    """Threads for short work and others for long work, by the bytes that it is about."""

    def __init__(self) -> None:
        self.short = ThreadPoolExecutor(4, "seap-short")
        self.long = ThreadPoolExecutor(1, "seap-long")  # more would take the processor from the model
        self.waiting = ThreadPoolExecutor(4, "seap-waiting")
        self.routing = ThreadPoolExecutor(1, "seap-routing")

    async def run(self, size: int, work: Callable[..., T], *given: Any) -> T:
        pool = self.short if size <= SHORT else self.long
        return await asyncio.get_running_loop().run_in_executor(pool, work, *given)

    async def apart(self, work: Callable[..., T], *given: Any) -> T:
        """Run what waits for others, such as a process, and so would keep short work waiting."""
        return await asyncio.get_running_loop().run_in_executor(self.waiting, work, *given)

    async def alone(self, work: Callable[..., T], *given: Any) -> T:
        """Run what two threads mustn't do at a time, such as a model. Who is cancelled while it waits isn't run; what
        runs goes on, and the next one waits for it."""
        return await asyncio.get_running_loop().run_in_executor(self.routing, work, *given)

    def close(self) -> None:
        for pool in (self.short, self.long, self.waiting, self.routing):
            pool.shutdown(wait=False, cancel_futures=True)


class Reader:
    """Bodies as objects. What is held of them is bounded, in all and for a client. tokens: as of `shape.Bounds`."""

    def __init__(self, pools: Pools, grants: Connections, limits: Limits, tokens: int | None) -> None:
        self.pools, self.most = pools, grants.max_body_mb << 20
        self.bounds = Bounds(limits.max_queued_tokens + 4096, tokens)
        self.held = Places(BODIES * self.most, limits.client_share, what="bytes of requests")

    async def asked(self, request: Request, kind: type[Given]) -> Given:
        """The body, validated. Raises FieldError, FullError, and HTTPException 413."""
        return await self._read(request, lambda raw: read_request(kind, parse(raw, self.bounds)))

    async def body(self, request: Request) -> Mapping[str, Any]:
        """The body's object, with no more than its lengths looked at."""
        found: dict[str, Any] = await self._read(request, lambda raw: parse(raw, self.bounds))
        return found

    async def _read(self, request: Request, work: Callable[[bytes], T]) -> T:
        client, parts, size = client_of(request), [], 0
        length = request.headers.get("content-length", "0")
        if length.isdigit() and int(length) > self.most:
            raise self._too_large()
        try:
            async for part in request.stream():
                if size + len(part) > self.most:
                    raise self._too_large()
                self.held.take(client, len(part))
                size += len(part)
                parts.append(part)
            _check_type(request)
            raw = b"".join(parts)
            parts.clear()
            return await self.pools.run(size, work, raw)
        finally:
            self.held.give_back(client, size)

    def _too_large(self) -> HTTPException:
        return HTTPException(413, f"the body has more than {self.most} bytes, the most that the server reads")


def _check_type(request: Request) -> None:
    kind = request.headers.get("content-type", "")
    name = kind.partition(";")[0].strip().lower()
    if name != "application/json" and not (name.startswith("application/") and name.endswith("+json")):
        raise FieldError("", f"a body with {kind or 'no'} content-type; send content-type: application/json")


def client_of(request: Request) -> str:
    """Whom a request counts for, as `gate.Door` found out."""
    return str(request.scope.get("seap.client", ""))


async def unless_gone(request: Request, work: Any) -> Any:
    """Wait for something, or raise ClientDisconnect when the client hangs up before."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(gone())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise ClientDisconnect
        return tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
