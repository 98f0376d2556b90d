"""A running server over a tiny model, for tests: real sockets, its own thread."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from toy import WORDS
from workload import Bench

from seap.serving.options import Connections
from seap.serving.server.app import Service, create_app
from seap.serving.server.draining import make_server
from seap.serving.server.run import bind

PROMPT = " ".join(WORDS[5:9])


def expected(bench: Bench, task: str, max_tokens: int, prompt: str = PROMPT) -> str:
    ids = bench.tokenizer(prompt)["input_ids"]
    text: str = bench.tokenizer.decode(bench.expected(ids, task, max_tokens), skip_special_tokens=True)
    return text


@contextmanager
def running(bench: Bench, **options: Any) -> Iterator[str]:
    """The base URL of a server over a bench's scheduler."""
    service = Service(scheduler=bench.scheduler, tokenizer=bench.tokenizer, name="tiny", **options)
    with listening(create_app(service), service.grants) as url:
        yield url


@contextmanager
def listening(app: Any, grants: Connections | None = None, **options: Any) -> Iterator[str]:
    """The base URL of an application on a socket and a thread of its own."""
    bound = bind("127.0.0.1", 0)
    server = make_server(app, grants or Connections(), **({"drain_seconds": 10.0} | options))
    thread = threading.Thread(target=lambda: server.run(sockets=[bound]))
    thread.start()
    try:
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        bound.close()
