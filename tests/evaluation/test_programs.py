"""Programs that a model wrote: those that are right pass, and hostile ones neither pass nor reach anything."""

import os
import time
from pathlib import Path

import pytest

from seap.errors import UserError
from seap.evaluation import programs
from seap.evaluation.programs import Limits, Verdict, judge

ADD = "def add(a, b):\n    return a + b\n"
CHECKS = "assert add(1, 2) == 3\nassert add(2, 2) != 5"
QUICK = Limits(seconds=5, memory=256 << 20)


def verdict(program: str, checks: str = CHECKS, **given: object) -> Verdict:
    return judge(program, checks, QUICK, **given)  # type: ignore[arg-type]


def test_right_and_wrong_programs() -> None:
    right = verdict(ADD)
    assert right.passed and right.why == "passed" and {"limits", "audit hook"} <= set(right.closed)
    assert verdict("def add(a, b):\n    return a - b\n") == Verdict(False, "checks: AssertionError", right.closed)
    assert verdict("def add(a, b):\n    return a +\n").why == "program: SyntaxError"
    assert verdict("x = 1").why == "checks: NameError"


def test_what_programs_need_is_there() -> None:
    program = """
import collections, dataclasses, datetime, decimal, fractions, functools, heapq, itertools, json, math, random, re
import statistics, string, typing, threading

@dataclasses.dataclass
class Pair:
    a: int

def work(x: typing.List[int]) -> list:
    done = []
    worker = threading.Thread(target=done.append, args=(1,))
    worker.start()
    worker.join()
    return sorted(x)[: len(done)] + [math.floor(statistics.mean(x)), random.Random(0).randint(1, 1), Pair(3).a]
"""
    assert verdict(program, "assert work([2, 1, 3]) == [1, 2, 1, 3]").why == "passed"
    head = "from typing import List\n\ndef f(x: List[int]):\n    '''doc'''\n    return math.floor(x[0])\n"
    assert verdict(f"import math\n{head}", "def check(c):\n    assert c([1.5]) == 1\n\ncheck(f)").passed


def test_a_name_of_pythons_own_is_the_programs_where_it_was_asked_for() -> None:
    """MBPP asks for a function `sum` of two numbers."""
    program = "def sum(a, b):\n    return a + b\n"
    assert verdict(program, "assert sum(10, 15) == 25", asked=("sum",)).passed
    assert not verdict(program, "assert sum(10, 15) == 25").passed


@pytest.mark.parametrize(
    "program",
    [
        "import sys\nsys.exit(0)",
        "import os\nos._exit(0)",
        "raise SystemExit",
        f"{ADD}\nimport os\ndef add(a, b):\n    os._exit(0)",
        f"{ADD}\nimport sys\ndef add(a, b):\n    sys.exit(0)",
        "def add(a, b):\n    raise KeyboardInterrupt",
        "import atexit, os\natexit.register(os._exit, 0)\ndef add(a, b):\n    return 9",
    ],
)
def test_ending_before_the_checks_is_no_pass(program: str) -> None:
    assert not verdict(program).passed


@pytest.mark.parametrize(
    "program",
    [
        "import builtins\nbuiltins.AssertionError = ValueError\ndef add(a, b):\n    return 9",
        "import builtins\nbuiltins.exec = builtins.compile = lambda *a, **k: ''\ndef add(a, b):\n    return 9",
        "__builtins__['exec'] = print\ndef add(a, b):\n    return 9",
        "AssertionError = ValueError\n__same__ = lambda a, b: True\ndef add(a, b):\n    return 9",
        "class All(int):\n    def __eq__(self, other):\n        return True\ndef add(a, b):\n    return All(9)",
        "class No:\n    __eq__ = __ne__ = lambda self, other: True\ndef add(a, b): return No()",
        "import sys\nsys.modules['__main__'].run = print\ndef add(a, b):\n    return 9",
        "import sys\nsys.excepthook = lambda *a: None\ndef add(a, b):\n    return 9",
        "print('passed')\ndef add(a, b):\n    print('loaded')\n    return 9",
        "def check(f):\n    return True\ndef add(a, b):\n    return 9",
    ],
)
def test_the_checks_stay_as_they_are(program: str) -> None:
    checks = "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert all(x for x in [1])\n\ncheck(add)"
    assert not verdict(program, checks).passed and not verdict(program).passed


def test_shadowed_builtins_dont_reach_the_checks() -> None:
    cheat = "def add(a, b):\n    return 9\nabs = all = isinstance = len = lambda *a: 0"
    assert not verdict(cheat, "assert abs(add(1, 2) - 3) < 1").passed


def test_an_endless_loop_is_ended_in_time() -> None:
    started = time.monotonic()
    limits = Limits(seconds=1, memory=256 << 20)
    assert judge("while True:\n    pass", CHECKS, limits).why in ("out of time", "ended by SIGKILL")
    assert judge("def add(a, b):\n    while True: pass", CHECKS, limits).why in ("out of time", "ended by SIGKILL")
    assert judge("import time\ntime.sleep(60)", CHECKS, limits).why == "out of time"
    deaf = "import signal\nfor s in (1, 2, 14, 15, 24):\n    signal.signal(s, signal.SIG_IGN)\nwhile True: pass"
    assert not judge(deaf, CHECKS, limits).passed
    assert time.monotonic() - started < 30


def test_printing_without_end_takes_no_memory_of_ours() -> None:
    program = "import os\nwhile True:\n    print('x' * 100000)\n    os.write(2, b'y' * 100000)"
    assert not judge(program, CHECKS, Limits(seconds=1)).passed
    flood = (
        "import os\ndef flood(i):\n    try:\n        while True: os.write(i, b'z' * 1000)\n    except OSError: pass\n"
    )
    flood += "for i in range(3, 20): flood(i)"
    assert not judge(flood, CHECKS, Limits(seconds=1)).passed


def test_ten_gigabytes_are_refused() -> None:
    assert verdict("x = bytearray(10 << 30)").why == "program: MemoryError"
    assert not verdict("x = []\nwhile True:\n    x.append('a' * 10_000_000)").passed


@pytest.mark.parametrize(
    "attempt",
    [
        "open({place!r}, 'w').write('x')",
        "import os\nos.open({place!r}, os.O_CREAT | os.O_WRONLY)",
        "import pathlib\npathlib.Path({place!r}).write_text('x')",
        "import os\nos.mkdir({place!r})",
        "import os\nos.rename({secret!r}, {place!r})",
        "import os\nos.symlink({secret!r}, {place!r})",
        "import shutil\nshutil.copy({secret!r}, {place!r})",
        "import shutil\nshutil.rmtree({folder!r})",
        "import os\nos.remove({secret!r})",
        "import os\nos.chmod({secret!r}, 0o777)",
        "import os\nos.truncate({secret!r}, 0)",
        "open({secret!r}).read()",
        "open('../' * 20 + {secret!r}).read()",
        "import io\nio.FileIO({secret!r}).read()",
        "import os\nos.listdir({folder!r})",
        "import os\nos.scandir('/proc')",
        "open('/proc/self/mem', 'rb')",
        "import os\nopen(f'/proc/{{os.getppid()}}/environ', 'rb').read()",
        "open('/etc/passwd').read()",
        "open('leftover', 'w')",
        "import tempfile\ntempfile.NamedTemporaryFile()",
    ],
)
def test_files_are_neither_written_nor_read(attempt: str, tmp_path: Path) -> None:
    """The program says by passing that it came through; its checks say nothing else."""
    secret, place = tmp_path / "secret", tmp_path / "made"
    secret.write_text("secret")
    program = attempt.format(place=str(place), secret=str(secret), folder=str(tmp_path))
    assert verdict(program, "assert True").why in ("program: PermissionError", "program: FileNotFoundError")
    assert [path.name for path in tmp_path.iterdir()] == ["secret"] and secret.read_text() == "secret"


def test_the_environment_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_MINE", "secret")
    program = "import os\nfound = sorted(os.environ)\nhome = os.environ['HOME']"
    allowed = "{'HOME', 'TMPDIR', 'LC_ALL', 'PYTHONHASHSEED', 'LC_CTYPE', '__CF_USER_TEXT_ENCODING'}"
    assert verdict(program, f"assert set(found) <= {allowed}").passed
    assert verdict(program, f"assert not {os.environ.get('HOME')!r} or home != {os.environ.get('HOME')!r}").passed


@pytest.mark.parametrize(
    "attempt",
    [
        "import socket\nsocket.socket()",
        "import socket\nsocket.create_connection(('127.0.0.1', 9))",
        "import socket\nsocket.getaddrinfo('localhost', 80)",
        "import _socket\n_socket.socket()",
        "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:9/')",
        "import http.client\nhttp.client.HTTPConnection('127.0.0.1', 9).connect()",
    ],
)
def test_no_socket_opens(attempt: str) -> None:
    found = verdict(attempt, "assert True")
    assert not found.passed and found.why.startswith("program: "), found


@pytest.mark.parametrize(
    "attempt",
    [
        "import os\nos.fork()",
        "import os\nwhile True: os.fork()",
        "import os\nos.forkpty()",
        "import os\nos.system('sleep 100')",
        "import os\nos.popen('sleep 100')",
        "import os\nos.execv('/bin/sh', ['sh'])",
        "import os\nos.posix_spawn('/bin/sleep', ['sleep', '100'], {})",
        "import subprocess\nsubprocess.Popen(['sleep', '100'], start_new_session=True)",
        "import _posixsubprocess",
        "import multiprocessing\nmultiprocessing.Process(target=print).start()",
        "import ctypes\nctypes.CDLL(None).fork()",
        "import os\nos.kill(os.getppid(), 9)",
        "import os\nos.killpg(0, 9)",
        "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
        "import gc\ngc.get_objects()",
    ],
)
def test_no_process_is_started_or_ended(attempt: str) -> None:
    found = verdict(attempt, "assert True")
    assert not found.passed and found.why != "out of time", found


def test_nothing_is_left_behind() -> None:
    """Threads that go on, and a pipe that stays open, don't keep it."""
    program = f"{ADD}\nimport threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()"
    started = time.monotonic()
    assert verdict(program).passed and time.monotonic() - started < 20


def test_where_system_calls_are_closed_native_code_is_held_too() -> None:
    if "system calls" not in verdict(ADD).closed:
        pytest.skip("this system has no filter of system calls")
    worker = Path(programs.__file__).with_name("program_worker.py")
    script = f"""
import ctypes, os, sys
sys.argv[0] = "x"
space = {{"__name__": "worker"}}
exec(compile(open({str(worker)!r}).read(), "worker", "exec"), space)
assert space["close_calls"]()
libc = ctypes.CDLL(None, use_errno=True)
assert libc.socket(2, 1, 0) == -1 and libc.fork() == -1 and libc.kill(os.getppid(), 0) == -1
assert libc.open(b"/tmp/seap-made", 0o101, 0o600) == -1 and libc.setsid() == -1 and libc.unlink(b"/tmp/x") == -1
assert libc.open(b"/dev/null", 0) > 0
import threading
threading.Thread(target=print).start()
import resource
resource.getrlimit(resource.RLIMIT_AS)
try:
    resource.setrlimit(resource.RLIMIT_NOFILE, (8, 8))
except (OSError, ValueError):
    print("held")
"""
    import subprocess
    import sys

    done = subprocess.run([sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.strip() == "held", done.stderr


def test_checks_that_are_no_python_are_refused() -> None:
    with pytest.raises(UserError, match=r"checks 'assert \(': no Python"):
        judge(ADD, "assert (", QUICK)


def test_a_process_that_doesnt_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs.sys, "executable", "/bin/false")
    with pytest.raises(UserError, match="the process that runs programs didn't start: /bin/false"):
        judge(ADD, CHECKS, QUICK)
