"""64 clients of `seap serve --demo`, first quiet, then beside those who would stop it: every answer right, none much
later.

    python runs/robustness/server_load.py --seconds 300 --out results/robustness/server_load.json

The script starts the server itself, on loopback, and ends it. Every prompt is asked alone first, greedily; under load
each answer must be the same. Clients mix whole answers, streams, chats, several answers, short and long prompts; each
has an address of its own on 127.0.0.0/8. The abuses go on in so many workers, which pause between tries, until the
time is up: bodies of a million objects, texts of megabytes, slow headers, slow bodies, idle connections, bodies over
the limit. Then the server is told to stop with requests at work and bodies half sent.
"""

import argparse
import asyncio
import contextlib
import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import httpx
import psutil

from seap.environment import command_line, commit, provenance
from seap.files import write_json
from seap.text.builtin import TASKS, items

PROMPTS = 6  # of each task
KINDS = ("small", "small", "small", "stream", "chat", "several", "long")
TARGET = 3.0  # p95 of small prompts beside abuse, over the quiet one
OBJECTS = 650_000  # in a body of 2 MB
Asked = tuple[str, str]  # task, prompt
HEAD = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"


class Load:
    """Clients that ask one thing after the other, each from an address of its own."""

    def __init__(self, port: int, asked: list[Asked], truth: dict[Any, str]) -> None:
        self.port, self.asked, self.truth = port, asked, truth
        self.counts: Counter[str] = Counter()
        self.seconds: dict[str, list[float]] = {kind: [] for kind in {*KINDS, "health"}}

    def client(self, number: int, network: int = 1) -> httpx.AsyncClient:
        transport = httpx.AsyncHTTPTransport(local_address=f"127.0.{network}.{number + 1}")
        return httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", transport=transport, timeout=120)

    async def run(self, number: int, until: float) -> None:
        rng = random.Random(number)
        async with self.client(number) as client:
            while time.monotonic() < until:
                kind, (task, prompt) = rng.choice(KINDS), rng.choice(self.asked)
                began = time.monotonic()
                try:
                    right = await self.ask(client, kind, task, prompt)
                except (httpx.HTTPError, ValueError, KeyError) as error:
                    self.counts[f"lost: {type(error).__name__}"] += 1
                    continue
                self.seconds[kind].append(time.monotonic() - began)
                self.counts["right" if right else "wrong"] += 1

    async def ask(self, client: httpx.AsyncClient, kind: str, task: str, prompt: str) -> bool:
        """Whether the answer is the one that was got alone."""
        tokens = 4 if kind == "small" else 12
        if kind == "long":
            prompt = f"{prompt} {prompt}"
        body: dict[str, Any] = {"model": task, "max_tokens": tokens, "temperature": 0, "stream": kind == "stream"}
        chat = kind == "chat"
        body |= {"messages": [{"role": "user", "content": prompt}]} if chat else {"prompt": prompt}
        body |= {"n": 2} if kind == "several" else {}
        answer = await self.posted(client, "/v1/chat/completions" if chat else "/v1/completions", body)
        if kind == "stream":
            lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")]
            texts = ["".join(json.loads(line)["choices"][0]["text"] for line in lines)]
        else:
            choices = answer.json()["choices"]
            texts = [one["message"]["content"] if chat else one["text"] for one in choices]
        expected = self.truth.setdefault((task, prompt, tokens), texts[0])
        return all(text == expected for text in texts)

    async def posted(self, client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> httpx.Response:
        """429 is waited out, as OpenAI's clients do."""
        while True:
            answer = await client.post(path, json=body)
            if answer.status_code != 429:
                return answer.raise_for_status()
            self.counts["429"] += 1
            await asyncio.sleep(float(answer.headers["retry-after"]))

    async def watch_health(self, until: float) -> None:
        async with self.client(250) as client:
            while time.monotonic() < until:
                began = time.monotonic()
                self.counts["health failed"] += (await client.get("/health")).status_code != 200
                self.seconds["health"].append(time.monotonic() - began)
                await asyncio.sleep(0.25)

    def told(self) -> dict[str, Any]:
        parts = {kind: summary(found) for kind, found in sorted(self.seconds.items()) if len(found) > 1}
        return {"counts": dict(self.counts), "seconds": parts}


def summary(seconds: list[float]) -> dict[str, float]:
    return {"number": len(seconds), "p50": median(seconds), "p95": quantiles(seconds, n=20)[-1], "most": max(seconds)}


class Abuse:
    """Workers that do one wrong thing after the other; `outcomes` counts what the server did about each."""

    def __init__(self, port: int, until: float) -> None:
        self.port, self.until = port, until
        self.outcomes: dict[str, Counter[str]] = {}

    async def run(self) -> None:
        objects = b",".join([b"{}"] * OBJECTS)
        bodies = {
            "prompt of objects": b'{"model":"dense","prompt":[%b]}' % objects,
            "messages of objects": b'{"model":"dense","messages":[%b]}' % objects,
            "content of objects": b'{"model":"dense","messages":[{"role":"user","content":[%b]}]}' % objects,
            "deep": b'{"model":"dense","prompt":' + b"[" * 1_000_000,
            "ids": b'{"model":"dense","prompt":[%b]}' % b",".join([b"7"] * OBJECTS),
            "text of 2 MB": json.dumps({"model": "dense", "prompt": "12 + 30 = " * 200_000}).encode(),
            "text of 4 MB": json.dumps({"model": "dense", "prompt": "a" * 4_000_000}).encode(),
            "text within the bytes": json.dumps({"model": "dense", "prompt": "12 + 30 = " * 300}).encode(),
            "128 texts": json.dumps({"model": "dense", "prompt": ["12 + 30 = " * 40] * 128}).encode(),
        }
        work = [self.repeat(name, lambda body=body: self.post(body), 2) for name, body in bodies.items()]
        work += [
            self.repeat("slow headers", lambda: self.drip(HEAD.encode() + b"x-slow: "), 20),
            self.repeat("slow bodies", lambda: self.drip(f"{HEAD}content-length: 90\r\n\r\n".encode()), 20),
            self.repeat("idle connections", lambda: self.drip(b""), 300),
            self.repeat("bodies over the limit", lambda: self.over_limit(9 << 20), 2),
        ]
        await asyncio.gather(*work)

    async def repeat(self, name: str, attempt: Callable[[], Awaitable[str]], workers: int) -> None:
        counts = self.outcomes.setdefault(name, Counter())

        async def one(number: int) -> None:
            await asyncio.sleep(number * 0.02)
            while time.monotonic() < self.until:
                try:
                    counts[await asyncio.wait_for(attempt(), 60)] += 1
                except (OSError, asyncio.IncompleteReadError) as error:
                    counts[type(error).__name__] += 1
                except TimeoutError:
                    counts["held for 60 s"] += 1
                await asyncio.sleep(0.5)

        await asyncio.gather(*[one(number) for number in range(workers)])

    @contextlib.asynccontextmanager
    async def connection(self) -> Any:
        address = f"127.0.2.{random.randrange(1, 5)}"
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, local_addr=(address, 0))
        try:
            yield reader, writer
        finally:
            writer.close()

    async def post(self, body: bytes) -> str:
        path = HEAD.replace("completions", "chat/completions") if b'"messages"' in body[:40] else HEAD
        async with self.connection() as (reader, writer):
            writer.write(f"{path}connection: close\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
            await writer.drain()
            return await status(reader)

    async def over_limit(self, size: int) -> str:
        async with self.connection() as (reader, writer):
            writer.write(f"{HEAD}content-length: {size}\r\n\r\n".encode())
            for _ in range(size >> 18):
                writer.write(b" " * (1 << 18))
                await writer.drain()
            return await status(reader)

    async def drip(self, begin: bytes) -> str:
        """A letter a second, or nothing at all, until the server closes."""
        async with self.connection() as (reader, writer):
            writer.write(begin)
            answer = asyncio.ensure_future(status(reader))
            while not answer.done() and time.monotonic() < self.until:
                writer.write(b"a" if begin else b"")
                await asyncio.wait([answer], timeout=1)
            if not answer.done():
                answer.cancel()
                return "the time was up"
            return answer.result()


async def status(reader: asyncio.StreamReader) -> str:
    line = (await reader.readline()).decode()
    return line.split()[1] if line else "closed"


async def stopping(load: Load, server: Any) -> dict[str, Any]:
    """SIGTERM with 32 requests at work, and eight bodies and eight headers half sent."""
    counts: Counter[str] = Counter()

    async def accepted(number: int) -> None:
        task, prompt = load.asked[number]
        async with load.client(number) as client:
            try:
                counts["right" if await load.ask(client, "chat", task, prompt) else "wrong"] += 1
            except httpx.HTTPError as error:
                counts[f"lost: {type(error).__name__}"] += 1

    half = [await asyncio.open_connection("127.0.0.1", load.port) for _ in range(16)]
    for number, (_, writer) in enumerate(half):
        writer.write(HEAD.encode() + (b"content-length: 90\r\n\r\n{" if number % 2 else b""))
    at_work = [asyncio.ensure_future(accepted(number)) for number in range(32)]
    await asyncio.sleep(0.5)
    server.send_signal(signal.SIGTERM)
    began = time.monotonic()
    await asyncio.gather(*at_work)
    await asyncio.to_thread(server.wait, 120)
    for _, writer in half:
        writer.close()
    return {"counts": dict(counts), "seconds": time.monotonic() - began}


def started(port: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "seap", "serve", "--demo", "--port", str(port), "--dtype", "float32"]
    server = subprocess.Popen(command, text=True)
    until = time.monotonic() + 1800  # the demo makes its networks first
    while server.poll() is None and time.monotonic() < until:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 200:
                return server
        time.sleep(0.5)
    server.kill()
    raise SystemExit("the server did not start")


async def run(port: int, server: Any, seconds: float, clients: int) -> dict[str, Any]:
    asked = [(task, item.prompt) for task in TASKS for item in items(task, "test", PROMPTS, seed=1)]
    process = psutil.Process(server.pid)
    found: dict[str, Any] = {"prompts": len(asked)}
    alone = Load(port, asked, {})
    async with alone.client(0) as client:
        for task, prompt in asked:
            for kind in sorted({*KINDS} - {"stream", "several"}):
                await alone.ask(client, kind, task, prompt)
    for name, length in (("warm_up", min(seconds, 20)), ("quiet", seconds), ("abused", seconds)):
        until = time.monotonic() + length
        load, abuse = Load(port, asked, alone.truth), Abuse(port, until)
        work = [load.run(number, until) for number in range(clients)]
        work += [load.watch_health(until), *([abuse.run()] if name == "abused" else [])]
        await asyncio.gather(*work)
        found[name] = load.told() | {"memory_mb": process.memory_info().rss >> 20}
    found["abused"]["abuses"] = {name: dict(counts) for name, counts in sorted(abuse.outcomes.items())}
    found["stopping"] = await stopping(load, server)
    ratio = found["abused"]["seconds"]["small"]["p95"] / found["quiet"]["seconds"]["small"]["p95"]
    phases = ("quiet", "abused", "stopping")
    failures = [name for name in phases if any(not_fine(*pair) for pair in found[name]["counts"].items())]
    return found | {"p95_ratio": ratio, "target": TARGET, "within_target": ratio <= TARGET, "failures": failures}


def not_fine(outcome: str, number: int) -> bool:
    return number > 0 and outcome not in ("right", "429")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--port", type=int, default=8766)
    parser.add_argument("--note", default="", help="what else ran on the machine")
    parser.add_argument("--out", type=Path, default=Path("results/robustness/server_load.json"))
    arguments = parser.parse_args()
    server = started(arguments.port)
    try:
        found = asyncio.run(run(arguments.port, server, arguments.seconds, arguments.clients))
    finally:
        if server.poll() is None:
            server.kill()
        code = server.wait()
    about = {"clients": arguments.clients, "seconds": arguments.seconds, "exit_code": code, "note": arguments.note}
    write_json(arguments.out, found | about | {"command": command_line(), "commit": commit()} | provenance())
    print(json.dumps({name: found[name] for name in ("p95_ratio", "within_target", "failures", "stopping")}))


if __name__ == "__main__":
    main()
