"""Requests as OpenAI's clients send them, against a running server: echo, tool turns, biases, and what is refused."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
import torch
from live import PROMPT, expected, listening, running
from paths import SHARED
from workload import Bench

import seap
from seap.serving.networks.runtime import TaskRuntime
from seap.serving.options import Limits
from seap.serving.scheduling.scheduler import Scheduler
from seap.serving.server.answers import Echo
from seap.serving.server.app import Service, create_app

BEYOND = "[BEYOND]"  # in the tokenizer, not in the embedding


@pytest.fixture(scope="module")
def bench() -> Bench:
    bench = Bench()
    bench.tokenizer.add_tokens([BEYOND])
    return bench


@pytest.fixture(scope="module")
def url(bench: Bench) -> Iterator[str]:
    with running(bench) as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0, http_client=httpx.Client()) as client:
        yield client


def completion(url: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/completions", json={"model": "red", "prompt": PROMPT, "max_tokens": 3} | body)


def chat(url: str, turns: list[dict[str, Any]], **body: Any) -> httpx.Response:
    given = {"model": "red", "messages": turns, "max_tokens": 3, "temperature": 0} | body
    content = json.dumps(given).encode()  # httpx itself writes no half characters
    headers = {"content-type": "application/json"}
    return httpx.post(f"{url}/v1/chat/completions", content=content, headers=headers, timeout=60)


@pytest.mark.parametrize("max_tokens", [0, 1, 2])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("ids", [False, True])
def test_echo_with_logprobs(client: openai.OpenAI, bench: Bench, max_tokens: int, stream: bool, ids: bool) -> None:
    tokens = bench.tokenizer(PROMPT)["input_ids"]
    made: Any = client.completions.create(
        model="red",
        prompt=[tokens, tokens[:2]] if ids else [PROMPT, "w5 w6"],
        max_tokens=max_tokens,
        temperature=0,
        logprobs=2,
        echo=True,
        stream=stream,
    )
    parts = [one for chunk in made for one in chunk.choices] if stream else made.choices
    own = [part for part in parts if part.index == 0]
    text = "".join(part.text for part in own)
    assert text.split() == PROMPT.split() + expected(bench, "red", 4).split()[:max_tokens]
    fields = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    names, values, tops, offsets = ([x for part in own for x in getattr(part.logprobs, name)] for name in fields)
    assert names == text.split() and values[0] is None and tops[0] is None
    assert offsets == sorted(offsets) and offsets[0] == 0 and offsets[-1] < len(text)
    whole = torch.tensor([bench.tokenizer(text)["input_ids"]])
    known = bench.alone["red"](whole).logits[0].detach().log_softmax(-1)
    for place, value in enumerate(values[1:]):
        assert value == pytest.approx(float(known[place, whole[0, place + 1]]), abs=1e-4)
        assert sorted(tops[place + 1].values()) == pytest.approx(sorted(known[place].topk(2).values.tolist()), abs=1e-4)
    if max_tokens == 0:
        assert own[-1].finish_reason == "length" and len(names) == 4
        if not stream:
            assert made.usage.completion_tokens == 0 and made.usage.prompt_tokens == 6


def test_echo_without_logprobs_and_with_several_answers(url: str, bench: Bench) -> None:
    found = completion(url, prompt=[PROMPT, "w9"], n=2, echo=True, temperature=0).json()["choices"]
    answer = expected(bench, "red", 3)
    assert [one["text"].split() for one in found[:2]] == [[*PROMPT.split(), *answer.split()]] * 2
    assert [one["text"].split()[0] for one in found[2:]] == ["w9", "w9"] and found[0]["logprobs"] is None


def test_who_hangs_up_gets_no_echo(url: str, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty prompts' echoes take two seconds here; the client waits for a tenth."""
    made, seen = Echo.of, []
    monkeypatch.setattr(Echo, "of", lambda *given: (time.sleep(0.05), seen.append(1), made(*given))[2])
    with pytest.raises(httpx.ReadTimeout):
        asked = {"model": "red", "prompt": [[5, 6]] * 40, "max_tokens": 1, "echo": True}
        httpx.post(f"{url}/v1/completions", json=asked, timeout=0.1)
    before, begun = bench.scheduler.num_tokens, len(seen)
    time.sleep(0.5)
    assert len(seen) <= begun + 2 and bench.scheduler.num_tokens == before


def test_what_an_idle_server_can_never_take_is_a_mistake() -> None:
    asked = {"model": "red", "prompt": [5], "temperature": 0, "ignore_eos": True}
    with running(Bench(max_queued_tokens=100)) as url:
        never = httpx.post(f"{url}/v1/completions", json=asked | {"n": 5, "max_tokens": 20})
        large = httpx.post(f"{url}/v1/completions", json=asked | {"n": 5, "max_tokens": 19})
    told = never.json()["error"]
    assert never.status_code == 400 and "retry-after" not in never.headers and told["param"] == "max_tokens"
    assert "at most 100 may wait; lower max_tokens or n" in told["message"]
    assert large.status_code == 200 and large.json()["usage"]["completion_tokens"] == 5 * 19


def test_a_token_beyond_the_embedding_is_refused_before_it_joins_a_batch(url: str, bench: Bench) -> None:
    """In texts, ids and chats; whoever asks beside it gets the whole answer."""
    beyond = bench.tokenizer(BEYOND)["input_ids"][0]
    assert beyond == bench.scheduler.teller.num_embeddings
    wanted = expected(bench, "red", 30).split()

    def good(_: int) -> list[str]:
        text: str = completion(url, max_tokens=30, temperature=0).json()["choices"][0]["text"]
        return text.split()

    def bad(place: int) -> httpx.Response:
        if place % 3 == 0:
            return completion(url, prompt=f"w5 {BEYOND} w6")
        if place % 3 == 1:
            return completion(url, prompt=[5, beyond])
        return chat(url, [{"role": "user", "content": f"w5 {BEYOND}"}])

    with ThreadPoolExecutor(8) as pool:
        goods, bads = pool.map(good, range(16)), pool.map(bad, range(12))
        assert all(one == wanted for one in goods)
        for place, answer in enumerate(bads):
            error = answer.json()["error"]
            assert answer.status_code == 400 and error["param"] == ("messages" if place % 3 == 2 else "prompt")
            assert str(beyond) in error["message"] and error["type"] == "invalid_request_error"


UNDERFLOW: list[dict[str, Any]] = [
    {"top_p": 1e-46},
    {"temperature": 1e-46},
    {"min_p": 1e-46},
    {"repetition_penalty": 1e-46},
    {"logit_bias": {"4000": 1}},
    {"logit_bias": {"5": 1e300}},
    {"seed": 2**63},
    {"stop_token_ids": [4000]},
]


@pytest.mark.parametrize("fields", UNDERFLOW)
def test_values_that_no_sampler_can_use_are_refused_by_name(url: str, fields: dict[str, Any]) -> None:
    answer = completion(url, **fields)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith(next(iter(fields)))


def test_what_clients_of_vllm_send_is_done(url: str, bench: Bench) -> None:
    def text(**fields: Any) -> list[str]:
        found = completion(url, **{"max_tokens": 6, "temperature": 0} | fields).json()
        return found["choices"][0]["text"].split()

    plain = expected(bench, "red", 6).split()
    assert text() == plain == text(temperature=1, top_k=1) == text(temperature=1, min_p=1) == text(top_k=-1)
    first = bench.tokenizer(plain[0])["input_ids"][0]
    assert plain[0] not in text(logit_bias={str(first): -100})
    assert text(logit_bias={"9": 100}) == [bench.tokenizer.decode([9])] * 6
    assert text(logit_bias={"9": 100}, stop_token_ids=[9]) == [bench.tokenizer.decode([9])]
    long = text(max_tokens=40)
    for fields in ({"repetition_penalty": 50}, {"presence_penalty": 2, "frequency_penalty": 2}):
        assert len({*text(max_tokens=40, **fields)}) > len({*long})


def test_an_end_token_is_passed_where_it_is_asked_for() -> None:
    bench = Bench()
    end = bench.expected(bench.tokenizer(PROMPT)["input_ids"], "red", 3)[1]
    object.__setattr__(bench.scheduler.teller, "ends", frozenset({end}))
    with running(bench) as url:
        short, whole = (completion(url, temperature=0, ignore_eos=asked).json() for asked in (False, True))
    assert short["choices"][0]["finish_reason"] == "stop" and short["usage"]["completion_tokens"] == 2
    assert whole["choices"][0]["finish_reason"] == "length" and whole["usage"]["completion_tokens"] == 3


def test_a_history_with_tools_and_nulls(url: str, bench: Bench) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "w9", "arguments": "{}"}}
    history: list[dict[str, Any]] = [
        {"role": "user", "content": PROMPT, "name": None},
        {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None, "audio": None},
        {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "w7"}]},
        {"role": "assistant", "content": None},
        {"role": "user", "content": "w8"},
    ]
    nulls = dict.fromkeys(("temperature", "top_p", "stop", "n", "seed", "logprobs", "tools", "response_format"))
    answer = chat(url, history, **nulls, tool_choice="auto", parallel_tool_calls=True, stream=None)
    assert answer.status_code == 200, answer.text
    bench.tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }} {% for c in m.tool_calls or [] %}"
        "{{ c.function.name }}({{ c.function.arguments | tojson }}){% endfor %} {% endfor %}"
    )
    try:
        assert chat(url, history).status_code == 200
    finally:
        bench.tokenizer.chat_template = None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"guided_json": {"type": "object"}}, "guided_json"),
        ({"best_of": 3}, "best_of"),
        ({"model": "rde"}, "model"),
        ({"messages": [{"role": "user", "content": "w5 " * 70}]}, "messages"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content"),
        ({"\ud800": 1}, None),
        ({"metadata": {"\ud800": [0] * 5000}}, "metadata.\\ud800"),
        ({"messages": [{"role": "user", "content": "w5", "\ud800": [0] * 5000}]}, "messages[0].\\ud800"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_name_the_field(url: str, fields: dict[str, Any], param: str | None, stream: bool) -> None:
    answer = chat(url, [{"role": "user", "content": "w5"}], **fields, stream=stream)
    error = answer.json()["error"]
    assert answer.status_code in (400, 404) and error["param"] == param
    assert error["type"] in ("invalid_request_error", "not_found_error") and error["message"]


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_a_body_of_no_type_is_told(url: str, kind: str | None) -> None:
    body = b'{"model": "red", "prompt": "w5"}'
    with httpx.Client() as raw:
        request = raw.build_request("POST", f"{url}/v1/completions", content=body)
        request.headers.update({"content-type": kind} if kind else {})
        answer = raw.send(request)
    assert answer.status_code in (400, 415)
    assert "content-type" in answer.json()["error"]["message"] and "application/json" in answer.text


@pytest.mark.skipif(not (SHARED / "cases/m8_tok_beyond").is_dir(), reason="needs ../shared, the workshop's data")
def test_a_real_tokenizer_with_ids_beyond_the_embedding() -> None:
    net, words = seap.load(str(SHARED / "cases/m8_tok_beyond"), device="cpu", dtype="float32")
    scheduler = Scheduler(TaskRuntime(net, {}), words, Limits())
    app = create_app(Service(scheduler=scheduler, tokenizer=words, name="m8"))
    with listening(app) as url, ThreadPoolExecutor(9) as pool:
        goods = [pool.submit(completion, url, model="dense", prompt="order", temperature=0) for _ in range(4)]
        bads = [pool.submit(completion, url, model="dense", prompt="order [PAD] late") for _ in range(4)]
        texts = {one.result().json()["choices"][0]["text"] for one in goods}
        found = [one.result() for one in bads]
    assert len(texts) == 1 and all(one.status_code == 400 and "4096 ('[PAD]')" in one.text for one in found)
