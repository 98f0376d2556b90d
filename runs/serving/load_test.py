"""Many clients at once on `seap serve --demo`: nothing lost, nothing mixed up, memory flat; then what clients do wrong.

    python runs/serving/load_test.py --seconds 300 --clients 64 --out results/serving/load_test.json

Every prompt is first asked alone, greedily, of its task's network: under load its answer must be the same. The same
load is then sent to the dense model. Faults go on beside an ordinary client, which must not notice.
"""

import argparse
import asyncio
import json
import random
import socket
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

PROMPTS = 12  # of each task
MAX_TOKENS = 24
Asked = tuple[str, str]  # task, prompt


def started(port: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "seap", "serve", "--demo", "--port", str(port), "--dtype", "float32"]
    server = subprocess.Popen(command, text=True)
    while server.poll() is None:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 200:
                return server
        except httpx.HTTPError:
            time.sleep(0.5)
    raise SystemExit("the server did not start")


def body(model: str, prompt: str, **more: Any) -> dict[str, Any]:
    return {"model": model, "prompt": prompt, "max_tokens": MAX_TOKENS, "temperature": 0} | more


async def ask(client: httpx.AsyncClient, model: str, prompt: str) -> dict[str, Any]:
    """One answer; 429 is waited out, as OpenAI's clients do."""
    while True:
        answer = await client.post("/v1/completions", json=body(model, prompt))
        if answer.status_code != 429:
            return answer.raise_for_status().json()  # type: ignore[no-any-return]
        await asyncio.sleep(float(answer.headers["retry-after"]))


async def alone(client: httpx.AsyncClient, asked: list[Asked]) -> dict[Asked, dict[Asked, str]]:
    found: dict[Any, Any] = {}
    for task, prompt in asked:
        for model in (task, "dense"):
            found[model, prompt] = (await ask(client, model, prompt))["choices"][0]["text"]
    return found


async def load(
    client: httpx.AsyncClient, asked: list[Asked], truth: Any, clients: int, seconds: float, server: Any, *, dense: bool
) -> dict[str, Any]:
    """Clients that ask one question after the other until the time is up."""
    until = time.monotonic() + seconds
    latencies: list[float] = []
    counts: Counter[str] = Counter()
    tokens = 0

    async def one(number: int) -> None:
        nonlocal tokens
        rng = random.Random(number)
        while time.monotonic() < until:
            task, prompt = rng.choice(asked)
            began = time.monotonic()
            counts["asked"] += 1
            try:
                answer = await ask(client, "dense" if dense else rng.choice([task, "auto"]), prompt)
            except (httpx.HTTPError, ValueError):
                counts["lost"] += 1
                continue
            latencies.append(time.monotonic() - began)
            ran = answer["seap"]["task"]
            tokens += answer["usage"]["completion_tokens"]
            counts["answered"] += 1
            counts["another task"] += ran not in (("dense",) if dense else (task, "dense"))
            text = answer["choices"][0]["text"]
            counts["another text"] += text != truth.get((ran, prompt), text)
            counts["routed to dense"] += not dense and ran == "dense"

    memory: list[int] = []

    async def watch() -> None:
        while time.monotonic() < until:
            memory.append(server.memory_info().rss)
            await asyncio.sleep(seconds / 60)

    began, busy = time.monotonic(), cpu_seconds(server)
    await asyncio.gather(watch(), *[one(number) for number in range(clients)])
    taken = time.monotonic() - began
    half = len(memory) // 2
    return {
        **counts,
        "seconds": taken,
        "requests_per_s": counts["answered"] / taken,
        "tokens_per_s": tokens / taken,
        "server_cpu_s_per_request": (cpu_seconds(server) - busy) / counts["answered"],
        "latency_p50_s": median(latencies),
        "latency_p95_s": quantiles(latencies, n=20)[-1],
        "memory_mb": {
            "start": memory[0] >> 20,
            "half": memory[half] >> 20,
            "end": memory[-1] >> 20,
            "most": max(memory) >> 20,
        },
    }


def cpu_seconds(process: Any) -> float:
    """What it has used of the processor, which other processes on the machine change little."""
    used = process.cpu_times()
    return float(used.user + used.system)


async def faults(client: httpx.AsyncClient, port: int, asked: list[Asked], truth: Any) -> dict[str, Any]:
    """What clients do wrong, and the statuses that they get; an ordinary client goes on beside them."""
    statuses: dict[str, Any] = {}
    post: Callable[..., Awaitable[httpx.Response]] = lambda **kw: client.post("/v1/completions", **kw)  # noqa: E731
    wrong = {
        "malformed JSON": {"content": b'{"model": "auto", ', "headers": {"content-type": "application/json"}},
        "wrong types": {"json": {"model": 7, "prompt": {"a": 1}}},
        "unknown model": {"json": body("gpt-9", "hello")},
        "past the context": {"json": body("auto", "12 + 30 = " * 400)},
        "huge body": {"content": b"x" * (9 << 20)},
        "bad temperature": {"json": body("auto", "hello", temperature=-1)},
    }
    done = asyncio.Event()
    calm = asyncio.create_task(ordinary(client, asked, truth, done))
    for name, given in wrong.items():
        statuses[name] = (await post(**given)).status_code
    slow = asyncio.create_task(slow_reader(port))
    await asyncio.gather(*[connect_and_leave(port, place) for place in range(1000)])
    statuses["1,000 that hang up"] = "done"
    statuses["slow reader, bytes read"] = await slow
    done.set()
    return {"statuses": statuses, "beside_them": await calm}


async def ordinary(client: httpx.AsyncClient, asked: list[Asked], truth: Any, done: asyncio.Event) -> dict[str, int]:
    counts: Counter[str] = Counter(answered=0, wrong=0)
    while not done.is_set():
        task, prompt = random.choice(asked)
        answer = await ask(client, task, prompt)
        counts["answered"] += 1
        counts["wrong"] += answer["choices"][0]["text"] != truth[task, prompt]
    return dict(counts)


def raw_request(**more: Any) -> bytes:
    content = json.dumps(body("dense", "Sort ascending: 12 98 40 ->", **more)).encode()
    head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    head += f"content-length: {len(content)}"
    return head.encode() + b"\r\n\r\n" + content


async def connect_and_leave(port: int, place: int) -> None:
    """A third say nothing, a third half a request, a third a whole one that they don't wait for."""
    await asyncio.sleep(place / 200)
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        request = raw_request(max_tokens=200)
        writer.write((b"", request[: len(request) // 2], request)[place % 3])
        await writer.drain()
        writer.close()
        await writer.wait_closed()
    except OSError:
        pass


async def slow_reader(port: int, seconds: int = 8) -> int:
    """A stream read one byte a second."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
    raw: socket.socket = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    writer.write(raw_request(stream=True, max_tokens=300))
    read = 0
    for _ in range(seconds):
        read += len(await reader.read(1))
        await asyncio.sleep(1)
    writer.close()
    return read


async def run(port: int, server: Any, seconds: float, clients: int) -> dict[str, Any]:
    asked = [(task, item.prompt) for task in TASKS for item in items(task, "test", PROMPTS, seed=1)]
    limits = httpx.Limits(max_connections=clients + 8)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", limits=limits, timeout=120) as client:
        truth = await alone(client, asked)
        found: dict[str, Any] = {"prompts": len(asked)}
        for name, dense in (("warm_up", False), ("networks", False), ("dense", True)):
            length = min(20, seconds) if name == "warm_up" else seconds
            found[name] = await load(client, asked, truth, clients, length, server, dense=dense)
        found["faults"] = await faults(client, port, asked, truth)
        await asyncio.sleep(2)
        text = (await client.get("/metrics")).text
        kept = ("seap_waiting ", "seap_running ", "seap_routed_total", "seap_abstained_total", "seap_router_drift ")
        found["metrics"] = [line for line in text.splitlines() if line.startswith(kept)]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--out", type=Path, default=Path("results/serving/load_test.json"))
    arguments = parser.parse_args()
    server = started(arguments.port)
    try:
        process = psutil.Process(server.pid)
        found = asyncio.run(run(arguments.port, process, arguments.seconds, arguments.clients))
    finally:
        server.terminate()
        code = server.wait()
    about = {"clients": arguments.clients, "exit_code": code, "command": command_line(), "commit": commit()}
    write_json(arguments.out, found | about | provenance())


if __name__ == "__main__":
    main()
