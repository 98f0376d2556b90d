"""Programs that a model wrote, run against the checks that they must pass: in a process of their own, with limits.

What that process may do, and what keeps it from the rest, is said in `program_worker.py` and docs/security.md. It holds
against what models write, wrong, greedy or endless programs, not against somebody who means to break out.
"""

import ast
import contextlib
import json
import os
import secrets
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seap.disk.whole import temporary
from seap.errors import UserError

STARTING = 60.0  # seconds that the process may take before the program begins
MOST_SAID = 1 << 12  # bytes of an answer


@dataclass(frozen=True)
class Limits:
    """Of one program: seconds by the clock (and, one more, of the processor), and bytes of memory."""

    seconds: int = 10
    memory: int = 1 << 30


@dataclass(frozen=True)
class Verdict:
    """Whether a program passed, why not, and what was closed to it."""

    passed: bool
    why: str
    closed: tuple[str, ...] = ()


def judge(program: str, checks: str, limits: Limits = Limits(), *, asked: Sequence[str] = ()) -> Verdict:
    """Run a program, then checks that raise where something is wrong, in a new process that is ended in any case.

    asked: names that the program is to define. Others that it takes from Python's own are Python's in the checks.
    Raises UserError where programs can't be run here, and for checks that aren't Python.
    """
    checks = strict(checks)
    if os.name != "posix":
        raise UserError("programs that a model wrote are run on Linux and macOS alone, where processes have limits")
    with temporary("program") as folder, _started(folder) as worker:
        request = {"program": program, "asked": list(asked), "limits": vars(limits)}
        ready = worker.line(STARTING, json.dumps(request).encode() + b"\n")
        if not ready.startswith("ready "):
            raise UserError(f"the process that runs programs didn't start: {sys.executable} -I -S must work")
        closed, until = tuple(json.loads(ready[6:])), time.monotonic() + limits.seconds
        told = worker.line(until - time.monotonic())
        if told == "loaded":
            word = secrets.token_hex(16)  # made now: the program couldn't read it while it was loaded
            told = worker.line(until - time.monotonic(), f"{word}\n{checks}".encode(), last=True)
            if told == word:
                return Verdict(True, "passed", closed)
        why = told if told.startswith(("program: ", "checks: ")) else worker.ended(until)
        return Verdict(False, why, closed)


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    pipe: int  # to read answers from
    said: bytes = b""

    def line(self, seconds: float, request: bytes = b"", *, last: bool = False) -> str:
        """The next line that it says; empty where it ends, says too much, or nothing in time."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):  # a process that is gone, or doesn't read
            self._send(request, seconds)
            if last:
                self.process.stdin.close()
        until = time.monotonic() + seconds
        while b"\n" not in self.said:
            left = until - time.monotonic()
            if left <= 0 or not select.select([self.pipe], [], [], left)[0]:
                return ""
            part = os.read(self.pipe, MOST_SAID)
            self.said += part
            if not part or len(self.said) > MOST_SAID:
                return ""
        line, _, self.said = self.said.partition(b"\n")
        return line.decode("utf-8", "replace")

    def _send(self, request: bytes, seconds: float) -> None:
        """Without waiting for a process that doesn't read."""
        assert self.process.stdin is not None
        file, until = self.process.stdin.fileno(), time.monotonic() + seconds
        os.set_blocking(file, False)
        while request and select.select([], [file], [], max(until - time.monotonic(), 0))[1]:
            request = request[os.write(file, request) :]

    def ended(self, until: float) -> str:
        """Why there was no answer. Ends it."""
        late = time.monotonic() >= until
        _end(self.process)
        code = self.process.returncode
        if code >= 0:
            return f"ended by itself, with {code}"
        return "out of time" if late else f"ended by {signal.Signals(-code).name}"


@contextlib.contextmanager
def _started(folder: Path) -> Iterator[_Worker]:
    """The process, in a session of its own that is ended as a whole, and with nothing of ours in its environment."""
    script = Path(__file__).with_name("program_worker.py")
    reads, writes = os.pipe()
    bare = {"HOME": str(folder), "TMPDIR": str(folder), "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0"}
    process = None
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", str(script), str(writes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(writes,),
            cwd=folder,
            env=bare,
            start_new_session=True,
        )
        os.close(writes)
        writes = -1
        yield _Worker(process, reads)
    finally:
        if process is not None:
            _end(process)
        for file in (reads, writes):
            if file >= 0:
                os.close(file)


def _end(process: subprocess.Popen[bytes]) -> None:
    """It and all of its session, while its number can't be another's."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()


class _Strict(ast.NodeTransformer):
    """`a == b` becomes a question to the worker's `__same__`."""

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        if len(node.ops) != 1 or not isinstance(node.ops[0], ast.Eq | ast.NotEq):
            return node
        call: ast.expr = ast.Call(ast.Name("__same__", ast.Load()), [node.left, node.comparators[0]], [])
        return call if isinstance(node.ops[0], ast.Eq) else ast.UnaryOp(ast.Not(), call)


def strict(checks: str) -> str:
    """Checks in which no class of the program's own can call itself equal to what is expected.

    Raises UserError for checks that aren't Python.
    """
    try:
        tree: Any = ast.parse(checks)
    except (SyntaxError, ValueError, RecursionError) as error:
        raise UserError(
            f"checks {checks!r:.80}: no Python ({error}); they must be statements such as asserts"
        ) from error
    return ast.unparse(ast.fix_missing_locations(_Strict().visit(tree)))
