"""The HTTP side of seap serve: routes, keys, limits and errors, each as OpenAI's clients expect them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response

from seap.errors import unknown
from seap.serving.options import Connections
from seap.serving.scheduling.fairness import Places
from seap.serving.scheduling.scheduler import Scheduler
from seap.serving.scheduling.tickets import Request as GenerationRequest
from seap.serving.server.access import Guard
from seap.serving.server.answers import Answer, Body, Echo
from seap.serving.server.calls import Call, Outbox
from seap.serving.server.common import AUTO, add_errors, told_health
from seap.serving.server.fields import FieldError, about
from seap.serving.server.gate import add_gate
from seap.serving.server.metrics import Metrics
from seap.serving.server.page import PAGE
from seap.serving.server.prompts import (
    DEFAULT_COMPLETION,
    MOST_BY_DEFAULT,
    Prompt,
    answer_length,
    check_readable,
    encode_all,
    encode_chat,
)
from seap.serving.server.protocol import Asked, ChatRequest, CompletionRequest
from seap.serving.server.reading import Pools, Reader, client_of, unless_gone
from seap.serving.server.sending import EventStream, events, whole
from seap.serving.server.shape import MAX_PROMPTS
from seap.serving.server.spelling import Spelling
from seap.serving.server.tokenizing import Tokenizing
from seap.writing.sampling import Sampler


@dataclass(frozen=True, kw_only=True)
class Service:
    """What the routes need."""

    scheduler: Scheduler
    tokenizer: Any
    name: str
    guard: Guard = Guard()  # noqa: RUF009  it is frozen
    grants: Connections = Connections()  # noqa: RUF009
    drain_seconds: float = 30.0

    @property
    def models(self) -> tuple[str, ...]:
        """The names that a request's `model` may have."""
        return (*([AUTO] if self.scheduler.router else []), *self.scheduler.runtime.tasks)

    @cached_property
    def spelling(self) -> Spelling:
        return Spelling(self.tokenizer)

    @property
    def size(self) -> int:
        """How many tokens the model can read."""
        found: int = self.scheduler.teller.num_embeddings
        return found

    @property
    def context(self) -> int | None:
        found: int | None = getattr(self.scheduler.runtime.model.config, "max_position_embeddings", None)
        return found


def create_app(service: Service) -> FastAPI:
    """The application; its lifespan is the scheduler's."""
    asking = _Asking.of(service)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.scheduler.start()
        yield
        await asyncio.to_thread(service.scheduler.close, timeout=service.drain_seconds)
        asking.pools.close()

    app = FastAPI(title="seap", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    metrics, limits = asking.metrics, service.scheduler.limits
    places = Places(service.grants.max_connections, limits.client_share, retry_after=limits.retry_after)
    add_gate(app, service.guard, places, lambda status: metrics.refused.labels(str(status)).inc())
    add_errors(app)
    _add_models(app, service)
    _add_pages(app, service, metrics)
    app.post("/v1/completions", response_model=None)(asking.completions)
    app.post("/v1/chat/completions", response_model=None)(asking.chat)
    return app


@dataclass(frozen=True)
class _Asking:
    """The routes that have the model write, and what they share."""

    service: Service
    metrics: Metrics
    outbox: Outbox
    pools: Pools
    reader: Reader
    tokenizing: Tokenizing

    @classmethod
    def of(cls, service: Service) -> "_Asking":
        limits, router, pools = service.scheduler.limits, service.scheduler.router, Pools()
        routed = router.max_prompt_tokens if router else 0
        tokenizing = Tokenizing(service.tokenizer, pools, limits, service.context, routed)
        reader = Reader(pools, service.grants, limits, tokenizing.most)
        return cls(service, Metrics(service.scheduler), Outbox(), pools, reader, tokenizing)

    async def completions(self, request: Request) -> Response:
        service = self.service
        asked: CompletionRequest = await self.reader.asked(request, CompletionRequest)
        client, given = client_of(request), asked.prompts
        if len(given) * asked.n > MAX_PROMPTS:
            raise FieldError(
                "n", f"{len(given)} prompts with n {asked.n}: at most {MAX_PROMPTS} answers in one request"
            )
        with about("prompt"):
            prompts = await unless_gone(request, encode_all(self.tokenizing, given, service.size, client))
        tickets = _requests(service, asked, prompts, asked.max_tokens, asked.logprobs, DEFAULT_COMPLETION, client)
        answer = _answer(service, asked, chat=False, logprobs=asked.logprobs is not None)
        echoes: Sequence[Echo] = ()
        if asked.echo:
            echoes = await unless_gone(request, self.tokenizing.echoes([one.ids for one in prompts], given, client))
        return await _run(self, asked, tickets, answer, request, echoes)

    async def chat(self, request: Request) -> Response:
        asked: ChatRequest = await self.reader.asked(request, ChatRequest)
        client = client_of(request)
        with about("messages"):
            prompt = await unless_gone(request, encode_chat(self.tokenizing, asked.messages, client))
        top = asked.top_logprobs if asked.logprobs else None
        tickets = _requests(self.service, asked, [prompt], asked.limit, top, MOST_BY_DEFAULT, client)
        answer = _answer(self.service, asked, chat=True, logprobs=asked.logprobs)
        return await _run(self, asked, tickets, answer, request)


def _add_pages(app: FastAPI, service: Service, metrics: Metrics) -> None:
    @app.get("/health")
    async def health() -> JSONResponse:
        return told_health(service.scheduler.alive)

    @app.get("/", response_class=HTMLResponse)
    async def page() -> str:
        return PAGE

    @app.get("/metrics")
    async def numbers() -> PlainTextResponse:
        return PlainTextResponse(metrics.text(), media_type="text/plain; version=0.0.4")


def _add_models(app: FastAPI, service: Service) -> None:
    def described(name: str) -> Body:
        found: Body = {"id": name, "object": "model", "created": 0, "owned_by": "seap", "root": service.name}
        if name == AUTO:
            return found
        runtime = service.scheduler.runtime
        layers = [{axis: round(share, 4) for axis, share in layer.items()} for layer in runtime.layer_shares(name)]
        return found | {"seap": {"weights": round(runtime.weights_at_work(name), 6), "layers": layers}}

    @app.get("/v1/models")
    async def models() -> Body:
        return {"object": "list", "data": [described(name) for name in service.models]}

    @app.get("/v1/models/{name}")
    async def model(name: str) -> Body:
        _check_model(service, name)
        return described(name)


def _check_model(service: Service, name: str) -> None:
    if name not in service.models:
        raise HTTPException(404, str(unknown("model", name, service.models)))


def _requests(
    service: Service,
    asked: Asked,
    prompts: Sequence[Prompt],
    max_tokens: int | None,
    logprobs: int | None,
    default: int,
    client: str,
) -> list[tuple[GenerationRequest, int]]:
    """n requests for each prompt, with the tokens that the prompt counts for in the usage: once."""
    _check_model(service, asked.model)
    adjustments = asked.adjustments(service.size)
    continues = isinstance(asked, CompletionRequest)
    found = []
    for prompt in prompts:
        with about("messages" if isinstance(asked, ChatRequest) else "prompt"):
            check_readable(service.tokenizer, prompt.ids, service.size)
            length = answer_length(max_tokens, prompt, service.context, default=default)
        request = GenerationRequest(
            ids=prompt.ids,
            prompt=prompt.text,
            max_tokens=length,
            task=None if asked.model == AUTO else asked.model,
            stop=asked.stop,
            stop_ids=tuple(asked.stop_token_ids),
            ignore_ends=asked.ignore_eos,
            scored=logprobs if isinstance(asked, CompletionRequest) and asked.echo else None,
            continues=continues,
            client=client,
        )
        for number in range(asked.n):
            sampler = Sampler(
                temperature=asked.temperature,
                top_p=asked.top_p,
                seed=None if asked.seed is None else (asked.seed + number) % 2**63,
                logprobs=logprobs,
                top_k=max(asked.top_k, 0),
                min_p=asked.min_p,
                adjustments=adjustments,
                prompt=prompt.ids,
            )
            found.append((replace(request, sampler=sampler), len(prompt.ids) if number == 0 else 0))
    return found


def _answer(service: Service, asked: Asked, *, chat: bool, logprobs: bool) -> Answer:
    weights = service.scheduler.runtime.shares
    return Answer(service.spelling, asked.model, chat=chat, logprobs=logprobs, weights=weights)


async def _run(
    asking: _Asking,
    asked: Asked,
    tickets: Sequence[tuple[GenerationRequest, int]],
    answer: Answer,
    request: Request,
    echoes: Sequence[Echo] = (),
) -> Response:
    """Submit, wait for the tasks, and answer whole or as a stream; a client that hangs up frees its places."""
    with contextlib.ExitStack() as stack:
        call = stack.enter_context(Call(asking.service.scheduler, asking.metrics, asking.outbox))
        with about("max_tokens"):
            call.submit([one for one, _ in tickets], [tokens for _, tokens in tickets])
        for choice in call.choices if echoes else ():
            choice.echo = echoes[choice.index // asked.n]
        await unless_gone(request, call.started())
        started = call.choices[0].started
        assert started is not None
        headers = answer.headers(started)
        if asked.stream:
            lines = events(call, answer, asking.pools, usage=asked.stream_options.include_usage)
            return EventStream(lines, stack.pop_all(), headers)
        body = await unless_gone(request, whole(call, answer, asking.pools))
        return Response(body, headers=headers, media_type="application/json")
