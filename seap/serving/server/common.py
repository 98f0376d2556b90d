"""What both kinds of server share: errors as OpenAI's clients read them, keys, and a limit on bodies."""

import hmac
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from seap.errors import UserError
from seap.serving.scheduling.tickets import FullError
from seap.serving.server.calls import ModelError
from seap.serving.server.fields import FieldError
from seap.serving.server.protocol import told

AUTO = "auto"
MAX_BODY = 8 << 20  # bytes
TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error", 500: "server_error"}


class BodyLimit:
    """Answers 413 to bodies larger than MAX_BODY without reading them whole."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        read = 0
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length) > MAX_BODY:
            await error(413, f"the body has more than {MAX_BODY} bytes")(scope, receive, send)
            return

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > MAX_BODY:
                raise StarletteHTTPException(413, f"the body has more than {MAX_BODY} bytes")
            return message

        await self.app(scope, counted, send)


def error(status: int, message: str, *, headers: dict[str, str] | None = None, **more: Any) -> JSONResponse:
    """An error as OpenAI's clients read it."""
    return JSONResponse(error_body(status, message, **more), status, headers=headers)


def error_body(status: int, message: str, **more: Any) -> dict[str, Any]:
    """Text that no answer can hold, such as half of a character that the client sent, is escaped."""
    kind = TYPES.get(status, "invalid_request_error")
    plain = message.encode(errors="backslashreplace").decode()
    return {"error": {"message": plain, "type": kind, "param": None, "code": None} | more}


def key_check(key: str | None) -> Any:
    async def check(request: Request) -> None:
        if key is None:
            return
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), key.encode()):
            raise HTTPException(401, "wrong or no API key; send it as Authorization: Bearer KEY")

    return check


def add_errors(app: FastAPI, count: Callable[[int], None]) -> None:
    """Handlers for all that is refused; `count` gets the status of each."""

    def refuse(status: int, message: str, **more: Any) -> JSONResponse:
        count(status)
        return error(status, message, **more)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, found: RequestValidationError) -> JSONResponse:
        first = found.errors()[0]
        if first["type"] == "json_invalid":
            return refuse(400, "the body is no JSON")
        kind = request.headers.get("content-type", "")
        if first["loc"] == ("body",) and "json" not in kind:
            return refuse(400, f"a body with {kind or 'no'} content-type; send content-type: application/json")
        cause = told(first, found.body)
        return refuse(400, str(cause), param=cause.param or None)

    @app.exception_handler(UserError)
    async def mistaken(_: Request, found: UserError) -> JSONResponse:
        return refuse(400, str(found), param=found.param or None if isinstance(found, FieldError) else None)

    @app.exception_handler(FullError)
    async def full(_: Request, found: FullError) -> JSONResponse:
        return refuse(429, str(found), headers={"retry-after": str(found.retry_after)})

    @app.exception_handler(ModelError)
    async def failed(_: Request, found: ModelError) -> JSONResponse:
        return refuse(500, str(found))

    @app.exception_handler(ClientDisconnect)
    async def hung_up(_: Request, found: ClientDisconnect) -> JSONResponse:
        return refuse(499, "the client hung up")

    @app.exception_handler(StarletteHTTPException)
    async def other(_: Request, found: StarletteHTTPException) -> JSONResponse:
        code = "model_not_found" if found.status_code == 404 and "model" in str(found.detail) else None
        return refuse(found.status_code, str(found.detail), code=code, param="model" if code else None)
