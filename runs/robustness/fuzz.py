"""Damaged files of every kind through every command that reads them: is each refused in one line, or read?

    python runs/robustness/fuzz.py --cases 10000 --out results/robustness/fuzz.json

Makes a tiny model and one of each artefact, damages one file a case (seeded), and runs a command in a process with
an alarm. Outcomes: ok, refused (exit code 1 or 2 and an error in one line), traceback, hang, killed (by a signal).
"""

import argparse
import collections
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from broken_inputs import SUBJECTS, check_whole, make
from mutations import damage

SECONDS = 60  # that a case may take
MEMORY = 16 << 30  # address space of a case


def case(seed: int, room: Path, kinds: Sequence[str]) -> dict[str, Any]:
    """One damaged file through one command; what became of it."""
    rng = random.Random(seed)
    kind = rng.choice(list(kinds))
    file, commands = SUBJECTS[kind]
    place = Path(tempfile.mkdtemp(prefix="case-", dir=room.parent))
    try:
        for source in room.iterdir():  # what is damaged is a copy, the rest is linked
            copied = source.name == Path(file).parts[0]
            if not copied:
                (place / source.name).symlink_to(source)
            else:
                (shutil.copytree if source.is_dir() else shutil.copy)(source, place / source.name)
        how = damage(place / file, rng)
        words = [word.replace("FILE", file).replace("OUT", "out") for word in rng.choice(commands)]
        outcome, told = run(words, place)
        return {"seed": seed, "kind": kind, "how": how, "command": words[0], "outcome": outcome, "told": told}
    finally:
        shutil.rmtree(place, ignore_errors=True)


def run(words: Sequence[str], place: Path) -> tuple[str, str]:
    """The outcome of a command in a process of its own, and the end of what it said."""
    said = place / "said.txt"
    child = os.fork()
    if child == 0:
        try:
            with said.open("w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(SECONDS)
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            os.chdir(place)
            from seap.cli.main import main

            code = main(list(words))
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 2
        except BaseException:
            traceback.print_exc()
            code = 70
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    status = os.waitpid(child, 0)[1]
    told = said.read_text(errors="replace").strip() if said.exists() else ""
    if os.WIFSIGNALED(status):
        return ("hang" if os.WTERMSIG(status) == signal.SIGALRM else "killed"), told[-300:]
    code = os.WEXITSTATUS(status)
    if code in (0, 1, 2) and "Traceback" not in told:
        return ("ok" if code == 0 else "refused"), told[-300:] if code else ""
    return "traceback", told[-700:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--kinds", default=",".join(SUBJECTS))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    out = options.out.absolute() if options.out else None
    started, outcomes = time.perf_counter(), collections.Counter[str]()
    by_kind: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    faults: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="seap-fuzz-") as folder:
        room = Path(folder) / "room"
        room.mkdir()
        here = Path.cwd()
        make(room)
        check_whole(room, options.kinds.split(","))
        os.chdir(here)
        for seed in range(options.first, options.first + options.cases):
            if time.perf_counter() - started > 60 * options.minutes:
                break
            found = case(seed, room, options.kinds.split(","))
            outcomes[found["outcome"]] += 1
            by_kind[found["kind"]][found["outcome"]] += 1
            if found["outcome"] not in ("ok", "refused"):
                faults.append(found)
                print(json.dumps(found), flush=True)
    from seap.environment import provenance

    result = {
        "kind": "fuzz",
        "cases": sum(outcomes.values()),
        "outcomes": dict(outcomes),
        "first_seed": options.first,
        "by_kind": {kind: dict(counts) for kind, counts in sorted(by_kind.items())},
        "faults": faults,
        **provenance(),
        "seconds": time.perf_counter() - started,
    }
    print(json.dumps({name: result[name] for name in ("cases", "outcomes", "by_kind")}, indent=1))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
