"""seap serve --backend: the router here, the tasks' networks behind OpenAI-compatible servers, such as vLLM's.

Requests go on as they came, with `model` replaced by the backend's own name for it; answers come back as they are,
streams included, with seap's headers. A request is tried again, on errors of connection and 502 to 504, only before the
first byte of an answer was passed on.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from seap.errors import UserError, unknown
from seap.serving.options import Connections, Limits
from seap.serving.routing.router import Route, Router
from seap.serving.scheduling.fairness import Places
from seap.serving.server.access import Guard
from seap.serving.server.common import AUTO, add_errors, told_health
from seap.serving.server.fields import FieldError
from seap.serving.server.gate import add_gate
from seap.serving.server.reading import Pools, Reader, unless_gone
from seap.serving.server.tokenizing import USUAL, longest_token

RETRIED = (502, 503, 504)
HEALTH_SECONDS = 2.0
HOP_BY_HOP = {"connection", "content-length", "content-encoding", "transfer-encoding", "keep-alive", "date", "server"}
PASSED_ON = {"content-type", "accept", "user-agent", "x-request-id"}


@dataclass(frozen=True)
class Backend:
    """A server for a task. model: its name there, None where the task's own name is meant."""

    url: str
    model: str | None = None


@dataclass(frozen=True, kw_only=True)
class Forwarder:
    """What the routes need."""

    backends: Mapping[str, Backend]
    router: Router
    model: Any
    tokenizer: Any
    fallback: str
    guard: Guard = Guard()  # noqa: RUF009  it is frozen
    grants: Connections = Connections()  # noqa: RUF009
    limits: Limits = Limits()  # noqa: RUF009
    backend_key: str | None = None
    retries: int = 2
    timeout: float = 300.0

    def route(self, prompt: str) -> Route:
        return self.router.predict(self.model, self.tokenizer, [prompt])[0]

    def place(self, task: str | None) -> str:
        """The backend of a task, or of the fallback."""
        return task if task is not None and task in self.backends else self.fallback


def read_backends(given: str) -> dict[str, Backend]:
    """`URL`, which serves every model, or a JSON file of task → URL or {"url": …, "model": …}."""
    if given.startswith(("http://", "https://")):
        return {"": Backend(given.rstrip("/"))}
    try:
        found = json.loads(Path(given).read_text())
        entries = {task: {"url": entry} if isinstance(entry, str) else entry for task, entry in found.items()}
        return {task: Backend(entry["url"].rstrip("/"), entry.get("model")) for task, entry in entries.items()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(
            f'--backend {given}: neither a URL nor a JSON file such as {{"gsm8k": "http://host:8001/v1"}} ({error})'
        ) from error


async def find_backends(given: str, key: str | None) -> dict[str, Backend]:
    """`read_backends`, with a lone URL as one backend for each of the models that it lists."""
    backends = read_backends(given)
    if [*backends] != [""]:
        return backends
    url = backends[""].url
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        async with httpx.AsyncClient(timeout=10, headers=headers) as client:
            listed = (await client.get(f"{url}/models")).raise_for_status().json()["data"]
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError) as error:
        raise UserError(f"--backend {url}: can't list its models ({error}); is it an OpenAI-compatible /v1?") from error
    return {model["id"]: Backend(url, model["id"]) for model in listed if model["id"] != AUTO}


def text_of(body: Mapping[str, Any]) -> str:
    """What the router reads of a request: the prompt, or what the user said."""
    if "messages" in body:
        said = [message for message in body["messages"] if message.get("role") == "user"] or body["messages"][-1:]
        return "\n".join(_content(message.get("content")) for message in said)
    prompt = body.get("prompt")
    first = prompt[0] if isinstance(prompt, list) and prompt else prompt
    if not isinstance(first, str):
        raise HTTPException(400, "prompt: the router reads text; give a string, or name the model")
    return first


def _content(given: Any) -> str:
    return given if isinstance(given, str) else "".join(part.get("text", "") for part in given or [])


def create_forwarder(forwarder: Forwarder) -> FastAPI:
    """The application that routes and forwards."""
    limits = forwarder.limits
    everything = httpx.Limits(max_connections=None)  # the places bound them
    transport = httpx.AsyncHTTPTransport(retries=0, limits=everything)
    client = httpx.AsyncClient(timeout=httpx.Timeout(forwarder.timeout, connect=5), transport=transport)
    reach = forwarder.router.max_prompt_tokens * min(longest_token(forwarder.tokenizer), USUAL)
    health_of, pools = Health(client, forwarder.backends), Pools()
    reader = Reader(pools, forwarder.grants, limits, None)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with client:
            yield
        pools.close()

    app = FastAPI(title="seap", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    places = Places(limits.max_queue, limits.client_share, retry_after=limits.retry_after)
    add_gate(app, forwarder.guard, places, lambda status: None)
    add_errors(app)

    @app.get("/health")
    async def health() -> JSONResponse:
        """Whether all backends answer."""
        return told_health(all((await health_of.states()).values()))

    @app.get("/v1/backends")
    async def backends() -> dict[str, bool]:
        """Which of them answer."""
        return await health_of.states()

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        names = (AUTO, *forwarder.backends)
        return {
            "object": "list",
            "data": [{"id": n, "object": "model", "created": 0, "owned_by": "seap"} for n in names],
        }

    @app.post("/v1/completions")
    @app.post("/v1/chat/completions")
    async def forward(request: Request) -> Response:
        body = await reader.body(request)
        if not isinstance(body.get("model"), str):
            raise FieldError("model", "give its name, as a string")
        task, headers = await unless_gone(request, _choose(forwarder, pools, body, reach))
        backend = forwarder.backends[task]
        content = await pools.run(reader.most, _dumped, {**body, "model": backend.model or task})
        url = backend.url + request.url.path.removeprefix("/v1")
        sent = {name: value for name, value in request.headers.items() if name in PASSED_ON}
        if forwarder.backend_key:
            sent["authorization"] = f"Bearer {forwarder.backend_key}"
        answer = await unless_gone(request, _send(client, url, content, sent, forwarder.retries))
        kept = {name: value for name, value in answer.headers.items() if name.lower() not in HOP_BY_HOP}
        return StreamingResponse(_parts(answer), answer.status_code, headers=kept | headers)

    return app


def _dumped(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body).encode()


async def _choose(
    forwarder: Forwarder, pools: Pools, body: Mapping[str, Any], reach: int
) -> tuple[str, dict[str, str]]:
    """The backend's task and the headers that say so."""
    if body["model"] != AUTO:
        if body["model"] not in forwarder.backends:
            raise HTTPException(404, str(unknown("model", body["model"], (AUTO, *forwarder.backends))))
        return body["model"], {"x-seap-task": body["model"]}
    try:
        prompt = text_of(body)
    except (AttributeError, TypeError, IndexError) as error:
        raise HTTPException(400, "messages: give a list of objects with role and content") from error
    route = await pools.alone(forwarder.route, prompt[:reach].encode(errors="replace").decode())
    task = forwarder.place(route.task)
    return task, {"x-seap-task": task, "x-seap-confidence": f"{route.confidence:.4f}"}


async def _send(
    client: httpx.AsyncClient, url: str, content: bytes, headers: Mapping[str, str], retries: int
) -> httpx.Response:
    """The backend's answer, its body still to come. Raises HTTPException 502 where there is none after all tries."""
    for attempt in range(retries + 1):
        try:
            answer = await client.send(client.build_request("POST", url, content=content, headers=headers), stream=True)
            if answer.status_code not in RETRIED or attempt == retries:
                return answer
            await answer.aclose()
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.RemoteProtocolError) as error:
            if attempt == retries:
                raise HTTPException(502, f"the task's server doesn't answer ({type(error).__name__})") from error
        except httpx.HTTPError as error:
            raise HTTPException(504, f"the task's server failed ({type(error).__name__})") from error
        await asyncio.sleep(0.2 * 2**attempt)
    raise AssertionError("unreachable")


async def _parts(answer: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for part in answer.aiter_bytes():
            yield part
    finally:
        await answer.aclose()


class Health:
    """Which backends answer, asked at most every few seconds, however often that is wanted."""

    def __init__(self, client: httpx.AsyncClient, backends: Mapping[str, Backend]) -> None:
        self.client, self.backends = client, backends
        self.lock = asyncio.Lock()
        self.known: dict[str, bool] = {}
        self.until = 0.0

    async def states(self) -> dict[str, bool]:
        async with self.lock:
            if time.monotonic() >= self.until:
                found = await asyncio.gather(*[self._is_up(backend) for backend in self.backends.values()])
                self.known = dict(zip(self.backends, found, strict=True))
                self.until = time.monotonic() + HEALTH_SECONDS
            return self.known

    async def _is_up(self, backend: Backend) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return (await self.client.get(f"{backend.url}/models", timeout=5)).status_code < 500
        return False
