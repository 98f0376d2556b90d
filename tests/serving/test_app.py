"""The server, by OpenAI's own client and by hand: whole and streamed answers, routing, errors, limits, hanging up."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from live import PROMPT, expected, running
from routed import OPTIONS, tasks_files
from toy import WORDS
from workload import TASKS, Bench

from seap.cli.main import main
from seap.serving.options import Connections
from seap.serving.routing.router import Router
from seap.serving.routing.routing import make_router
from seap.serving.server.access import Guard
from seap.serving.server.hosts import is_loopback
from seap.serving.server.run import bind

MAX_BODY = Connections().max_body_mb << 20


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    bench = Bench()
    router: Router = make_router(
        bench.alone["dense"], bench.tokenizer, tasks_files(tmp_path_factory.mktemp("tasks")), OPTIONS
    )
    bench.scheduler.router = router
    return bench


@pytest.fixture(scope="module")
def url(bench: Bench) -> Iterator[str]:
    with running(bench) as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0, http_client=httpx.Client()) as client:
        yield client


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["auto", "dense", *TASKS]
    shares = client.models.retrieve("red").model_extra["seap"]
    assert 0 < shares["weights"] < 1 and len(shares["layers"]) == 3 and shares["layers"][0]["channels"] == 1
    with pytest.raises(openai.NotFoundError, match="did you mean 'red'"):
        client.models.retrieve("rde")


@pytest.mark.parametrize("task", ["dense", *TASKS])
def test_a_completion_is_what_the_tasks_model_says(client: openai.OpenAI, bench: Bench, task: str) -> None:
    made = client.completions.create(model=task, prompt=PROMPT, max_tokens=9, temperature=0)
    assert made.choices[0].text.split() == expected(bench, task, 9).split()
    assert made.choices[0].finish_reason == "length"
    assert made.usage is not None and (made.usage.prompt_tokens, made.usage.completion_tokens) == (4, 9)
    about = made.model_extra["seap"]
    assert about["task"] == task and about["confidence"] is None
    assert about["weights"] == pytest.approx(bench.runtime.weights_at_work(task), abs=1e-5)


def test_a_stream_says_the_same(client: openai.OpenAI, bench: Bench) -> None:
    chunks = [
        *client.completions.create(
            model="red", prompt=PROMPT, max_tokens=9, temperature=0, stream=True, stream_options={"include_usage": True}
        )
    ]
    text = "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)
    assert text.split() == expected(bench, "red", 9).split() and len(chunks) > 5
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
    assert chunks[-1].usage is not None and chunks[-1].usage.total_tokens == 13
    assert all(chunk.model_extra["seap"]["task"] == "red" for chunk in chunks)


@pytest.mark.parametrize("stream", [False, True])
def test_chat(client: openai.OpenAI, bench: Bench, stream: bool) -> None:
    """Without a chat template a lone message is the prompt."""
    asked: dict[str, Any] = {
        "model": "blue",
        "messages": [{"role": "user", "content": PROMPT}],
        "max_completion_tokens": 7,
        "temperature": 0,
    }
    if stream:
        chunks = [*client.chat.completions.create(stream=True, **asked)]
        assert chunks[0].choices[0].delta.role == "assistant"
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert chunks[-1].choices[0].finish_reason == "length"
    else:
        text = client.chat.completions.create(**asked).choices[0].message.content or ""
    assert text.split() == expected(bench, "blue", 7).split()


def test_auto_goes_to_the_prompts_task(client: openai.OpenAI, bench: Bench) -> None:
    for place, task in enumerate(TASKS):
        prompt = " ".join([WORDS[place], *WORDS[8 + place * 25 : 14 + place * 25], WORDS[3]])
        raw = client.completions.with_raw_response.create(model="auto", prompt=prompt, max_tokens=5, temperature=0)
        about = raw.parse().model_extra["seap"]
        assert about["task"] == raw.headers["x-seap-task"]
        assert 0 < about["confidence"] <= 1 and float(raw.headers["x-seap-weights"]) == pytest.approx(
            about["weights"], abs=1e-4
        )
        assert about["task"] == ("dense" if about["abstained"] else task)
        assert raw.parse().choices[0].text.split() == expected(bench, about["task"], 5, prompt).split()


def test_several_answers_seeds_and_logprobs(client: openai.OpenAI) -> None:
    def made(**options: Any) -> Any:
        return client.completions.create(model="green", prompt=PROMPT, max_tokens=6, **options)

    first, again = made(n=3, seed=5, logprobs=2), made(n=3, seed=5)
    texts = [choice.text for choice in first.choices]
    assert texts == [choice.text for choice in again.choices] and len({*texts}) > 1
    assert [choice.text for choice in made(n=2, seed=6).choices] == texts[1:]
    assert first.usage.prompt_tokens == 4 and first.usage.completion_tokens == 18
    known = first.choices[0].logprobs
    assert len(known.tokens) == 6 and all(value < 0 for value in known.token_logprobs)
    assert all(len(top) <= 2 for top in known.top_logprobs) and known.text_offset[0] == 0
    many = client.completions.create(model="red", prompt=[PROMPT, "w9"], max_tokens=3, n=2, temperature=0)
    assert [choice.index for choice in many.choices] == [0, 1, 2, 3] and many.usage.prompt_tokens == 5
    chat = client.chat.completions.create(
        model="red", messages=[{"role": "user", "content": PROMPT}], max_tokens=2, logprobs=True, top_logprobs=3
    )
    content = chat.choices[0].logprobs.content
    assert len(content) == 2 and len(content[0].top_logprobs) == 3 and content[0].logprob < 0


def test_stop_sequences(client: openai.OpenAI, bench: Bench) -> None:
    words = expected(bench, "red", 9).split()
    stop = words[4]
    made = client.completions.create(model="red", prompt=PROMPT, max_tokens=9, temperature=0, stop=[stop])
    assert made.choices[0].text.split() == words[: words.index(stop)] and made.choices[0].finish_reason == "stop"


BAD: list[tuple[dict[str, Any], int, str]] = [
    ({"model": "rde", "prompt": "w5"}, 404, "did you mean 'red'"),
    ({"prompt": "w5"}, 400, "model"),
    ({"model": "red"}, 400, "prompt"),
    ({"model": "red", "prompt": ""}, 400, "empty"),
    ({"model": "red", "prompt": []}, 400, "empty"),
    ({"model": "red", "prompt": [5, 4000]}, 400, "token 4000"),
    ({"model": "red", "prompt": {"a": 1}}, 400, "prompt"),
    ({"model": "red", "prompt": "w5", "max_tokens": 0}, 400, "max_tokens"),
    ({"model": "red", "prompt": "w5", "max_tokens": "many"}, 400, "max_tokens"),
    ({"model": "red", "prompt": "w5", "temperature": 9}, 400, "temperature"),
    ({"model": "red", "prompt": "w5", "top_p": 0}, 400, "top_p"),
    ({"model": "red", "prompt": "w5", "n": 99}, 400, "n"),
    ({"model": "red", "prompt": "w5", "stop": [""]}, 400, "stop"),
    ({"model": "red", "prompt": "w5", "suffix": "w6"}, 400, "suffix: 'w6' is not supported"),
    ({"model": "red", "prompt": "w5 " * 70, "max_tokens": 1}, 400, "context 64"),
    ({"model": "red", "prompt": "w5 " * 60, "max_tokens": 9}, 400, "lower max_tokens"),
    ({"model": "red", "prompt": ["w5"] * 100, "n": 2}, 400, "128 answers"),
]


@pytest.mark.parametrize(("body", "status", "message"), BAD)
def test_bad_requests(url: str, body: dict[str, Any], status: int, message: str) -> None:
    answer = httpx.post(f"{url}/v1/completions", json=body)
    assert answer.status_code == status and message in answer.json()["error"]["message"]
    assert answer.json()["error"]["type"]


def test_bad_bodies(url: str) -> None:
    found = httpx.post(f"{url}/v1/completions", content=b'{"model": ', headers={"content-type": "application/json"})
    assert found.status_code == 400 and "no JSON" in found.json()["error"]["message"]
    found = httpx.post(f"{url}/v1/completions", content=b"[1]", headers={"content-type": "application/json"})
    assert found.status_code == 400
    assert httpx.post(f"{url}/v1/completions", content=b"x" * (MAX_BODY + 1)).status_code == 413
    parts = (b" " * (1 << 20) for _ in range(9))
    assert httpx.post(f"{url}/v1/completions", content=parts).status_code == 413
    chat = {"model": "red", "messages": [{"role": "robot", "content": "w5"}]}
    assert httpx.post(f"{url}/v1/chat/completions", json=chat).status_code == 400
    assert httpx.post(f"{url}/v1/chat/completions", json=chat | {"messages": []}).status_code == 400
    assert httpx.get(f"{url}/v1/completions").status_code == 405 and httpx.get(f"{url}/nothing").status_code == 404


def test_health_and_metrics(url: str, client: openai.OpenAI) -> None:
    client.completions.create(model="blue", prompt=PROMPT, max_tokens=3)
    client.completions.create(model="auto", prompt=PROMPT, max_tokens=1)
    assert httpx.get(f"{url}/health").json() == {"status": "ok"}
    text = httpx.get(f"{url}/metrics").text
    assert 'seap_requests_total{outcome="length",task="blue"}' in text
    assert 'seap_tokens_total{task="blue"}' in text and "seap_router_drift " in text
    numbers = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[:1] != "#")
    assert float(numbers["seap_routed_total"]) >= 1 and float(numbers["seap_waiting"]) == 0


def test_a_key_is_asked_for() -> None:
    with running(Bench(), guard=Guard(keys=("secret",))) as url:
        assert httpx.get(f"{url}/v1/models").status_code == 401 and httpx.get(f"{url}/health").status_code == 200
        wrong = httpx.get(f"{url}/v1/models", headers={"authorization": "Bearer wrong"})
        assert wrong.status_code == 401 and "API key" in wrong.json()["error"]["message"]
        with openai.OpenAI(base_url=f"{url}/v1", api_key="secret", http_client=httpx.Client()) as client:
            assert [model.id for model in client.models.list()] == ["dense", *TASKS]


def test_a_full_server_says_when_to_come_back() -> None:
    bench = Bench(max_rows=1, max_queue=1)
    asked = {"model": "red", "prompt": "w5", "max_tokens": 60, "temperature": 0}
    with running(bench) as url:
        answers: list[httpx.Response] = []
        threads = [
            threading.Thread(target=lambda: answers.append(httpx.post(f"{url}/v1/completions", json=asked)))
            for _ in range(12)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    codes = sorted(answer.status_code for answer in answers)
    assert codes[0] == 200 and codes[-1] == 429 and set(codes) == {200, 429}
    assert len({answer.json()["choices"][0]["text"] for answer in answers if answer.status_code == 200}) == 1
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert int(refused.headers["retry-after"]) >= 1 and refused.json()["error"]["type"] == "rate_limit_error"


def test_a_server_whose_scheduler_failed_says_503(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()

    def broken() -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(bench.scheduler, "_run_until_closed", broken)
    asked = {"model": "red", "prompt": "w5", "max_tokens": 4}
    with running(bench) as url:
        httpx.get(f"{url}/health")  # it has started
        bench.scheduler._thread.join(9)
        answers = [httpx.post(f"{url}/v1/completions", json=asked | {"stream": stream}) for stream in (False, True)]
        health = httpx.get(f"{url}/health")
    assert {answer.status_code for answer in (*answers, health)} == {503}
    assert all("must be started again" in answer.json()["error"]["message"] for answer in answers)


@pytest.mark.parametrize("stream", [True, False])
def test_who_hangs_up_is_not_waited_for(stream: bool) -> None:
    bench = Bench(max_rows=1)
    body = json.dumps({"model": "red", "prompt": "w5", "max_tokens": 60, "stream": stream}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    head += f"content-length: {len(body)}"
    slow = threading.Event()

    def wait(*_: Any) -> None:
        slow.wait(0.05)

    bench.runtime.model.register_forward_pre_hook(wait)
    with running(bench) as url:
        place = url.removeprefix("http://").split(":")
        with socket.create_connection((place[0], int(place[1]))) as raw:
            raw.sendall(head.encode() + b"\r\n\r\n" + body)
            wait_for(lambda: bool(bench.scheduler.running))
        wait_for(lambda: not bench.scheduler.running)
        slow.set()
        assert bench.scheduler.num_tokens < 55
        assert 'outcome="hung up"' in httpx.get(f"{url}/metrics").text


def wait_for(condition: Any, seconds: float = 10) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


def test_stopping_finishes_what_runs() -> None:
    bench = Bench()
    answers: list[httpx.Response] = []
    asked = {"model": "red", "prompt": "w5", "max_tokens": 50, "temperature": 0}
    with running(bench) as url:
        thread = threading.Thread(target=lambda: answers.append(httpx.post(f"{url}/v1/completions", json=asked)))
        thread.start()
        wait_for(lambda: bool(bench.scheduler.running))
    thread.join()
    assert answers[0].status_code == 200 and answers[0].json()["usage"]["completion_tokens"] == 50


def test_where_it_listens(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert is_loopback("127.0.0.1") and is_loopback("::1") and is_loopback("localhost")
    assert not is_loopback("0.0.0.0") and not is_loopback("example.org")
    taken = bind("127.0.0.1", 0)
    taken.listen()
    port = taken.getsockname()[1]
    assert main(["serve", "--demo", "--port", str(port)]) == 1
    assert f"can't listen on 127.0.0.1 port {port}" in capsys.readouterr().err
    taken.close()
    assert main(["serve"]) == 1 and "no networks to serve" in capsys.readouterr().err
    assert (
        main(["serve", "--demo", "--masks", str(tmp_path)]) == 1 and "leave the others out" in capsys.readouterr().err
    )
