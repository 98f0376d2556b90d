"""Messages → text, by a tokenizer's chat template, in a process that is ended when it takes too long.

A template comes with the checkpoint. jinja's sandbox keeps it from files and from Python, but not from looping or from
writing without end, and a thread that does can't be stopped.
"""

import atexit
import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from seap.errors import UserError

SECONDS = 5.0  # real templates take milliseconds
STARTING = 120.0  # seconds that a process may take to import what it needs
MOST_CHARACTERS = 4_000_000  # beyond what the messages themselves have
WORKERS = 4  # at most at a time; more callers wait


class Worker:
    """One process that renders, one request after the other."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("template_worker.py")
        # -P: this folder's modules stand in nobody's way
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
        )
        if self._answer(STARTING) is None:
            raise UserError("the process that runs chat templates didn't start; can Python import transformers here?")

    def ask(self, request: Mapping[str, Any], seconds: float) -> dict[str, str] | None:
        """The answer; None where there was none in time, and the process is ended."""
        assert self.process.stdin is not None
        line = json.dumps({**request, "seconds": seconds}, default=str) + "\n"
        return self._answer(seconds, line)

    def _answer(self, seconds: float, line: str = "") -> dict[str, str] | None:
        assert self.process.stdin is not None and self.process.stdout is not None
        timer = threading.Timer(seconds, self.process.kill)
        timer.daemon = True
        timer.start()
        told = ""
        try:
            with contextlib.suppress(OSError):  # a process that is gone
                if line:
                    self.process.stdin.write(line)
                    self.process.stdin.flush()
                told = self.process.stdout.readline()
        finally:
            timer.cancel()
        if told.endswith("\n"):
            found: dict[str, str] = json.loads(told)
            return found
        self.close()
        return None

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    @property
    def alive(self) -> bool:
        return self.process.poll() is None


_idle: list[Worker] = []
_room = threading.BoundedSemaphore(WORKERS)


@contextlib.contextmanager
def _worker() -> Iterator[Worker]:
    with _room:
        try:
            worker = _idle.pop()
        except IndexError:
            worker = Worker()
        worker = worker if worker.alive else Worker()
        kept = False
        try:
            yield worker
            kept = worker.alive
        finally:
            if kept:
                _idle.append(worker)
            else:
                worker.close()


@atexit.register
def close_all() -> None:
    """End the processes that wait for work."""
    while _idle:
        _idle.pop().close()


def render(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    seconds: float = SECONDS,
    **variables: Any,
) -> str:
    """What `tokenizer.apply_chat_template(messages, tokenize=False, …)` gives, within `seconds` of its own process.

    Templates of models that see may read a message's parts alone and pass over text that is given as such: where the
    last text isn't in what was written, texts are given as parts, `{"type": "text", "text": …}`, if then it is.

    variables: what else the template may read, such as enable_thinking=False. Raises UserError for messages that the
    template refuses, and for a template that takes too long, too much memory, or writes too much.
    """
    plain = [{key: value for key, value in message.items() if value is not None} for message in messages]
    if not plain:
        raise UserError("there are no messages; give at least one")
    template, own = _template(tokenizer, tools), getattr(tokenizer, "tokenizer", tokenizer)
    arguments = {
        "tools": None if tools is None else list(tools),
        "add_generation_prompt": add_generation_prompt,
        "continue_final_message": continue_final_message,
        **own.special_tokens_map,
        **variables,
    }
    text = _rendered(plain, template, arguments, seconds)
    if (last := _last_text(plain)) and last not in text:
        other = _rendered([in_parts(message) for message in plain], template, arguments, seconds, refuses=False)
        return other if last in other else text
    return text


def _rendered(
    messages: Sequence[Mapping[str, Any]],
    template: str,
    arguments: Mapping[str, Any],
    seconds: float,
    *,
    refuses: bool = True,
) -> str:
    """What the worker wrote. refuses: raise UserError where it couldn't, else nothing is written."""
    most = MOST_CHARACTERS + sum(len(str(message)) for message in messages)
    with _worker() as worker:
        found = worker.ask({"messages": messages, "template": template, "most": most, "arguments": arguments}, seconds)
    if not refuses and (found is None or "error" in found):
        return ""
    if found is None:
        raise UserError(
            f"the model's chat template was stopped after {seconds:g} s or for its use of memory; real ones take "
            "milliseconds: use another (chat_template.jinja), or plain prompts"
        )
    if "error" in found:
        raise UserError(f"the model's chat template refuses these messages: {found['error']}")
    return found["text"]


def _last_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """What was said last by somebody who isn't the model, whose words templates may change."""
    texts = [
        one["content"] for one in messages if one.get("role") != "assistant" and isinstance(one.get("content"), str)
    ]
    return texts[-1].strip() if texts else ""


def in_parts(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message with its text as a list of parts, as templates of models that see read it."""
    text = message.get("content")
    return dict(message) | ({"content": [{"type": "text", "text": text}]} if isinstance(text, str) else {})


def _default(template: Any) -> Any:
    """Of several named ones."""
    return template.get("default") if isinstance(template, dict) else template


def _template(tokenizer: Any, tools: Any) -> str:
    """The text of the template. Raises UserError where the tokenizer has none."""
    own = getattr(tokenizer, "tokenizer", tokenizer)  # a processor's
    try:
        found: str = own.get_chat_template(None if own is tokenizer else _default(tokenizer.chat_template), tools)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"the tokenizer has no chat template that fits: {error}") from error
    return found
