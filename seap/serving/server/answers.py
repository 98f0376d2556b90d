"""What clients get: OpenAI's objects, with `seap` beside them, whole or in chunks."""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from seap.serving.scheduling.tickets import Finished, Piece, Started
from seap.writing.sampling import Token

Body = dict[str, Any]


@dataclass
class Choice:
    """One answer as it grows."""

    index: int
    prompt_tokens: int
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

    def __init__(self, tokenizer: Any, model: str, *, chat: bool, logprobs: bool, weights: dict[str, float]) -> None:
        self.tokenizer, self.model, self.chat, self.logprobs, self.weights = tokenizer, model, chat, logprobs, weights
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
        found = {"x-seap-task": about["task"], "x-seap-weights": f"{about['weights']:.4f}"}
        return found if about["confidence"] is None else found | {"x-seap-confidence": f"{about['confidence']:.4f}"}

    def whole(self, choices: Sequence[Choice]) -> Body:
        kind = "chat.completion" if self.chat else "text_completion"
        found = [self._choice(choice) for choice in choices]
        return self._envelope(kind, choices[0]) | {"choices": found, "usage": usage(choices)}

    def chunk(self, choice: Choice, event: Piece | Finished) -> Body:
        """A part of an answer, before it is added to the choice."""
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        first = not choice.tokens and choice.reason is None
        reason = event.reason if isinstance(event, Finished) else None
        tokens = [event.token] if isinstance(event, Piece) else []
        body: Body = {"index": choice.index, "finish_reason": reason}
        if self.chat:
            delta = {"role": "assistant"} if first else {}
            body["delta"] = delta | ({"content": event.text} if event.text or first else {})
        else:
            body["text"] = event.text
        if self.logprobs:
            body["logprobs"] = self._logprobs(tokens, [len(choice.text)])
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
        content = {"message": {"role": "assistant", "content": choice.text}} if self.chat else {"text": choice.text}
        known = self._logprobs(choice.tokens, choice.offsets) if self.logprobs else None
        return {"index": choice.index, "finish_reason": choice.reason, "logprobs": known} | content

    def _logprobs(self, tokens: Sequence[Token], offsets: Sequence[int]) -> Body:
        if self.chat:
            return {"content": [self._named(t.id, t.logprob) | {"top_logprobs": self._top(t)} for t in tokens]}
        return {
            "tokens": [self._text(token.id) for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [{self._text(token): value for token, value in t.top} for t in tokens],
            "text_offset": [*offsets][: len(tokens)],
        }

    def _top(self, token: Token) -> list[Body]:
        return [self._named(other, value) for other, value in token.top]

    def _named(self, token: int, logprob: float | None) -> Body:
        text = self._text(token)
        return {"token": text, "logprob": logprob, "bytes": [*text.encode()]}

    def _text(self, token: int) -> str:
        text: str = self.tokenizer.decode([token])
        return text


def usage(choices: Sequence[Choice]) -> dict[str, int]:
    """A prompt counts once, however many answers it got."""
    prompt = sum(choice.prompt_tokens for choice in choices)
    made = sum(len(choice.tokens) for choice in choices)
    return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}
