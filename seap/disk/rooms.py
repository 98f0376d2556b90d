"""Temporary folders, each named after the process that works in it, so that a later one can tell whether it is gone.

`.NAME.seap-HOST-PID-START-COUNT.tmp`: PID and START (hundredths of a second, the process's start) together are never
used twice. The folder is also locked while its process lives, for processes that don't see each other's numbers.
"""

import contextlib
import hashlib
import itertools
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path

import psutil

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

_PATTERN = re.compile(r"\..*\.seap-([0-9a-f]{6})-(\d+)-(\d+)-\d+\.tmp")
_COUNT = itertools.count()
_SLACK = 200  # hundredths of a second by which a start time may seem to differ


def _host() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:6]


def start_of(pid: int) -> int:
    """When a process started, in hundredths of a second."""
    return int(psutil.Process(pid).create_time() * 100)


def shortened(name: str) -> str:
    """A file's name, cut so that something can be added to it."""
    return name.encode()[:60].decode(errors="ignore")


def make_room(parent: Path, name: str) -> tuple[Path, int | None]:
    """A new folder for this process in `parent`, and the handle that locks it."""
    own = f"{_host()}-{os.getpid()}-{start_of(os.getpid())}-{next(_COUNT)}"
    room = parent / f".{shortened(name)}.seap-{own}.tmp"
    room.mkdir(mode=0o700)
    return room, _locked(room)


def _locked(room: Path) -> int | None:
    """A handle that holds the folder's lock; None where another has it, or where there are no such locks."""
    if fcntl is None:
        return None
    handle = os.open(room, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def unlock(handle: int | None) -> None:
    """Give a folder's lock back."""
    if handle is not None:
        os.close(handle)


def is_gone(pid: int, start: int) -> bool:
    """Whether the process of this number that started then is no more."""
    try:
        return abs(start_of(pid) - start) > _SLACK
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False


def abandoned(parent: Path) -> Iterator[Path]:
    """The rooms in a folder whose process is gone, each locked while the caller looks after it.

    Only this machine's and this user's: what another planted is left alone.
    """
    try:
        names = [entry.name for entry in os.scandir(parent) if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return
    for name in names:
        found = _PATTERN.fullmatch(name)
        if found is None or found[1] != _host() or not is_gone(int(found[2]), int(found[3])):
            continue
        room = parent / name
        with contextlib.suppress(OSError):
            if hasattr(os, "geteuid") and room.lstat().st_uid != os.geteuid():
                continue
            handle = _locked(room)
            if handle is None and fcntl is not None:
                continue
            try:
                yield room
            finally:
                unlock(handle)
