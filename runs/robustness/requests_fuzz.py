"""Thousands of mutated requests against a server, while other clients' answers are checked.

    python runs/robustness/requests_fuzz.py [--requests 3000] [--seed 0]

A tiny random model with three networks, on loopback. Bodies are good ones with fields set, lost, doubled, nested or
made of another kind, numbers at the limits of their types, halves of characters, token ids that the model can't read,
and bytes that are cut, flipped or put in. Whatever comes: an answer within a minute, in OpenAI's form if it is an
error, no 500, nothing logged as an error; and every good client gets the text that it got alone.
"""

import argparse
import collections
import json
import logging
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import torch
import uvicorn
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from seap.environment import provenance
from seap.models.arch import describe
from seap.serving.networks.runtime import TaskRuntime
from seap.serving.options import Limits
from seap.serving.scheduling.scheduler import Scheduler
from seap.serving.server.app import Service, create_app
from seap.serving.server.fields import HARMLESS, NEUTRAL
from seap.serving.server.protocol import ChatRequest, CompletionRequest
from seap.serving.server.run import address, bind

VOCABULARY, TASKS, SECONDS = 120, ("red", "green", "blue"), 60
OWN = [field.alias or name for kind in (CompletionRequest, ChatRequest) for name, field in kind.model_fields.items()]
FIELDS = sorted({*OWN, *NEUTRAL, *HARMLESS, "nobody_knows"})
ATOMS: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 16, 119, 120, 4096, 2**31, 2**63 - 1, 2**63, -(2**63) - 1, 10**30, 10**400),
    *(0.0, -0.0, 0.5, 1.5, 1e-37, 1e-39, 1e-46, 5e-324, 1e38, 1e39, 1e300, -1e300, float("nan"), float("inf")),
    *("", " ", "w5", "w5 [BEYOND] w6", "[BEYOND]", "\ud800", "w5 \udfff", "\x00", "é" * 50, "x" * 5000, "none", "auto"),
    *([], {}, [[]], [{}], [None], [5, 6], [5, 120], [-1], [5, "w5"], ["w5", "w6"], {"5": 1}, {"5": -100}, {"120": 1}),
    *({"type": "text"}, {"type": "json_object"}, {"role": "user", "content": "w5"}, [{"type": "text", "text": "w5"}]),
]


class Log(logging.Handler):
    """Keeps what is logged as an error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        told = logging.Formatter().format(record)
        self.found.append(told[-2000:])


def make_scheduler(seed: int) -> Scheduler:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        eos_token_id=None,
        bos_token_id=None,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    words = {f"w{number}": number for number in range(VOCABULARY)}
    whole = Tokenizer(models.WordLevel(words, unk_token="w0"))
    whole.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=whole, unk_token="w0")
    tokenizer.add_tokens(["[BEYOND]"])
    masks = {}
    for task in TASKS:
        kept = {axis.key: torch.rand(axis.units) < 0.6 for axis in describe(model).axes}
        masks[task] = {key: mask | (torch.arange(len(mask)) == 0) for key, mask in kept.items()}
    return Scheduler(TaskRuntime(model, masks), tokenizer, Limits())


def good_body(rng: random.Random) -> tuple[str, dict[str, Any]]:
    """A path and a body that is answered with 200."""
    text = " ".join(f"w{rng.randrange(3, VOCABULARY)}" for _ in range(rng.randint(1, 20)))
    body: dict[str, Any] = {"model": rng.choice(TASKS), "max_tokens": rng.randint(1, 20), "temperature": 0}
    if rng.random() < 0.5:
        call = {"id": "c", "type": "function", "function": {"name": "w3", "arguments": "{}"}}
        turns = [{"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "content": "w4"}]
        turns = [*rng.choice(([], turns)), {"role": "user", "content": text}]
        return "/v1/chat/completions", body | {"messages": turns}
    return "/v1/completions", body | {"prompt": rng.choice([text, [text, "w5"], [5, 6, 7]])}


def mutated(rng: random.Random) -> tuple[str, bytes, dict[str, str]]:
    """A path, a body's bytes and headers; a few requests stay good."""
    path, body = good_body(rng)
    body |= {"stream": True} if rng.random() < 0.2 else {}
    body |= {"echo": True, "logprobs": 2} if rng.random() < 0.2 else {}
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        _change(rng, body)
    raw = json.dumps(body, ensure_ascii=rng.random() < 0.9).encode(errors="surrogatepass")
    if rng.random() < 0.15:
        place = rng.randrange(len(raw))
        cut, put = raw[:place], bytes(rng.choices(range(256), k=rng.randint(0, 3)))
        raw = rng.choice([cut, cut + put + raw[place:], cut + raw[place + 1 :], b"[" * 5000, cut * 2, b"", put])
    kind = "application/json" if rng.random() < 0.95 else rng.choice(["", "text/plain", "application/json; x=1"])
    return path, raw, {"content-type": kind} if kind else {}


def _change(rng: random.Random, body: dict[str, Any]) -> None:
    inside: Any = body
    while rng.random() < 0.4:  # further inside, where there is something
        deeper = [
            one for one in (inside.values() if isinstance(inside, dict) else inside) if isinstance(one, dict | list)
        ]
        if not deeper:
            break
        inside = rng.choice(deeper)
    value = rng.choice(ATOMS)
    value = rng.choice([value, value, value, [value], {"x": value}, [value] * rng.choice((2, 2000))])
    if isinstance(inside, list):
        inside.insert(rng.randint(0, len(inside)), value)
    elif inside and rng.random() < 0.15:
        del inside[rng.choice([*inside])]
    else:
        names = FIELDS if inside is body else [*inside, "role", "content", "name", "tool_calls", "\ud800"]
        inside[rng.choice(names)] = value


def fault(answer: httpx.Response) -> str | None:
    """What is wrong with an answer; None where it is as it should be."""
    if answer.status_code >= 500:
        return f"{answer.status_code}: {answer.text[:300]}"
    if answer.status_code != 200:
        try:
            error = answer.json()["error"]
            known = {"message", "type", "param", "code"} == error.keys() and bool(error["message"])
        except (ValueError, KeyError, TypeError, AttributeError):
            known = False
        return None if known else f"{answer.status_code}, not OpenAI's form: {answer.text[:300]}"
    if "event-stream" not in answer.headers["content-type"]:
        return None if answer.json()["choices"] else "no choices"
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    failed = [line for line in lines[:-1] if "error" in json.loads(line)]
    return f"in a stream: {failed[0][:300]}" if failed else None if lines[-1] == "[DONE]" else "a stream without an end"


class GoodClient:
    """Asks the same few things again and again, and checks the text."""

    def __init__(self, url: str, seed: int) -> None:
        self.url, self.rng, self.client = url, random.Random(f"good {seed}"), httpx.Client(timeout=SECONDS)
        self.bodies = [good_body(self.rng) for _ in range(6)]
        self.wanted = [self.texts(*body) for body in self.bodies]  # nobody else asks yet
        self.answers, self.wrong = 0, []

    def texts(self, path: str, body: dict[str, Any]) -> list[str]:
        while True:
            answer = self.client.post(f"{self.url}{path}", json=body)
            if answer.status_code != 429:  # it is told to come back
                break
            time.sleep(0.2)
        if answer.status_code != 200:
            return [answer.text]
        return [one["text"] if "text" in one else one["message"]["content"] for one in answer.json()["choices"]]

    def work(self, stop: threading.Event) -> None:
        while not stop.is_set():
            place = self.rng.randrange(len(self.bodies))
            found = self.texts(*self.bodies[place])
            self.answers += 1
            if found != self.wanted[place]:
                self.wrong.append({"body": self.bodies[place][1], "wanted": self.wanted[place], "found": found})


def attack(url: str, options: argparse.Namespace) -> dict[str, Any]:
    """All the requests, `options.together` at a time."""
    statuses: collections.Counter[int] = collections.Counter()
    faults, slowest, slow_body = [], 0.0, ""
    # shorter than the server's: a request on a connection that is just being closed would get no answer
    client = httpx.Client(timeout=SECONDS, limits=httpx.Limits(keepalive_expiry=2))

    def one(number: int) -> tuple[int, str | None, float, str]:
        path, raw, headers = mutated(random.Random(f"{options.seed}/{number}"))
        began = time.monotonic()
        try:
            answer = client.post(url + path, content=raw, headers=headers)
        except httpx.HTTPError as error:
            return 0, f"{type(error).__name__}: {error}", time.monotonic() - began, repr(raw[:300])
        return answer.status_code, fault(answer), time.monotonic() - began, repr(raw[:300])

    with ThreadPoolExecutor(options.together) as pool:
        for number, (status, wrong, seconds, raw) in enumerate(pool.map(one, range(options.requests))):
            statuses[status] += 1
            if seconds > slowest:
                slowest, slow_body = seconds, raw
            if wrong:
                faults.append({"number": number, "fault": wrong, "body": raw})
    slow = {"seconds": round(slowest, 2), "body": slow_body}
    return {"statuses": dict(sorted(statuses.items())), "faults": faults, "slowest": slow}


def emptied(scheduler: Scheduler, seconds: float = 20) -> tuple[int, int]:
    """What still waits and runs when nobody asks any more: (0, 0), or what is there after so long."""
    until = time.monotonic() + seconds
    while True:
        left = (scheduler.num_waiting, sum(scheduler.num_running.values()))
        if not any(left) or time.monotonic() > until:
            return left
        time.sleep(0.1)


def run(options: argparse.Namespace) -> dict[str, Any]:
    log, scheduler, bound = Log(), make_scheduler(options.seed), bind("127.0.0.1", 0)
    logging.getLogger().addHandler(log)
    app = create_app(Service(scheduler=scheduler, tokenizer=scheduler.tokenizer, name="tiny"))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", log_config=None, timeout_keep_alive=30))
    serving = threading.Thread(target=lambda: server.run(sockets=[bound]))
    serving.start()
    stop, url = threading.Event(), address(bound)
    clients = [GoodClient(url, number) for number in range(options.clients)]
    workers = [threading.Thread(target=client.work, args=(stop,)) for client in clients]
    for worker in workers:
        worker.start()
    try:
        found = attack(url, options)
    finally:
        stop.set()
        for worker in workers:
            worker.join()
        left = emptied(scheduler)
        server.should_exit = True
        serving.join()
    good = {"answers": sum(one.answers for one in clients), "wrong": [bad for one in clients for bad in one.wrong]}
    return found | {"good_clients": good, "left_waiting_and_running": left, "logged_errors": log.found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--together", type=int, default=8, help="requests at a time")
    parser.add_argument("--clients", type=int, default=3, help="good clients")
    parser.add_argument("--out", type=Path, default=Path("results/robustness/requests_fuzz.json"))
    options = parser.parse_args()
    found = run(options)
    given = {name: getattr(options, name) for name in ("requests", "seed", "together", "clients")}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"options": given} | found | provenance(), indent=1) + "\n")
    told = {name: value for name, value in found.items() if name not in ("faults", "logged_errors", "good_clients")}
    counts = {"faults": len(found["faults"]), "logged_errors": len(found["logged_errors"])}
    good = {name: value if isinstance(value, int) else len(value) for name, value in found["good_clients"].items()}
    print(json.dumps(told | counts | {"good_clients": good}))


if __name__ == "__main__":
    main()
