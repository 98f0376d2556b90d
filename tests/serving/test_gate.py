"""Whom the server answers: hosts, origins, keys, places; what strangers learn; one form of every error."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from live import PROMPT, listening, running
from workload import Bench

from seap.errors import UserError
from seap.serving.options import Access, Connections
from seap.serving.scheduling.fairness import Places
from seap.serving.server.access import Guard, make_guard, read_keys
from seap.serving.server.gate import add_gate
from seap.serving.server.hosts import allowed_hosts, host_fits, origin_fits
from seap.serving.server.reading import client_of

ASKED = {"model": "red", "prompt": PROMPT, "max_tokens": 2}


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench()


@pytest.fixture(scope="module")
def url(bench: Bench) -> Iterator[str]:
    with running(bench, guard=Guard(origins=("https://page.example",))) as url:
        yield url


@pytest.mark.parametrize(
    ("host", "fits"),
    [
        ("localhost", True),
        ("LocalHost.:8000", True),
        ("127.0.0.1:1", True),
        ("[::1]:8000", True),
        ("a.localhost", True),
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example:8000", False),
        ("evil.example:127", False),
        ("", False),
        (None, False),
    ],
)
def test_hosts_on_loopback(host: str | None, fits: bool) -> None:
    assert host_fits(host, allowed_hosts("127.0.0.1", ())) == fits


def test_hosts_that_were_given() -> None:
    allowed = allowed_hosts("0.0.0.0", ("box.example", "*.lab.example"))
    assert host_fits("box.example:80", allowed) and host_fits("a.lab.example", allowed) and host_fits("::1", allowed)
    assert not host_fits("lab.example", allowed) and not host_fits("xlab.example", allowed)
    assert host_fits("anything", allowed_hosts("0.0.0.0", ())) and not host_fits("anything", allowed)


def test_origins() -> None:
    assert origin_fits("http://localhost:8000", "localhost:8000", ())
    assert not origin_fits("http://localhost:9000", "localhost:8000", ()) and not origin_fits("null", "localhost", ())
    assert origin_fits("https://a.example", "x", ("https://a.example",)) and origin_fits("null", "x", ("*",))


@pytest.mark.parametrize("path", ["/", "/v1/models", "/metrics", "/nothing"])
def test_a_rebound_name_reaches_nothing(url: str, path: str) -> None:
    answer = httpx.get(url + path, headers={"host": "evil.example"})
    assert answer.status_code == 403 and "--allowed-host" in answer.json()["error"]["message"]
    answer = httpx.get(url + path, headers={"origin": "http://evil.example"})
    assert answer.status_code == 403 and "--allow-origin" in answer.json()["error"]["message"]


def test_pages_of_an_allowed_origin_get_all_they_need(url: str) -> None:
    origin = {"origin": "https://page.example"}
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
    before = httpx.options(f"{url}/v1/completions", headers=origin | asks)
    assert before.status_code == 200 and before.headers["access-control-allow-origin"] == "https://page.example"
    assert "authorization" in before.headers["access-control-allow-headers"].lower()
    for body, status in ((ASKED, 200), ({}, 400)):
        answer = httpx.post(f"{url}/v1/completions", json=body, headers=origin)
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == "https://page.example"
        assert "x-seap-task" in answer.headers["access-control-expose-headers"]
    own = httpx.post(f"{url}/v1/completions", json=ASKED, headers={"origin": url})
    assert own.status_code == 200


def test_a_key_is_asked_for_before_the_body_is_read() -> None:
    guard = Guard(keys=("one", "schlüssel"), origins=("*",))
    with running(Bench(), guard=guard) as url:
        assert httpx.get(f"{url}/health").json() == {"status": "ok"}
        for path in ("/v1/models", "/metrics", "/nothing", "/v1/backends", "/openapi.json"):
            answer = httpx.get(url + path, headers={"origin": "http://page.example"})
            assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
            assert answer.headers["access-control-allow-origin"] == "*"
        for given in ("Bearer two", "Bearer", "one", "Basic one", "Bearer one two", ""):
            assert httpx.get(f"{url}/v1/models", headers={"authorization": given}).status_code == 401, given
        for given in (b"Bearer one", "bearer  schlüssel".encode()):
            assert httpx.get(f"{url}/v1/models", headers={b"authorization": given}).status_code == 200, given
        too_large = httpx.post(f"{url}/v1/completions", content=b"x" * (9 << 20))
        assert too_large.status_code == 401


def test_a_client_is_a_key_or_an_address() -> None:
    several, one = Guard(keys=("a", "b")), Guard(keys=("a",))
    scope: dict[str, Any] = {"client": ("10.0.0.7", 4000)}
    assert several.client_of(scope, 1) == "key 2" and one.client_of(scope, 0) == "10.0.0.7"
    addresses = [("2001:db8::1", 1), ("2001:db8::ffff:2", 1), ("2001:db8:0:1::1", 1)]
    first, same, other = (one.client_of({"client": address}, 0) for address in addresses)
    assert first == same != other
    assert Guard().client_of({"client": None}, None) == ""


def test_a_client_cant_take_all_places() -> None:
    """Two of three places are one key's; with both in use it gets 429, another key its answer."""
    bench = Bench(client_share=0.7)
    guard = Guard(keys=("a", "b"))
    with running(bench, guard=guard, grants=Connections(max_connections=3)) as url:
        body = b'{"model": "red", "prompt": "w5", "max_tokens": 2}'

        def waiting() -> Iterator[bytes]:
            yield body[:5]
            first = httpx.post(f"{url}/v1/completions", json=ASKED, headers={"authorization": "Bearer a"})
            statuses.append(first.status_code)

            def inner() -> Iterator[bytes]:
                yield body[:5]
                full = httpx.post(f"{url}/v1/completions", json=ASKED, headers={"authorization": "Bearer a"})
                statuses.append(full.status_code)
                told.append(full)
                other = httpx.post(f"{url}/v1/completions", json=ASKED, headers={"authorization": "Bearer b"})
                statuses.append(other.status_code)
                yield body[5:]

            statuses.append(post(inner()))
            yield body[5:]

        def post(content: Iterator[bytes]) -> int:
            headers = {"authorization": "Bearer a", "content-type": "application/json"}
            return httpx.post(f"{url}/v1/completions", content=content, headers=headers).status_code

        statuses: list[int] = []
        told: list[httpx.Response] = []
        assert post(waiting()) == 200
        assert statuses == [200, 429, 200, 200]
        assert int(told[0].headers["retry-after"]) >= 1 and "one client" in told[0].json()["error"]["message"]


@pytest.mark.parametrize("trusted", [(), ("127.0.0.1",)])
def test_a_proxys_word_counts_where_it_is_trusted(trusted: tuple[str, ...]) -> None:
    app, seen = FastAPI(), []

    @app.get("/v1/seen")
    async def see(request: Request) -> None:
        seen.append(client_of(request))

    add_gate(app, Guard(), Places(9, 1), lambda status: None)
    with listening(app, trusted_proxy=trusted) as url:
        for address in ("10.0.0.1", "2001:db8::7"):
            httpx.get(f"{url}/v1/seen", headers={"x-forwarded-for": address})
    assert seen == (["10.0.0.1", "2001:db8::/64"] if trusted else ["127.0.0.1", "127.0.0.1"])


def test_health_fails_with_the_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()

    def broken(*_: Any) -> None:
        raise RuntimeError("secret")

    with running(bench) as url:
        assert httpx.get(f"{url}/health").status_code == 200
        monkeypatch.setattr(bench.scheduler, "_route_new", broken)
        answer = httpx.post(f"{url}/v1/completions", json=ASKED)
        assert answer.status_code == 500 and "secret" not in answer.text
        health = httpx.get(f"{url}/health")
        assert health.status_code == 503 and health.json() == {"status": "failing"}
        assert httpx.post(f"{url}/v1/completions", json=ASKED).status_code in (429, 503)


def test_what_nobody_foresaw_is_told_in_the_usual_form(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr("seap.serving.server.app._requests", broken)
    answer = httpx.post(f"{url}/v1/completions", json=ASKED)
    assert answer.status_code == 500 and "secret" not in answer.text
    assert answer.json()["error"]["type"] == "server_error" and "log" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nothing", 404), ("PUT", "/v1/models", 405), ("GET", "/v1/completions", 405), ("GET", "/docs", 404)],
)
def test_what_there_is_not_is_told_in_the_usual_form(url: str, method: str, path: str, status: int) -> None:
    answer = httpx.request(method, url + path)
    assert answer.status_code == status and {"message", "type", "param", "code"} == answer.json()["error"].keys()


def test_keys_from_options_files_and_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\nfirst\n\n second \nfirst\n")
    environment = {"SEAP_API_KEY": "variable"}
    assert make_guard(Access(api_key_file=file), "127.0.0.1", environment).keys == ("first", "second")
    assert make_guard(Access(api_key="given"), "127.0.0.1", environment).keys == ("given",)
    assert make_guard(Access(), "127.0.0.1", environment).keys == ("variable",)
    assert make_guard(Access(), "127.0.0.1", {}).keys == ()
    with pytest.raises(UserError, match="give one of them"):
        read_keys("a", file, None, "--api-key")
    with pytest.raises(UserError, match="is empty"):
        read_keys(None, None, "", "--api-key")
    file.write_text("\n# nothing\n")
    with pytest.raises(UserError, match="has no key"):
        read_keys(None, file, None, "--api-key")
    with pytest.raises(UserError, match="can't be read"):
        read_keys(None, tmp_path, None, "--api-key")
    for access in (Access(allow_origin=("page.example",)), Access(allowed_host=("http://x",))):
        with pytest.raises(UserError, match="such as"):
            make_guard(access, "127.0.0.1", {})
