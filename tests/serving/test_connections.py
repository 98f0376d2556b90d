"""Connections on real sockets: slow, silent, too many, too large, and what is finished when the server stops."""

import asyncio
import asyncio.selector_events
import errno
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from live import PROMPT, expected, listening, running
from workload import Bench

from seap.serving.options import Connections
from seap.serving.server.app import Service, create_app
from seap.serving.server.draining import make_server
from seap.serving.server.run import bind

HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
SHORT = Connections(header_timeout=0.3, body_timeout=0.3, idle_timeout=0.3)


def opened(url: str, sent: bytes = b"") -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    raw = socket.create_connection((host, int(port)), timeout=20)
    raw.sendall(sent)
    return raw


def said(raw: socket.socket) -> bytes:
    """All that comes until the server closes; a reset is an error."""
    found = b""
    with raw:
        while part := raw.recv(65536):
            found += part
    return found


def status_and_error(answer: bytes) -> tuple[int, dict[str, Any]]:
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]


def asked(**more: Any) -> bytes:
    body = json.dumps({"model": "red", "prompt": PROMPT, "max_tokens": 9, "temperature": 0} | more).encode()
    return HEAD + f"content-length: {len(body)}\r\n\r\n".encode() + body


@pytest.fixture(scope="module")
def impatient() -> Iterator[str]:
    with running(Bench(), grants=SHORT) as url:
        yield url


def test_answers_do_not_wait_for_the_clients_to_confirm_their_heads() -> None:
    """Head and body are sent apart; without TCP_NODELAY a body waits 40 ms on a kept connection."""
    with bind("127.0.0.1", 0) as bound, socket.create_connection(bound.getsockname()):
        accepted, _ = bound.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize(
    ("sent", "what"),
    [(HEAD, "headers"), (b"G", "headers"), (HEAD + b"content-length: 50\r\n\r\n{", "body")],
    ids=["headers", "one letter", "body"],
)
def test_who_is_too_slow_is_told_so(impatient: str, sent: bytes, what: str) -> None:
    status, told = status_and_error(said(opened(impatient, sent)))
    assert status == 408 and what in told["message"] and told["type"] == "invalid_request_error"


def test_a_letter_now_and_then_is_too_slow_too(impatient: str) -> None:
    raw = opened(impatient, HEAD + b"x: ")
    for _ in range(20):
        raw.sendall(b"a")
        time.sleep(0.05)
    assert status_and_error(said(raw))[0] == 408


def test_who_is_gone_when_told_so_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system says that the other end isn't connected any more: the connection is let go all the same."""

    def gone(*_: Any) -> None:
        raise OSError(errno.ENOTCONN, "not connected")

    monkeypatch.setattr(asyncio.selector_events._SelectorSocketTransport, "write_eof", gone)
    monkeypatch.setattr("seap.serving.server.connections.LINGER_SECONDS", 0.1)
    with stoppable(Bench(), SHORT, 10) as (url, server, _), opened(url, HEAD) as raw:
        assert raw.recv(12) == b"HTTP/1.1 408"
        wait_for(lambda: not server.server_state.connections)


def test_silent_and_idle_connections_are_closed(impatient: str) -> None:
    assert said(opened(impatient)) == b""
    raw = opened(impatient, b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
    assert said(raw).count(b"HTTP/1.1 200") == 1


def test_a_second_request_of_a_connection_has_its_time_too(impatient: str) -> None:
    raw = opened(impatient, b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n" + HEAD)
    answer = said(raw)
    assert answer.startswith(b"HTTP/1.1 200") and b"HTTP/1.1 408" in answer


def test_what_is_no_http_is_told_so(impatient: str) -> None:
    status, told = status_and_error(said(opened(impatient, b"what?\r\n\r\n")))
    assert status == 400 and told["message"]


def test_who_takes_nothing_of_an_answer_is_dropped() -> None:
    app, ended = FastAPI(), threading.Event()

    @app.get("/")
    async def endless() -> Any:
        from fastapi.responses import StreamingResponse

        async def parts() -> Any:
            try:
                while True:
                    yield b"x" * (1 << 20)
                    await asyncio.sleep(0)
            finally:
                ended.set()

        return StreamingResponse(parts())

    with listening(app, SHORT) as url, opened(url, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"):
        assert ended.wait(20)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_too_large_is_refused_without_a_reset(chunked: bool) -> None:
    size = 3 << 20
    with running(Bench(), grants=Connections(max_body_mb=1)) as url:
        kind = b"transfer-encoding: chunked" if chunked else f"content-length: {size}".encode()
        raw = opened(url, HEAD + kind + b"\r\nconnection: close\r\n\r\n")
        part = b" " * (1 << 16)
        for _ in range(size // len(part)):
            raw.sendall(b"%x\r\n%b\r\n" % (len(part), part) if chunked else part)
        if chunked:
            raw.sendall(b"0\r\n\r\n")
        status, told = status_and_error(said(raw))
    assert status == 413 and "1048576 bytes" in told["message"]


def test_an_answer_before_the_body_is_read_closes_without_a_reset() -> None:
    with running(Bench()) as url:
        raw = opened(url, HEAD.replace(b"completions", b"nothing") + b"content-length: 9999999\r\n\r\n")
        for _ in range(64):
            raw.sendall(b" " * (1 << 14))
        status, told = status_and_error(said(raw))
    assert status == 404 and told["type"] == "not_found_error"


def test_idle_connections_give_way_and_working_ones_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    bench, slow, taken = Bench(client_share=1), threading.Event(), []
    submit = bench.scheduler.submit
    monkeypatch.setattr(bench.scheduler, "submit", lambda *given: (taken.append(1), submit(*given))[1])
    bench.runtime.model.register_forward_pre_hook(lambda *_: slow.wait(20) and None)
    with running(bench, grants=Connections(max_connections=4)) as url:
        working = [opened(url, asked()) for _ in range(2)]
        wait_for(lambda: len(taken) == 2)
        silent = [opened(url) for _ in range(8)]
        assert httpx.get(f"{url}/health").status_code == 200
        working += [opened(url, asked()) for _ in range(2)]
        wait_for(lambda: len(taken) == 4)
        status, told = status_and_error(said(opened(url)))
        assert status == 503 and "4 connections" in told["message"]
        slow.set()
        assert [answered(raw) for raw in working] == [expected(bench, "red", 9).split()] * 4
        for raw in silent:
            raw.close()


def answered(raw: socket.socket) -> list[str]:
    """The words of an answer on a connection that may stay open."""
    with raw, raw.makefile("rb") as file:
        assert b"200" in file.readline()
        length = 0
        while (line := file.readline().strip().lower()) != b"":
            length = int(line.split(b":")[1]) if line.startswith(b"content-length") else length
        words: list[str] = json.loads(file.read(length))["choices"][0]["text"].split()
        return words


def wait_for(condition: Any, seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


@contextmanager
def stoppable(bench: Bench, grants: Connections, drain_seconds: float) -> Iterator[tuple[str, Any, threading.Thread]]:
    bound = bind("127.0.0.1", 0)
    service = Service(scheduler=bench.scheduler, tokenizer=bench.tokenizer, name="tiny", grants=grants)
    server = make_server(create_app(service), grants, drain_seconds=drain_seconds)
    thread = threading.Thread(target=lambda: server.run(sockets=[bound]))
    thread.start()
    wait_for(lambda: server.started)
    yield f"http://127.0.0.1:{bound.getsockname()[1]}", server, thread
    server.should_exit = True
    thread.join()
    bound.close()


def test_what_was_accepted_is_finished_and_nothing_else_is_waited_for() -> None:
    """Eight requests, and beside them connections that would stay for ever, when the server is told to stop."""
    bench = Bench(max_rows=2)
    patient = Connections(header_timeout=600, body_timeout=600, idle_timeout=600)
    with stoppable(bench, patient, 60) as (url, server, thread):
        half = [opened(url, sent) for sent in (b"", HEAD, HEAD + b"content-length: 50\r\n\r\n{")]
        lent = opened(url, b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        wait_for(lambda: len(server.server_state.connections) == 4)
        accepted = [opened(url, asked()) for _ in range(8)]
        server.should_exit = True
        thread.join(40)
        assert not thread.is_alive()
        assert [answered(raw) for raw in accepted] == [expected(bench, "red", 9).split()] * 8
        status, told = status_and_error(said(half[2]))
        assert status == 503 and "stopping" in told["message"]
        for raw in (*half[:2], lent):
            raw.close()


def test_a_body_on_its_way_when_the_server_stops_still_counts() -> None:
    bench = Bench()
    with stoppable(bench, Connections(), 60) as (url, server, thread):
        request = asked()
        raw = opened(url, request[:-5])
        wait_for(lambda: any(one.phase == "body" for one in server.server_state.connections))
        server.should_exit = True
        raw.sendall(request[-5:])
        thread.join(40)
        assert answered(raw) == expected(bench, "red", 9).split()


def test_what_the_deadline_cuts_off_is_told_so() -> None:
    bench, slow = Bench(), threading.Event()
    bench.runtime.model.register_forward_pre_hook(lambda *_: slow.wait(1) and None)
    with stoppable(bench, Connections(), 0.5) as (url, server, thread):
        raw = opened(url, asked())
        wait_for(lambda: any(one.phase == "working" for one in server.server_state.connections))
        server.should_exit = True
        status, told = status_and_error(said(raw))
        slow.set()
        thread.join(40)
    assert status == 503 and "no time to finish" in told["message"]
