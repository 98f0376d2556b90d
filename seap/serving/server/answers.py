"""What clients get: OpenAI's objects, with `seap` beside them, whole or in chunks."""

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from seap.serving.scheduling.tickets import Finished, Piece, Started
from seap.serving.server.spelling import Spelled, Spelling
from seap.writing.sampling import Token, Writer

Body = dict[str, Any]
PLAIN = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")  # what headers hold as it is
SLICE = 256  # entries that are written at a time: the writer is C, and lets no other thread run
ABOUT = 256  # bytes that a token with its alternatives becomes, about


@dataclass(frozen=True)
class Echo:
    """A prompt that its answer begins with; offsets: where in the text each token begins."""

    text: str
    offsets: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: Any, ids: Sequence[int], given: str | Sequence[int]) -> "Echo":
        """Offsets are those of the decoded ids, which differ from the given text where the tokenizer normalises it."""
        writer, offsets, length = Writer(tokenizer), [], 0
        for token in ids:
            offsets.append(length)
            length += len(writer.push(token))
        text = given if isinstance(given, str) else writer.text + writer.flush()
        return cls(text, tuple(min(offset, len(text)) for offset in offsets))


@dataclass
class Choice:
    """One answer as it grows."""

    index: int
    prompt_tokens: int
    echo: Echo = Echo("", ())
    started: Started | None = None
    read: tuple[Token, ...] = ()  # the prompt, where it is scored
    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    reason: str | None = None

    def add(self, event: Piece | Finished) -> None:
        if isinstance(event, Piece):
            self.offsets.append(len(self.text))
            self.tokens.append(event.token)
        else:
            self.reason = event.reason
        self.text += event.text


class Answer:
    """Builds the objects of one request. chat: of chat completions, else of completions."""

    def __init__(
        self, spelling: Spelling, model: str, *, chat: bool, logprobs: bool, weights: dict[str, float]
    ) -> None:
        self.spelling, self.model, self.chat, self.logprobs, self.weights = spelling, model, chat, logprobs, weights
        self.id = f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}"
        self.created = int(time.time())

    def about(self, started: Started) -> Body:
        """What ran: the task, how sure the router was of it (None where no router chose), the share of weights used."""
        route = started.route
        return {
            "task": started.task,
            "confidence": None if route is None else round(route.confidence, 6),
            "abstained": route is not None and route.task is None,
            "weights": round(self.weights[started.task], 6),
        }

    def headers(self, started: Started) -> dict[str, str]:
        about = self.about(started)
        found = {"x-seap-task": quote(about["task"], safe=PLAIN), "x-seap-weights": f"{about['weights']:.4f}"}
        return found if about["confidence"] is None else found | {"x-seap-confidence": f"{about['confidence']:.4f}"}

    def whole(self, choices: Sequence[Choice], parts: Sequence[str]) -> bytes:
        """The answer's JSON. parts: what `part` made of each choice."""
        kind = "chat.completion" if self.chat else "text_completion"
        head, told = written(self._envelope(kind, choices[0])), written(usage(choices))
        return f'{head[:-1]},"choices":[{",".join(parts)}],"usage":{told}}}'.encode()

    def part(self, choice: Choice) -> str:
        """The JSON of one choice. It takes a while where `size` is large."""
        return written(self._choice(choice))

    def size(self, choice: Choice) -> int:
        """About how many bytes a choice becomes."""
        tokens = len(choice.read) + len(choice.tokens) if self.logprobs else 0
        return len(choice.echo.text) + len(choice.text) + ABOUT * tokens

    def chunk(self, choice: Choice, event: Piece | Finished) -> Body:
        """A part of an answer, before it is added to the choice."""
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        first = not choice.tokens and choice.reason is None
        reason = event.reason if isinstance(event, Finished) else None
        tokens = [event.token] if isinstance(event, Piece) else []
        text = (choice.echo.text if first else "") + event.text
        body: Body = {"index": choice.index, "finish_reason": reason}
        if self.chat:
            delta = {"role": "assistant"} if first else {}
            body["delta"] = delta | ({"content": event.text} if event.text or first else {})
        else:
            body["text"] = text
        if self.logprobs:
            offsets = [len(choice.echo.text) + len(choice.text)] * len(tokens)
            read = choice.read if first else ()
            body["logprobs"] = self._logprobs([*read, *tokens], [*choice.echo.offsets[: len(read)], *offsets], text)
        return self._envelope(kind, choice) | {"choices": [body]}

    def last_chunk(self, choices: Sequence[Choice]) -> Body:
        """The chunk of stream_options.include_usage."""
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return self._envelope(kind, choices[0]) | {"choices": [], "usage": usage(choices)}

    def _envelope(self, kind: str, choice: Choice) -> Body:
        assert choice.started is not None
        about = self.about(choice.started)
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "seap": about}

    def _choice(self, choice: Choice) -> Body:
        text, echo = choice.echo.text + choice.text, choice.echo
        content = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        offsets = [*echo.offsets[: len(choice.read)], *(len(echo.text) + offset for offset in choice.offsets)]
        known = self._logprobs([*choice.read, *choice.tokens], offsets, text) if self.logprobs else None
        return {"index": choice.index, "finish_reason": choice.reason, "logprobs": known} | content

    def _logprobs(self, tokens: Sequence[Token], offsets: Sequence[int], text: str) -> Body:
        """text: it begins at offset 0, where tokens have the space that they begin with only if the text has it."""
        spaced = text[:1] in ("", " ")
        told = [(token, not spaced and offset == 0) for token, offset in zip(tokens, offsets, strict=True)]
        if self.chat:
            return {"content": [self._named(t.id, t.logprob, b) | {"top_logprobs": self._top(t, b)} for t, b in told]}
        return {
            "tokens": [self._spelled(token.id, bare).text for token, bare in told],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [None if token.logprob is None else self._by_text(token, bare) for token, bare in told],
            "text_offset": [*offsets],
        }

    def _by_text(self, token: Token, bare: bool) -> Body:
        """Of tokens with one text the likeliest."""
        return {self._spelled(other, bare).text: value for other, value in reversed(token.top)}

    def _top(self, token: Token, bare: bool) -> list[Body]:
        return [self._named(other, value, bare) for other, value in token.top]

    def _named(self, token: int, logprob: float | None, bare: bool) -> Body:
        found = self._spelled(token, bare)
        return {"token": found.text, "logprob": logprob, "bytes": [*found.data]}

    def _spelled(self, token: int, bare: bool) -> Spelled:
        return self.spelling.of(token, bare=bare)


def written(value: Any, *, ascii: bool = False) -> str:
    """JSON without spaces, its long lists in slices, between which other threads run."""

    def plain(part: Any) -> str:
        return json.dumps(part, ensure_ascii=ascii, allow_nan=False, separators=(",", ":"))

    if isinstance(value, dict):
        return "{" + ",".join(f"{plain(name)}:{written(entry, ascii=ascii)}" for name, entry in value.items()) + "}"
    if isinstance(value, list):
        if len(value) == 1:
            return f"[{written(value[0], ascii=ascii)}]"
        slices = (value[start : start + SLICE] for start in range(0, len(value), SLICE))
        return "[" + ",".join(plain(some)[1:-1] for some in slices) + "]"
    return plain(value)


def usage(choices: Sequence[Choice]) -> dict[str, int]:
    """A prompt counts once, however many answers it got."""
    prompt = sum(choice.prompt_tokens for choice in choices)
    made = sum(len(choice.tokens) for choice in choices)
    return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}
