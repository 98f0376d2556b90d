"""What a body may hold is looked at before it is built: first error alone, linear in any input, off the event loop."""

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from live import PROMPT, expected, running
from workload import Bench

from seap.errors import UserError
from seap.serving.options import Limits
from seap.serving.scheduling.tickets import FullError
from seap.serving.server.fields import FieldError
from seap.serving.server.prompts import encode_all
from seap.serving.server.reading import SHORT, Pools
from seap.serving.server.shape import MAX_DEPTH, MAX_ENTRIES, Bounds, check_structure, parse
from seap.serving.server.tokenizing import PIECE, Tokenizing

BOUNDS = Bounds(values=5000, tokens=64)
MANY = 20_000


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "dense"} | fields).encode()


OBJECTS: list[Any] = [{}] * MANY
TOO_MUCH: list[tuple[bytes, str, str]] = [
    (body(prompt=OBJECTS), "", "more than 5000 values"),
    (body(messages=OBJECTS), "", "more than 5000 values"),
    (body(messages=[{"role": "user", "content": OBJECTS}]), "", "more than 5000 values"),
    (body(**{f"x{number}": 1 for number in range(MANY)}), "", "more than 5000 values"),
    (body(prompt=[{}] * 2000), "prompt", "2000 prompts; at most 128"),
    (body(prompt=["w5"] * 2000), "prompt", "2000 prompts; at most 128"),
    (body(prompt=[7] * 65), "prompt", "65 token ids"),
    (body(prompt=[[7], [7] * 65]), "prompt[1]", "65 token ids"),
    (body(prompt=[7] + [{}] * 30), "prompt[1]", "must be a token id"),
    (body(prompt=[7, True]), "prompt[1]", "must be a token id"),
    (body(messages=[{}] * (MAX_ENTRIES + 1)), "messages", "at most 1024"),
    (body(messages=[{"content": [{}] * (MAX_ENTRIES + 1)}]), "messages[0].content", "at most 1024"),
    (body(stop=["a"] * (MAX_ENTRIES + 1)), "stop", "at most 1024"),
    (body(metadata={f"x{number}": 1 for number in range(MAX_ENTRIES + 1)}), "metadata", "at most 1024"),
    (body(**{"x" * 2000: 1}), "", "name"),
    (b"[" * MANY, "", f"deeper than {MAX_DEPTH}"),
    (b'{"a":' * MANY, "", f"deeper than {MAX_DEPTH}"),
    (b'{"prompt": ' + b"[" * (MAX_DEPTH + 1), "", f"deeper than {MAX_DEPTH}"),
    (b"[1]", "", "JSON object"),
    (b'{"model": NaN}', "", "no JSON"),
    (b'{"seed": ' + b"1" * 5000 + b"}", "", "no JSON"),
    (b"\xff\xfe{", "", "no JSON"),
    (b"", "", "no JSON"),
]


@pytest.mark.parametrize(("raw", "param", "message"), TOO_MUCH)
def test_too_much_is_refused_at_the_first_thing(raw: bytes, param: str, message: str) -> None:
    with pytest.raises(FieldError, match=r".*") as caught:
        parse(raw, BOUNDS)
    assert message in str(caught.value) and caught.value.param == param


def test_signs_inside_texts_are_text() -> None:
    text = '[{,"\\' * 3000
    assert parse(body(prompt=text), BOUNDS)["prompt"] == text
    assert parse(body(prompt="[" * 3000, user=",\\" * 3000), BOUNDS)["prompt"] == "[" * 3000


@pytest.mark.parametrize(
    "raw", [b'"\\' * 300_000, b'{"a":"' + b'\\"' * 300_000, b'"' * 600_001, b",[" + b'"a\\' * 300_000]
)
def test_looking_takes_time_in_proportion(raw: bytes) -> None:
    """Texts that never end: looking again from every quote would take hours."""
    with pytest.raises(FieldError):
        parse(b"[" * (MAX_DEPTH - 1) + raw + b"[" * 70, BOUNDS)
    check_structure(raw, 10**9)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(Bench(max_queued_tokens=2048)) as url:
        yield url


@pytest.mark.parametrize("path", ["completions", "chat/completions"])
@pytest.mark.parametrize("field", ["prompt", "messages", "metadata"])
def test_the_server_refuses_two_megabytes_of_objects(url: str, path: str, field: str) -> None:
    raw = b'{"model":"dense","%b":[%b]}' % (field.encode(), b",".join([b"{}"] * 650_000))
    answer = httpx.post(f"{url}/v1/{path}", content=raw, headers={"content-type": "application/json"}, timeout=60)
    assert answer.status_code == 400 and "values" in answer.json()["error"]["message"]


def test_health_answers_while_a_body_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a body waits for this test: /health and a short prompt don't."""
    at_it, go_on, bench = threading.Event(), threading.Event(), Bench()

    def slow(raw: bytes, most: int) -> None:
        if len(raw) > SHORT:
            at_it.set()
            assert go_on.wait(60)

    monkeypatch.setattr("seap.serving.server.shape.check_structure", slow)
    long = {"model": "red", "prompt": "w5 " * SHORT, "max_tokens": 2}
    with running(bench) as url:
        answers: list[httpx.Response] = []
        threads = [
            threading.Thread(target=lambda: answers.append(httpx.post(f"{url}/v1/completions", json=long, timeout=60)))
            for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        assert at_it.wait(60)
        assert httpx.get(f"{url}/health", timeout=20).status_code == 200
        asked = {"model": "red", "prompt": PROMPT, "max_tokens": 5, "temperature": 0}
        short = httpx.post(f"{url}/v1/completions", json=asked, timeout=20).json()["choices"][0]["text"]
        assert short.split() == expected(bench, "red", 5).split() and not answers
        go_on.set()
        for thread in threads:
            thread.join()
    assert [answer.status_code for answer in answers] == [400] * 6


def test_bodies_in_all_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seap.serving.server.reading.BODIES", 0.001)
    with running(Bench()) as url:
        answer = httpx.post(f"{url}/v1/completions", json={"model": "red", "prompt": "w5 " * 9000})
    assert answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1


class Counting:
    """A tokenizer of one token a word, that counts the characters that it was given."""

    def __init__(self) -> None:
        self.read = 0
        self.chat_template = None

    def get_vocab(self) -> dict[str, int]:
        return {"longest": 0}

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        self.read += len(text)
        return {"input_ids": [1] * len(text.split())}


def tokenizing(context: int, **limits: Any) -> tuple[Tokenizing, Counting]:
    tokenizer = Counting()
    return Tokenizing(tokenizer, Pools(), Limits(max_tokens_in_flight=1 << 20, **limits), context), tokenizer


def test_a_text_is_refused_by_its_bytes_before_a_token_is_made() -> None:
    made, tokenizer = tokenizing(100)
    with pytest.raises(UserError, match="801 bytes; the model's context 100 holds 800 at most"):
        asyncio.run(made.ids("a" * 801, "me"))
    with pytest.raises(UserError, match="half a character"):
        asyncio.run(made.ids("\ud800", "me"))
    assert tokenizer.read == 0
    assert asyncio.run(made.ids("é" * 400, "me")) == (1,)


def test_a_long_text_is_counted_until_it_is_too_long() -> None:
    made, tokenizer = tokenizing(20_000)
    with pytest.raises(UserError, match="more than 2"):
        asyncio.run(made.ids("a " * 80_000, "me"))
    assert 40_000 <= tokenizer.read <= 40_000 + 2 * PIECE
    assert len(asyncio.run(made.ids("a " * 20_000, "me"))) == 20_000
    made.pools.close()


def test_one_client_has_its_share_of_long_texts_and_short_ones_pass() -> None:
    made, _ = tokenizing(20_000, client_share=0.25)
    go_on, long = threading.Event(), "a " * 20_000

    def slow(text: str, **_: Any) -> dict[str, list[int]]:
        if len(text) > 100:
            assert go_on.wait(60)
        return {"input_ids": [1] * len(text.split())}

    made.tokenizer = slow

    async def all_at_once() -> None:
        first = [asyncio.ensure_future(made.ids(long, "a")) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(FullError, match="long prompts are the most for one client"):
            await made.ids(long, "a")
        other = asyncio.ensure_future(made.ids(long, "b"))
        assert await asyncio.wait_for(made.ids("a b", "a"), 20) == (1, 1)
        assert not any(one.done() for one in first)
        go_on.set()
        assert [len(one) for one in await asyncio.gather(*first, other)] == [20_000] * 3

    asyncio.run(all_at_once())
    made.pools.close()


def test_many_texts_together_count_as_a_long_one() -> None:
    made, _ = tokenizing(20_000, client_share=0.125)

    async def with_one_at_it() -> None:
        with made.long.taken("a"):
            assert len((await encode_all(made, ["a b"] * 9, 9, "a"))[8].ids) == 2
            with pytest.raises(FullError, match="long prompts"):
                await encode_all(made, ["a b " * 100] * 99, 9, "a")
        assert len(await encode_all(made, ["a b " * 100] * 99, 9, "a")) == 99

    asyncio.run(with_one_at_it())
    made.pools.close()


def test_echoes_of_many_tokens_count_as_a_long_text() -> None:
    made, tokenizer = tokenizing(20_000, client_share=0.125)
    threads: list[str] = []

    def decode(ids: list[int], skip_special_tokens: bool = True) -> str:
        threads.append(threading.current_thread().name.rpartition("_")[0])
        return "a" * len(ids)

    tokenizer.decode = decode  # type: ignore[attr-defined]

    async def with_one_at_it() -> None:
        with made.long.taken("a"):
            assert [echo.text for echo in await made.echoes([[1, 2]] * 2, ["a b", [1, 2]], "a")] == ["a b", "aa"]
            with pytest.raises(FullError, match="long prompts"):
                await made.echoes([[1] * 500] * 9, [[1] * 500] * 9, "a")
        assert {*threads} == {"seap-short"} and not threads.clear()
        assert len(await made.echoes([[1] * 500] * 9, [[1] * 500] * 9, "a")) == 9
        assert {*threads} == {"seap-long"} and not made.long.held

    asyncio.run(with_one_at_it())
    made.pools.close()


def test_who_hangs_up_is_not_tokenized_for() -> None:
    made, tokenizer = tokenizing(1 << 20)

    async def hang_up() -> None:
        task = asyncio.ensure_future(made.ids("a " * 1_000_000, "me"))
        while tokenizer.read < 2 * PIECE:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        read = tokenizer.read
        await asyncio.sleep(0.05)
        assert tokenizer.read <= read + PIECE and not made.long.held

    asyncio.run(hang_up())
    made.pools.close()
