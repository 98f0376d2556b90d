"""The forwarder has the guards of the server: hosts, origins, keys, sizes, shares; what it sends on is bounded too."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request, Response
from live import listening
from routed import OPTIONS, tasks_files
from workload import Bench

from seap.serving.options import Connections, Limits
from seap.serving.routing.routing import make_router
from seap.serving.server.access import Guard
from seap.serving.server.forward import Backend, Forwarder, create_forwarder

GRANTS = Connections(max_body_mb=1)


@pytest.fixture(scope="module")
def forwarder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forwarder]:
    bench, behind = Bench(), FastAPI()
    router = make_router(bench.alone["dense"], bench.tokenizer, tasks_files(tmp_path_factory.mktemp("tasks")), OPTIONS)

    @behind.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"data": []}

    @behind.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return Response(json.dumps({"got": await request.json()}), media_type="application/json")

    with listening(behind) as url:
        yield Forwarder(
            backends={"red": Backend(f"{url}/v1", "inner"), "dense": Backend(f"{url}/v1")},
            router=router,
            model=bench.alone["dense"],
            tokenizer=bench.tokenizer,
            fallback="dense",
            grants=GRANTS,
            limits=Limits(max_queue=2, max_queued_tokens=2048, client_share=0.5),
        )


@pytest.fixture(scope="module")
def url(forwarder: Forwarder) -> Iterator[str]:
    with listening(create_forwarder(forwarder), GRANTS) as url:
        yield url


def test_hosts_and_origins(url: str) -> None:
    for headers in ({"host": "evil.example"}, {"origin": "http://evil.example"}):
        assert httpx.get(f"{url}/v1/models", headers=headers).status_code == 403
    assert httpx.get(f"{url}/v1/models").status_code == 200


def test_keys_and_what_strangers_learn(forwarder: Forwarder) -> None:
    with listening(create_forwarder(replace(forwarder, guard=Guard(keys=("a", "b"))))) as url:
        assert httpx.get(f"{url}/health").json() == {"status": "ok"}
        assert httpx.get(f"{url}/v1/backends").status_code == 401
        told = httpx.get(f"{url}/v1/backends", headers={"authorization": "Bearer b"})
        assert told.json() == {"red": True, "dense": True}


@pytest.mark.parametrize(
    ("raw", "status", "message"),
    [
        (b'{"model":"red","prompt":[%b]}' % b",".join([b"{}"] * 200_000), 400, "values"),
        (b'{"model":"red","messages":[%b]}' % b",".join([b"{}"] * 2000), 400, "at most 1024"),
        (b"[" * 100_000, 400, "deeper"),
        (b" " * (3 << 20), 413, "1048576 bytes"),
        (b'{"prompt": "w5"}', 400, "model"),
        (b"{", 400, "no JSON"),
    ],
    ids=["objects", "messages", "deep", "large", "no model", "no JSON"],
)
def test_sizes(url: str, raw: bytes, status: int, message: str) -> None:
    answer = httpx.post(f"{url}/v1/completions", content=raw, headers={"content-type": "application/json"})
    assert answer.status_code == status and message in answer.json()["error"]["message"]


def test_how_long_a_prompt_of_ids_may_be_is_the_backends_to_say(forwarder: Forwarder) -> None:
    """Its context is another than what this server would take in flight, if it ran a model itself."""
    small: Any = replace(forwarder, limits=Limits(max_tokens_in_flight=50))
    with listening(create_forwarder(small)) as url:
        for prompt in ([7] * 40_000, [[7] * 20_000, [8] * 51]):
            answer = httpx.post(f"{url}/v1/completions", json={"model": "red", "prompt": prompt})
            assert answer.status_code == 200 and answer.json()["got"]["prompt"] == prompt
        answer = httpx.post(f"{url}/v1/completions", json={"model": "red", "prompt": [7] * 300_000})
        assert answer.status_code == 400 and "values" in answer.text


def test_one_client_has_its_share(url: str) -> None:
    body, full = json.dumps({"model": "red", "prompt": "w5"}).encode(), []

    def parts() -> Iterator[bytes]:
        yield body[:5]
        full.append(httpx.post(f"{url}/v1/completions", json={"model": "red", "prompt": "w5"}))
        yield body[5:]

    answer = httpx.post(f"{url}/v1/completions", content=parts(), headers={"content-type": "application/json"})
    assert answer.json() == {"got": {"model": "inner", "prompt": "w5"}}
    assert full[0].status_code == 429 and int(full[0].headers["retry-after"]) >= 1


def test_the_router_reads_no_more_than_it_needs(forwarder: Forwarder) -> None:
    read: list[int] = []
    router = forwarder.router

    class Seen:
        max_prompt_tokens = router.max_prompt_tokens

        def predict(self, model: Any, tokenizer: Any, prompts: list[str]) -> Any:
            read.append(len(prompts[0]))
            return router.predict(model, tokenizer, prompts)

    seen: Any = replace(forwarder, router=Seen())  # type: ignore[arg-type]
    with listening(create_forwarder(seen)) as url:
        prompt = "w5 " * 300_000
        answer = httpx.post(f"{url}/v1/completions", json={"model": "auto", "prompt": prompt}, timeout=60)
        assert answer.json()["got"]["prompt"] == prompt and answer.headers["x-seap-task"] in ("red", "dense")
        half = httpx.post(f"{url}/v1/completions", content=b'{"model": "auto", "prompt": "\\ud800 w5"}', headers=JSON)
    assert half.status_code == 200 and len(read) == 2 and read[0] < 50_000


JSON = {"content-type": "application/json"}
HEAD = (
    b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
)


def test_who_hangs_up_while_the_router_reads_lets_nobody_in_beside(forwarder: Forwarder) -> None:
    """A thread that reads can't be stopped: the next one waits for it, and who hung up while waiting isn't read."""
    go, router, inside, most, read = threading.Event(), forwarder.router, [0], [0], list[str]()

    class Slow:
        max_prompt_tokens = router.max_prompt_tokens

        def predict(self, model: Any, tokenizer: Any, prompts: list[str]) -> Any:
            read.extend(prompts)
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            go.wait(20)
            inside[0] -= 1
            return router.predict(model, tokenizer, prompts)

    def until(done: Any) -> None:
        end = time.monotonic() + 20
        while not done() and time.monotonic() < end:
            time.sleep(0.01)

    limits = Limits(max_queue=2, client_share=1)
    slow: Any = replace(forwarder, router=Slow(), limits=limits)  # type: ignore[arg-type]
    with listening(create_forwarder(slow)) as url, ThreadPoolExecutor(1) as pool:

        def left(prompt: str) -> socket.socket:
            body = json.dumps({"model": "auto", "prompt": prompt}).encode()
            host, port = url.removeprefix("http://").split(":")
            raw = socket.create_connection((host, int(port)), timeout=20)
            raw.sendall(HEAD % len(body) + body)
            return raw

        def probe() -> int:
            return httpx.post(f"{url}/v1/completions", json={"model": "red", "prompt": "w5"}).status_code

        first = left("w5")
        until(lambda: read)
        second = left("w6")
        until(lambda: probe() == 429)
        second.close()
        until(lambda: probe() == 200)
        first.close()
        good = pool.submit(httpx.post, f"{url}/v1/completions", json={"model": "auto", "prompt": "w7"}, timeout=30)
        time.sleep(0.3)
        go.set()
        assert good.result().status_code == 200
    assert most == [1] and read == ["w5", "w7"]


def test_what_nobody_foresaw(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr("seap.serving.server.forward._dumped", broken)
    answer = httpx.post(f"{url}/v1/completions", json={"model": "red", "prompt": "w5"})
    assert answer.status_code == 500 and answer.json()["error"]["type"] == "server_error"
    assert "secret" not in answer.text
