"""seap beside a process that takes one core: how much slower than alone, with seap's threads and with torch's own.

    python runs/speed/beside.py [--only prune --only serve …] [--repeats 3] [--threads seap's] [--out FILE]

Each command runs alone and beside a busy process, in turn, with the threads that seap chooses and with one per core
that spin while they wait (torch's default). Wall seconds, the median of repeats. `demo` and `test` are `make demo` and
`make test`'s tests; the others take seconds. Run it on a machine where nothing else runs.
"""

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

from seap.environment import provenance
from seap.files import write_json
from seap.threads import COUNTS, WAITS

SEAP = [sys.executable, "-m", "seap"]
COMMANDS = {
    "prune": [*SEAP, "prune", "builtin", "--task", "arithmetic", "--num-texts", "100", "--overwrite", "--out", "OUT/p"],
    "eval": [*SEAP, "eval", "builtin", "--task", "arithmetic"],
    "test": [sys.executable, "-m", "pytest", "-n", "2", "tests"],
    "demo": [*SEAP, "demo", "--out", "OUT/demo"],
}
REQUESTS = 48  # to the server, eight at a time
BUSY = [sys.executable, "-c", "while True: pass"]
# whose threads: seap's own choice, or one per core, which wait as OpenMP has it by default
THREADS: dict[str, dict[str, str]] = {"seap's": {}, "torch's": {"OMP_NUM_THREADS": str(os.cpu_count())}}


def seconds_of(name: str, environment: dict[str, str], place: str) -> float:
    if name == "serve":
        return serve(environment, place)
    words = [word.replace("OUT", place) if word.startswith("OUT/") else word for word in COMMANDS[name]]
    started = time.perf_counter()
    subprocess.run(words, check=True, capture_output=True, env=environment)
    return time.perf_counter() - started


def serve(environment: dict[str, str], place: str) -> float:
    """Seconds of the requests, once the server stands."""
    tasks = ["--task", "arithmetic", "--task", "calendar", "--method", "flap", "--num-texts", "50"]
    packing = [*SEAP, "pack", "builtin", *tasks, "--out", f"{place}/tasks"]
    subprocess.run(packing, check=True, capture_output=True, env=environment)
    command = [*SEAP, "serve", "builtin", "--masks", f"{place}/tasks", "--port", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert server.stderr is not None
        url = next(found[0] for line in server.stderr if (found := re.search(r"http://\S+/v1", line)))

        def ask(index: int) -> None:
            body = {
                "model": ("dense", "arithmetic")[index % 2],
                "prompt": f"{index} + 30 =",
                "max_tokens": 32,
                "temperature": 0,
            }
            headers = {"content-type": "application/json"}
            request = urllib.request.Request(f"{url}/completions", json.dumps(body).encode(), headers)
            urllib.request.urlopen(request, timeout=600).read()

        started = time.perf_counter()
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(ask, range(REQUESTS)))
        return time.perf_counter() - started
    finally:
        server.terminate()
        server.communicate()


@contextlib.contextmanager
def busy(wanted: bool) -> Iterator[None]:
    process = subprocess.Popen(BUSY) if wanted else None
    try:
        yield
    finally:
        if process is not None:
            process.kill()
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=[*COMMANDS, "serve"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", nargs="+", choices=[*THREADS], default=[*THREADS])
    parser.add_argument("--out", type=Path, default=Path("results/speed/beside.json"))
    arguments = parser.parse_args()
    clean = {name: value for name, value in os.environ.items() if name not in (*WAITS, *COUNTS)}
    rows = []
    for name in arguments.only or ["prune", "eval", "serve", "test", "demo"]:
        taken: dict[tuple[str, bool], list[float]] = {}
        for _ in range(arguments.repeats):
            for threads in arguments.threads:
                for beside in (False, True):
                    with tempfile.TemporaryDirectory() as place, busy(beside):
                        taken.setdefault((threads, beside), []).append(
                            seconds_of(name, clean | THREADS[threads], place)
                        )
        for threads in arguments.threads:
            alone, beside_ = median(taken[threads, False]), median(taken[threads, True])
            row = {"command": name, "threads": threads, "alone": alone, "beside": beside_, "slower": beside_ / alone}
            rows.append(row)
            print(row)
            write_json(arguments.out, {"kind": "beside", "repeats": arguments.repeats, "rows": rows} | provenance())


if __name__ == "__main__":
    main()
