"""seap serve --backend: two servers of our own behind a router, streams, faults and keys."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from live import expected, listening, running
from routed import OPTIONS, tasks_files
from toy import WORDS
from workload import TASKS, Bench

from seap.cli.main import main
from seap.errors import UserError
from seap.serving.routing.routing import make_router
from seap.serving.server.access import Guard
from seap.serving.server.forward import Backend, Forwarder, create_forwarder, find_backends, read_backends


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench()


@pytest.fixture(scope="module")
def forwarder(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forwarder]:
    """`red` and `dense` on one server with a key, `green` and `blue` on another."""
    specs = tasks_files(tmp_path_factory.mktemp("tasks"))
    router = make_router(bench.alone["dense"], bench.tokenizer, specs, OPTIONS)
    inner = Guard(keys=("inner",))
    with running(bench, guard=inner) as one, running(Bench(), guard=inner) as two:
        places = {"red": one, "dense": one, "green": two, "blue": two}
        yield Forwarder(
            backends={task: Backend(f"{url}/v1", task) for task, url in places.items()},
            router=router,
            model=bench.alone["dense"],
            tokenizer=bench.tokenizer,
            fallback="dense",
            guard=Guard(keys=("outer",)),
            backend_key="inner",
        )


def prompt_of(place: int) -> str:
    return " ".join([WORDS[place], *WORDS[8 + place * 25 : 14 + place * 25], WORDS[3]])


def test_each_prompt_is_answered_by_its_tasks_server(forwarder: Forwarder, bench: Bench) -> None:
    with (
        listening(create_forwarder(forwarder)) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="outer", max_retries=0, http_client=httpx.Client()) as client,
    ):
        assert [model.id for model in client.models.list()] == ["auto", "red", "dense", "green", "blue"]
        for place, _ in enumerate(TASKS):
            prompt = prompt_of(place)
            asked: dict[str, Any] = {"model": "auto", "max_tokens": 5, "temperature": 0}
            raw = client.completions.with_raw_response.create(prompt=prompt, **asked)
            task = raw.headers["x-seap-task"]
            assert task in (TASKS[place], "dense") and 0 < float(raw.headers["x-seap-confidence"]) <= 1
            assert raw.parse().choices[0].text.split() == expected(bench, task, 5, prompt).split()
            chunks = client.chat.completions.create(
                messages=[{"role": "user", "content": prompt}], stream=True, **asked
            )
            said = [chunk.choices[0].delta.content or "" for chunk in chunks]
            assert "".join(said).split() == expected(bench, task, 5, prompt).split() and len(said) > 3
        with pytest.raises(openai.NotFoundError, match="did you mean 'red'"):
            client.completions.create(model="rde", prompt="w5")
        with pytest.raises(openai.BadRequestError, match="temperature"):
            client.completions.create(model="red", prompt="w5", temperature=9)
        assert httpx.post(f"{url}/v1/completions", json={"model": "red", "prompt": "w5"}).status_code == 401
        headers = {"authorization": "Bearer outer"}
        for body in (
            [1],
            {"model": 3},
            {"model": "auto"},
            {"model": "auto", "messages": [3]},
            {"model": "auto", "prompt": [5]},
        ):
            assert httpx.post(f"{url}/v1/completions", json=body, headers=headers).status_code == 400, body
        assert httpx.get(f"{url}/health").json() == {"status": "ok"}
        told = httpx.get(f"{url}/v1/backends", headers=headers)
        assert told.json() == dict.fromkeys(forwarder.backends, True)


def test_faults_are_tried_again_and_then_told(forwarder: Forwarder) -> None:
    app, calls = FastAPI(), []

    @app.post("/v1/completions")
    async def flaky() -> JSONResponse:
        calls.append(1)
        return JSONResponse({"try": len(calls)}, 503 if len(calls) < 3 else 200)

    gone = Backend("http://127.0.0.1:9/v1")
    with listening(app) as url:
        backends = {"red": Backend(f"{url}/v1"), "dense": gone}
        broken = Forwarder(**{**vars(forwarder), "backends": backends, "guard": Guard()})
        with listening(create_forwarder(broken)) as front:
            answer = httpx.post(f"{front}/v1/completions", json={"model": "red", "prompt": "w5"})
            assert answer.status_code == 200 and answer.json() == {"try": 3}
            answer = httpx.post(f"{front}/v1/completions", json={"model": "dense", "prompt": "w5"})
            assert answer.status_code == 502 and "doesn't answer" in answer.json()["error"]["message"]
            health = httpx.get(f"{front}/health")
            assert health.status_code == 503 and health.json() == {"status": "failing"}
            assert httpx.get(f"{front}/v1/backends").json() == {"red": True, "dense": False}


def test_backends(forwarder: Forwarder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "map.json"
    file.write_text(json.dumps({"a": "http://x:1/v1/", "b": {"url": "http://y/v1", "model": "m"}}))
    assert read_backends(str(file)) == {"a": Backend("http://x:1/v1"), "b": Backend("http://y/v1", "m")}
    url = forwarder.backends["red"].url
    found = asyncio.run(find_backends(url, "inner"))
    assert found == {task: Backend(url, task) for task in ("dense", *TASKS)}
    with pytest.raises(UserError, match="can't list its models"):
        asyncio.run(find_backends("http://127.0.0.1:9/v1", None))
    with pytest.raises(UserError, match="neither a URL nor a JSON file"):
        read_backends("nothing.json")
    assert main(["serve", "--backend", url]) == 1 and "give --router FILE" in capsys.readouterr().err
