"""Kills commands that replace a result: what stands there is the old or the new one, whole, and foreign files stay.

    python runs/robustness/kills.py --each 12 --out results/robustness/kills.json

Every command (`killed_commands.py`) writes over an older result of its own, with files of the user's in and beside it.
It is killed (SIGKILL) at a random step of its writing, half of the times in the last third, where results change
places, and half of the times not before the step but up to five milliseconds after it. A step is an fsync, or a file
or folder that is made, opened to be written, renamed, linked or removed. Every third kill is of a run that has no
RENAME_EXCHANGE. Then the command runs to its end: it must succeed and leave what it leaves unkilled, and nothing else.
Commands run in forks of this process, in turn.
"""

import argparse
import contextlib
import importlib
import json
import os
import pkgutil
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import seap
from seap.cli.main import main as run_seap
from seap.disk import replace
from seap.disk.claim import tidy
from seap.environment import provenance
from seap.files import write_json

sys.path.insert(0, str(Path(__file__).parent))
from killed_commands import CASES, LEFT_OUT, Case, make_inputs
from what_stands import Results, foreign, listing, put_foreign

WAIT = 120.0  # seconds for one run
AFTER = 0.005  # seconds after a step at which a run is killed, at most
WRITING = os.O_WRONLY | os.O_RDWR
LATE = ["matplotlib.pyplot", "matplotlib.backends.backend_agg", "sklearn.linear_model", "sklearn.decomposition"]
LATE += ["jinja2", "gguf", "torchao"]
EVENTS = ("os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir", "os.chmod")


@dataclass(frozen=True)
class Kill:
    """At which step of its writing a run is killed, how many seconds after it, and whether folders can be exchanged."""

    step: int = 0
    after: float = 0.0
    exchange: bool = True


def warm() -> None:
    """Import what commands import, once for all forks."""
    for module in pkgutil.walk_packages(seap.__path__, "seap."):
        if "__main__" not in module.name:
            with contextlib.suppress(ImportError):
                importlib.import_module(module.name)
    for name in LATE:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def arm(place: Path, kill: Kill) -> Callable[[], int]:
    """Kill this process at a step of its writing in a folder. Returns what tells the number of steps until then."""
    count = 0

    def step() -> None:
        nonlocal count
        count += 1
        if count == kill.step and kill.after:
            threading.Timer(kill.after, os.kill, (os.getpid(), signal.SIGKILL)).start()
        elif count == kill.step:
            os.kill(os.getpid(), signal.SIGKILL)

    def watched(event: str, given: tuple[Any, ...]) -> None:
        writes = event in EVENTS or (event == "open" and isinstance(given[2], int) and given[2] & WRITING)
        if writes and isinstance(given[0], str | os.PathLike) and place in Path(os.path.abspath(given[0])).parents:
            step()

    def before(real: Any) -> Any:
        def call(*given: Any) -> Any:
            step()
            return real(*given)

        return call

    os.fsync = before(os.fsync)
    replace._rename2 = before(replace._rename2 if kill.exchange else lambda *_: False)
    sys.addaudithook(watched)
    return lambda: count


def start(place: Path, command: str, kill: Kill | None = None) -> int:
    """A fork that runs a command of seap's in a folder; what it says goes to its file `log`. Returns its number."""
    number = os.fork()
    if number:
        return number
    code = 70
    try:
        os.chdir(place)
        (place / "tmp").mkdir(exist_ok=True)
        tempfile.tempdir = str(place / "tmp")
        log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for handle, target in ((0, os.open("/dev/null", os.O_RDONLY)), (1, log), (2, log)):
            os.dup2(target, handle)
        steps = arm(place, kill or Kill())
        code = run_seap(command.split())
        (place / "steps").write_text(str(steps()))
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 71
    finally:
        sys.stderr.flush()
        os._exit(code)
    return 0


def wait(number: int) -> int:
    """A run's exit code, -9 where it was killed; one that hangs is ended, and counts as failed (72)."""
    until = time.monotonic() + WAIT
    while time.monotonic() < until:
        found, status = os.waitpid(number, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(number, signal.SIGKILL)
    os.waitpid(number, 0)
    return 72


def run(place: Path, command: str) -> int:
    return wait(start(place, command))


@dataclass(frozen=True)
class Prepared:
    """A command's folder before it is killed (`kept`), what it holds then and after a whole run, and a run's steps.

    left: every file after a whole run, with its digest where that is the same each time.
    """

    kept: Path
    old: Results
    new: Results
    left: dict[str, str | None]
    steps: int


def command_of(case: Case) -> str:
    asked = "" if case.name in ("report", "route eval", "bench", "compare", "sweep", "analyze") else " --overwrite"
    return case.words.format(case.new) + asked


def prepare(case: Case, base: Path) -> Prepared:
    """Run the old command, and the new one twice from there, which tells what differs from run to run."""
    place, kept = base.with_name("now"), base.with_name(f"{case.name}.old")
    shutil.copytree(base, place)  # always to the same path, as metadata hold the paths of texts
    assert run(place, case.words.format(case.old)) == 0, (place / "log").read_text()[-2000:]
    put_foreign(place, case.out)
    shutil.copytree(place, kept)
    old = Results.of(place, case.out)
    seen, left = [], []
    for count in range(2):
        shutil.rmtree(place)
        shutil.copytree(kept, place)
        assert run(place, command_of(case)) == 0, (place / "log").read_text()[-2000:]
        shutil.copytree(place, base.with_name(f"{case.name}.new{count}"))
        seen.append(Results.of(base.with_name(f"{case.name}.new{count}"), case.out))
        left.append(listing(place))
    steps = int((place / "steps").read_text())
    shutil.rmtree(place)
    same = {name: sum_ if sum_ == left[1].get(name) else None for name, sum_ in left[0].items()}
    return Prepared(kept, old, seen[0].apart_from(seen[1]), same, steps)


def kill_once(case: Case, ready: Prepared, kill: Kill) -> tuple[str, list[str]]:
    """Kill a run, look at what stands there, and run again. Returns what stood there, and what is wrong."""
    place = ready.kept.with_name("now")
    shutil.copytree(ready.kept, place)
    try:
        own = foreign(place, case.out)
        ended = wait(start(place, command_of(case), kill))
        if ended == 0:
            return "ended before", []
        found = [] if ended == -signal.SIGKILL else [f"the run ended with {ended}: {log(place)}"]
        state, wrong = state_of(case, ready, place, kill)
        found += wrong + [f"{name} of the user's is gone" for name in own - foreign(place, case.out)]
        if code := run(place, command_of(case)):
            return state, [*found, f"the next run ended with {code}: {log(place)}"]
        now, wrong = ready.new.state_of(place, ready.old)
        found += wrong + ([] if set(now) == {"new"} else [f"the next run left {now}"])
        there = listing(place)
        found += [f"{name} is left" for name in sorted(there.keys() - ready.left.keys())]
        found += [f"{name} is missing" for name in sorted(ready.left.keys() - there.keys())]
        found += [f"{name} is another" for name, told in ready.left.items() if told not in (None, there.get(name))]
        return state, found + [f"{name} of the user's is gone at last" for name in own - foreign(place, case.out)]
    finally:
        shutil.rmtree(place)


def log(place: Path) -> str:
    return (place / "log").read_text()[-400:]


def state_of(case: Case, ready: Prepared, place: Path, kill: Kill) -> tuple[str, list[str]]:
    """old, new, mixed (of results that are replaced one by one), or what the next start in that place made of it."""
    states, wrong = ready.new.state_of(place, ready.old)
    unsettled = "gone" in states or (case.together and len(set(states)) > 1)
    if not unsettled:
        return (states[0] if len(set(states)) == 1 else "mixed"), wrong
    if kill.exchange and len(case.out) == 1:
        return "gone", [*wrong, f"there was {states}, where folders can be exchanged"]
    tidy(place / case.out[0])
    states, wrong = ready.new.state_of(place, ready.old)
    if len(set(states)) > 1 or "gone" in states:
        wrong.append(f"the next start left {states}")
    return f"{states[0]}, once the next start had finished it", wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--each", type=int, default=12, help="kills of each command")
    parser.add_argument("--only", default="", help="commands whose name begins so")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/robustness/kills.json"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    warm()
    started, wrong = time.monotonic(), []
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="kills-") as room:
        base = Path(room).resolve() / "base"
        base.mkdir()
        make_inputs(base, run)
        for case in (case for case in CASES if case.name.startswith(given.only)):
            ready, outcomes = prepare(case, base), Counter[str]()
            chance = random.Random(f"{given.seed} {case.name}")
            while sum(outcomes.values()) - outcomes["ended before"] < given.each and outcomes["ended before"] < 99:
                first, after = chance.choice((1, ready.steps * 2 // 3)), chance.choice((0.0, chance.uniform(0, AFTER)))
                kill = Kill(chance.randint(first, ready.steps), after, sum(outcomes.values()) % 3 != 2)
                state, found = kill_once(case, ready, kill)
                outcomes[state] += 1
                wrong += [{"command": case.name, **asdict(kill), "stood": state, "faults": found}] if found else []
            early = outcomes.pop("ended before", 0)
            rows.append({"command": case.name, "kills": outcomes.total(), "steps": ready.steps}
                        | {"stood": dict(outcomes), "ended_before_the_kill": early})  # fmt: skip
            print(json.dumps(rows[-1]), *wrong[-3:], sep="\n", file=sys.stderr, flush=True)
    kills = sum(row["kills"] for row in rows)
    told = {"kind": "kills", "seed": given.seed, "kills": kills, "faults": wrong, "rows": rows, "left_out": LEFT_OUT}
    write_json(given.out, told | {"seconds": round(time.monotonic() - started)} | provenance())
    print(f"{kills} kills, {len(wrong)} with a fault")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
