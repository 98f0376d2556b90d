"""How an answer goes out: whole, or as server-sent events. What is long is put together in the pools, as the event loop
has others to answer."""

import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from seap.serving.scheduling.tickets import Finished, Piece
from seap.serving.server.answers import Answer, Body, Choice, written
from seap.serving.server.calls import Call, ModelError
from seap.serving.server.common import error_body
from seap.serving.server.reading import Pools

log = logging.getLogger(__name__)


class EventStream(StreamingResponse):
    """Server-sent events; what the stack holds is let go however the response ends."""

    def __init__(self, content: Any, stack: contextlib.ExitStack, headers: dict[str, str]) -> None:
        super().__init__(content, headers=headers | {"cache-control": "no-cache"}, media_type="text/event-stream")
        self.stack = stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self.stack:
            await super().__call__(scope, receive, send)


async def whole(call: Call, answer: Answer, pools: Pools) -> bytes:
    """The JSON of an answer when all of it is there. Choices are put together one by one, so that long ones of several
    requests take turns. Raises ModelError."""
    async for _ in call.events():
        pass
    parts = [await pools.run(answer.size(choice), answer.part, choice) for choice in call.choices]
    return await pools.run(sum(map(len, parts)), answer.whole, call.choices, parts)


async def events(call: Call, answer: Answer, pools: Pools, *, usage: bool) -> AsyncIterator[str]:
    """A stream's lines. The first of a choice has all of a scored prompt."""

    def chunk(choice: Choice, event: Piece | Finished) -> str:
        return _line(answer.chunk(choice, event))

    try:
        async for choice, event in call.events():
            first = not choice.tokens
            if first and choice.read:
                yield await pools.run(answer.size(choice), chunk, choice, event)
            elif event.text or answer.logprobs or isinstance(event, Finished) or first:
                yield chunk(choice, event)
        if usage:
            yield _line(answer.last_chunk(call.choices))
    except ModelError as failure:
        yield _line(error_body(500, str(failure)))
    except Exception:
        log.exception("a stream failed")
        yield _line(error_body(500, "the server failed on this request; its log says why"))
    yield "data: [DONE]\n\n"


def _line(body: Body) -> str:
    return f"data: {written(body, ascii=True)}\n\n"
