"""What both kinds of server share: errors as OpenAI's clients read them, and what /health tells."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect

from seap.errors import UserError
from seap.serving.scheduling.tickets import FullError, StoppedError
from seap.serving.server.calls import ModelError
from seap.serving.server.fields import FieldError

AUTO = "auto"
TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


def error(status: int, message: str, *, headers: dict[str, str] | None = None, **more: Any) -> JSONResponse:
    """An error as OpenAI's clients read it."""
    return JSONResponse(error_body(status, message, **more), status, headers=headers)


def error_body(status: int, message: str, **more: str | None) -> dict[str, Any]:
    """Text that no answer can hold, such as half of a character that the client sent, is escaped."""
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    found = {"message": message, "type": kind, "param": None, "code": None} | more
    plain = {
        name: None if one is None else one.encode(errors="backslashreplace").decode() for name, one in found.items()
    }
    return {"error": plain}


def told_health(alive: bool) -> JSONResponse:
    """All that strangers learn: whether the server can do its work."""
    return JSONResponse({"status": "ok" if alive else "failing"}, 200 if alive else 503)


def add_errors(app: FastAPI) -> None:
    """Handlers for all that is refused, and for all that nobody foresaw: its traceback goes to the log alone."""

    @app.exception_handler(UserError)
    async def mistaken(_: Request, found: UserError) -> JSONResponse:
        return error(400, str(found), param=found.param or None if isinstance(found, FieldError) else None)

    @app.exception_handler(FullError)
    async def full(_: Request, found: FullError) -> JSONResponse:
        return error(429, str(found), headers={"retry-after": str(found.retry_after)})

    @app.exception_handler(StoppedError)
    async def stopped(_: Request, found: StoppedError) -> JSONResponse:
        return error(503, str(found))

    @app.exception_handler(ModelError)
    async def failed(_: Request, found: ModelError) -> JSONResponse:
        return error(500, str(found))

    @app.exception_handler(ClientDisconnect)
    async def hung_up(_: Request, found: ClientDisconnect) -> JSONResponse:
        return error(499, "the client hung up")

    @app.exception_handler(StarletteHTTPException)
    async def other(_: Request, found: StarletteHTTPException) -> JSONResponse:
        code = "model_not_found" if found.status_code == 404 and "model" in str(found.detail) else None
        headers = dict(found.headers) if found.headers else None
        param = "model" if code else None
        return error(found.status_code, str(found.detail), code=code, param=param, headers=headers)

    @app.exception_handler(Exception)
    async def unforeseen(_: Request, found: Exception) -> JSONResponse:
        return error(500, "the server failed on this request; its log says why")
