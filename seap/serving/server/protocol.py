"""What clients may ask for: OpenAI's completions and chat completions, and vLLM's sampling beside them; every field is
checked."""

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, ValidationError, model_validator

from seap.serving.server.fields import FieldError, Number, Whole, given, joined
from seap.serving.server.messages import Message, read_messages
from seap.writing.sampling import Adjustments

MAX_CHOICES = 16
MAX_STOPS = 16
MAX_STOP = 256  # characters
MAX_BIASES = 1024

Given = TypeVar("Given", bound="Asked")


def _stops(value: Any) -> Any:
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise ValueError(f"must be text or a list of texts, got {value!r:.60}")
    if len(found) > MAX_STOPS or not all(1 <= len(one) <= MAX_STOP for one in found):
        raise ValueError(f"at most {MAX_STOPS} texts of 1 to {MAX_STOP} characters each")
    return tuple(found)


class StreamOptions(BaseModel):
    include_usage: StrictBool = False


class Asked(BaseModel):
    """What both kinds of request share."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    model: str = Field(min_length=1, max_length=256)
    max_tokens: Annotated[Whole, Field(ge=0)] | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[Number, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[Whole, Field(ge=-1)] = 0
    min_p: Annotated[Number, Field(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[Number, Field(ge=0.01, le=100)] = 1.0
    presence_penalty: Annotated[Number, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[Number, Field(ge=-2, le=2)] = 0.0
    logit_bias: dict[str, Annotated[Number, Field(ge=-100, le=100)]] = Field(default={}, max_length=MAX_BIASES)
    seed: Annotated[Whole, Field(ge=-(2**63), lt=2**63)] | None = None
    n: Annotated[Whole, Field(ge=1, le=MAX_CHOICES)] = 1
    stop: Annotated[tuple[str, ...], BeforeValidator(_stops)] = ()
    stop_token_ids: Annotated[list[Annotated[Whole, Field(ge=0)]], Field(max_length=MAX_BIASES)] = []
    ignore_eos: StrictBool = False
    stream: StrictBool = False
    stream_options: StreamOptions = StreamOptions()

    @model_validator(mode="before")
    @classmethod
    def _given(cls, body: Any) -> Any:
        return _fields(cls, body) if isinstance(body, dict) else body

    @model_validator(mode="after")
    def _fitting(self) -> "Asked":
        if self.max_tokens == 0 and not (isinstance(self, CompletionRequest) and self.echo):
            raise FieldError("max_tokens", "must be at least 1; 0 goes with echo alone")
        if isinstance(self, ChatRequest) and self.top_logprobs and not self.logprobs:
            raise FieldError("top_logprobs", "needs logprobs: true")
        return self

    def adjustments(self, vocabulary: int) -> Adjustments:
        """Raises FieldError for token ids beyond the vocabulary."""
        biases = [(_token(name, f"logit_bias.{name:.20}", vocabulary), by) for name, by in self.logit_bias.items()]
        for place, token in enumerate(self.stop_token_ids):
            _token(token, f"stop_token_ids[{place}]", vocabulary)
        return Adjustments(
            repetition=self.repetition_penalty,
            presence=self.presence_penalty,
            frequency=self.frequency_penalty,
            bias=tuple(dict(biases).items()),
        )


def _token(named: str | int, param: str, vocabulary: int) -> int:
    token = int(named) if isinstance(named, int) or (named.isascii() and named.isdigit() and len(named) < 20) else -1
    if not 0 <= token < vocabulary:
        raise FieldError(param, f"{named!r:.30} is no token id; allowed: 0 to {vocabulary - 1}")
    return token


def _prompts(value: Any) -> Any:
    """A prompt, or a list of prompts, as a list of texts and lists of ids."""
    if isinstance(value, str) or (isinstance(value, list) and (not value or isinstance(value[0], int))):
        value = [value]
    if not isinstance(value, list):
        raise ValueError(f"must be text or token ids, or a list of either, got {value!r:.60}")
    for one in value:
        whole = isinstance(one, list) and all(isinstance(part, int) and not isinstance(part, bool) for part in one)
        if not isinstance(one, str) and not whole:
            raise ValueError(f"must be text or token ids, or a list of either, got {one!r:.60} in a list")
    return value


class CompletionRequest(Asked):
    """POST /v1/completions. A prompt is text or token ids, or a list of either. max_tokens 0 goes with echo alone."""

    prompts: Annotated[list[Any], BeforeValidator(_prompts)] = Field(alias="prompt")
    logprobs: Annotated[Whole, Field(ge=0, le=5)] | None = None
    echo: StrictBool = False


class ChatRequest(Asked):
    """POST /v1/chat/completions."""

    messages: list[Message]
    max_completion_tokens: Annotated[Whole, Field(ge=1)] | None = None
    logprobs: StrictBool = False
    top_logprobs: Annotated[Whole, Field(ge=0, le=20)] = 0

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


def read_request(kind: type[Given], body: Any) -> Given:
    """A body as a request. Raises FieldError, with the field's place, for what it can't be."""
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        raise told(error.errors(include_url=False)[0], body) from None


def told(error: Mapping[str, Any], body: Any) -> FieldError:
    """pydantic's error with its place in the body as the client wrote it: without the names of the kinds tried."""
    cause = error.get("ctx", {}).get("error")
    if isinstance(cause, FieldError):
        return cause
    place, inside, kind = "", body, error["type"]
    for part in error["loc"]:
        if (isinstance(inside, dict) and part in inside) or (isinstance(inside, list) and part in range(len(inside))):
            place, inside = joined(place, part), inside[part]
        elif kind == "missing" and part != "body":
            place = joined(place, part)
    if not isinstance(body, dict):
        return FieldError("", f'the body must be a JSON object, such as {{"model": …}}, got {body!r:.60}')
    message = error["msg"].removeprefix("Value error, ")
    if kind == "missing":
        return FieldError(place, "missing; it is required")
    return FieldError(place, message if kind == "value_error" else f"{message}, got {error['input']!r:.60}")


def _fields(kind: type["Asked"], body: dict[str, Any]) -> dict[str, Any]:
    """The fields that are done, and not null. Raises FieldError for what would be ignored."""
    chat = issubclass(kind, ChatRequest)
    n = body["n"] if body.get("n") is not None else 1
    done = {field.alias or name for name, field in kind.model_fields.items()}
    found = given(body, done, best_of=(n,), add_special_tokens=(not chat,))
    if not chat and found.get("logprobs") is False:
        del found["logprobs"]
    if chat and "messages" in found:
        found["messages"] = read_messages(found["messages"])
    if isinstance(found.get("stream_options"), dict):
        found["stream_options"] = _stream_options(found["stream_options"])
    return found


def _stream_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """include_usage alone: include_obfuscation changes no text."""
    for name, value in options.items():
        if name not in ("include_usage", "include_obfuscation") and value not in (None, False):
            raise FieldError(f"stream_options.{name:.60}", "is not supported; leave it out")
    return {name: value for name, value in options.items() if name == "include_usage" and value is not None}
