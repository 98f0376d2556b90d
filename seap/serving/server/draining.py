"""The HTTP server, and how it stops: what was accepted is finished, within a deadline; what wasn't holds nothing up."""

import asyncio
import functools
import socket
from typing import Any

import uvicorn

from seap.serving.options import Connections
from seap.serving.server.connections import GuardedProtocol

GRACE_SECONDS = 1.0  # for requests that are on their way when the server is told to stop


class DrainingServer(uvicorn.Server):
    """A request is accepted when all of it is there.

    Told to stop, the server takes the connections that the kernel has accepted for it, waits a moment for requests on
    their way, closes every connection without an accepted one, and gives those the seconds that the config says.
    """

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await asyncio.sleep(0.1)
        for server in self.servers:
            server.close()
        until = asyncio.get_running_loop().time() + GRACE_SECONDS
        while self._arriving() and asyncio.get_running_loop().time() < until:
            await asyncio.sleep(0.02)
        for connection in self._arriving():
            connection.refuse(503, "the server is stopping")
        await super().shutdown(sockets)

    def _arriving(self) -> list[GuardedProtocol]:
        found = [one for one in self.server_state.connections if isinstance(one, GuardedProtocol)]
        return [one for one in found if one.arriving]


def make_server(
    app: Any, grants: Connections, *, drain_seconds: float = 30.0, trusted_proxy: tuple[str, ...] = ()
) -> DrainingServer:
    """A server for an application; `run(sockets=[…])` runs it until SIGINT or SIGTERM."""
    protocol: Any = functools.partial(GuardedProtocol, grants=grants)
    config = uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        log_level="error",
        access_log=False,
        timeout_graceful_shutdown=drain_seconds,  # type: ignore[arg-type]  # it waits for fractions too
        timeout_keep_alive=grants.idle_timeout,  # type: ignore[arg-type]
        proxy_headers=bool(trusted_proxy),
        forwarded_allow_ips=[*trusted_proxy],
        server_header=False,
    )
    return DrainingServer(config)
