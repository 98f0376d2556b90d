"""Processes killed at each step of a replacement: what stands there is the old or the new, and rests go at the next."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from paths import ROOT
from test_whole import checkpoint, tree

from seap.cli.main import stop_cleanly
from seap.disk.claim import claimed
from seap.disk.manifest import MANIFEST

SCRIPT = """
import os, signal, sys
from pathlib import Path
from seap.disk import claim, replace, whole
step, exchange, out = int(sys.argv[1]), sys.argv[2] == "True", Path(sys.argv[3])
calls = 0

def counted(real):
    def call(*given, **named):
        global calls
        calls += 1
        if calls == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*given, **named)
    return call

if not exchange:
    replace._rename2 = lambda *_: False
for module, name in ((os, "fsync"), (os, "rename"), (os, "replace"), (os, "link"), (replace, "_rename2"),
                     (replace, "_put"), (replace, "_retire"), (replace, "_write_journal"), (os, "mkdir"),
                     (whole, "write_manifest"), (whole, "clear"), (os, "unlink")):
    setattr(module, name, counted(getattr(module, name)))
with claim.claimed(out, "checkpoint", overwrite=True):
    with whole.written_whole(out, "checkpoint") as draft:
        (draft / "a").write_text("new")
        (draft / "b").write_text("new")
print("done", calls)
"""


def run(step: int, exchange: bool, out: Path) -> subprocess.CompletedProcess[str]:
    given = [sys.executable, "-c", SCRIPT, str(step), str(exchange), str(out)]
    return subprocess.run(given, capture_output=True, text=True)


@pytest.mark.parametrize("exchange", [True, False])
def test_a_kill_at_any_step_leaves_the_old_or_the_new(tmp_path: Path, exchange: bool) -> None:
    whole = run(10**9, exchange, tmp_path / "probe")
    assert whole.returncode == 0, whole.stderr
    old, new = {"a": "old", "c": "old", "mine": "mine"}, {"a": "new", "b": "new", "mine": "mine"}
    seen = set()
    for step in range(1, 60, 5):
        out = tmp_path / f"out{step}" / "small"
        checkpoint(out, a="old", c="old")
        (out / "mine").write_text("mine")
        ended = run(step, exchange, out).returncode
        if out.exists():  # without an exchange there is a moment in which only the next start puts it back
            assert tree(out) in (old, new)
        else:
            assert not exchange
        with claimed(out, "checkpoint", overwrite=True):
            assert tree(out) in (old, new)
            seen.add(tree(out)["a"])
        assert [path.name for path in out.parent.iterdir()] == ["small"] and (out / MANIFEST).is_file()
        if ended == 0:
            break
        assert ended == -signal.SIGKILL
    assert seen == {"old", "new"}


STOPPED = """
import sys, time
from pathlib import Path
from seap.cli.main import stop_cleanly
from seap.disk import claim, whole
stop_cleanly()
out = Path(sys.argv[1])
with claim.claimed(out, "checkpoint"), whole.written_whole(out, "checkpoint") as draft:
    (draft / "a").touch()
    print("writing", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_signals_clean_up(tmp_path: Path, name: str) -> None:
    number = getattr(signal, name)
    asked = signal.signal(number, signal.SIG_DFL)  # the tests may run under nohup
    try:
        command = [sys.executable, "-c", STOPPED, str(tmp_path / "o" / "x")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
            assert run.stdout is not None and run.stdout.readline() == "writing\n"
            run.send_signal(number)
            assert run.wait() == 128 + number and list(tmp_path.iterdir()) == []
    finally:
        signal.signal(number, asked)


def test_an_ignored_hangup_stays_ignored() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        stop_cleanly()
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(0.01)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_temporary_folders_are_made_where_a_later_run_finds_them() -> None:
    """By `seap.disk`, which names them after their process; what `tempfile` makes stays for ever after a kill."""
    room = ROOT / "seap"
    sources = {path.relative_to(room).as_posix(): path.read_text() for path in room.rglob("*.py")}
    makers = re.compile(r"\b(TemporaryDirectory|mkdtemp|mkstemp|NamedTemporaryFile|TemporaryFile)\b")
    assert len(sources) > 50 and [name for name, text in sources.items() if makers.search(text)] == []
