"""What a command holds of its output from start to end: it was found fit, nobody else writes there, rests are gone."""

import contextlib
import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from seap.disk.kinds import COLLECTION
from seap.disk.manifest import MANIFEST
from seap.disk.place import check_apart, check_place, check_writable, resolved
from seap.disk.replace import clear
from seap.disk.rooms import abandoned, is_gone, shortened, start_of
from seap.errors import UserError

LOCK = ".seap-lock"
State = tuple[int, ...] | None


@dataclass
class Claim:
    """One output of a running command."""

    target: Path
    overwrite: bool
    seen: State  # of what stood there when the run began, or what the run has written since


_HELD: dict[Path, Claim] = {}


def covering(target: Path) -> Claim | None:
    """The claim on a target, or on a folder that it lies in."""
    return next((_HELD[place] for place in (target, *target.parents) if place in _HELD), None)


def state_of(target: Path) -> State:
    """What tells one result under a name from another."""
    try:
        found = target.lstat()
        listed = (target / MANIFEST).lstat() if target.is_dir() else found
    except OSError:
        return None
    return found.st_ino, listed.st_ino, listed.st_size, listed.st_mtime_ns


def check_unchanged(target: Path, seen: State) -> None:
    """Raise UserError when somebody else has written a result since."""
    if state_of(target) != seen:
        raise UserError(f"--out {target} was written by another run meanwhile; nothing was replaced, run again")


@contextlib.contextmanager
def claimed(
    out: Path, kind: str, *, overwrite: bool = False, inputs: Mapping[str, Path] | None = None
) -> Iterator[None]:
    """Hold an output for a run. Raises UserError at once for one that isn't fit, or that another run holds.

    inputs: what is read, by what it is called in an error.
    What killed runs left there is cleared away, and a replacement that they had begun is finished.
    """
    check_apart(out, inputs or {})
    place, folder = resolved(out), kind == COLLECTION
    check_writable(out, inside=folder)
    _check_if_settled(out, place, kind, overwrite=overwrite)
    made = make_parents(place / "inside" if folder else place)
    try:
        with _lock(place, out, inside=folder):
            tidy(place, inside=folder)
            check_place(out, kind, overwrite=overwrite)
            _HELD[place] = Claim(place, overwrite, state_of(place))
            try:
                yield
            finally:
                del _HELD[place]
    finally:
        remove_empty(made)


@contextlib.contextmanager
def claimed_each(
    folder: Path,
    names: Sequence[str],
    kind: str,
    *,
    overwrite: bool = False,
    inputs: Mapping[str, Path] | None = None,
) -> Iterator[None]:
    """Hold several files of a folder, so that other runs may write others there."""
    check_place(folder, COLLECTION)
    check_apart(folder, inputs or {})
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(claimed(folder / name, kind, overwrite=overwrite, inputs=inputs))
        yield


@contextlib.contextmanager
def claimed_results(
    folder: Path, kind: str, *, overwrite: bool = False, inputs: Mapping[str, Path] | None = None
) -> Iterator[None]:
    """Hold a folder that results go into one by one, at the end `KIND.json`, which must be fit to be replaced."""
    with claimed(folder, COLLECTION, overwrite=overwrite, inputs=inputs):
        check_place(folder / f"{kind}.json", kind, overwrite=overwrite)
        yield


def _check_if_settled(out: Path, place: Path, kind: str, *, overwrite: bool) -> None:
    """Refuse at once, unless a killed run's replacement is to be finished first."""
    if next(abandoned(place.parent), None) is None:
        check_place(out, kind, overwrite=overwrite)


def tidy(place: Path, *, inside: bool = False) -> None:
    """Clear away, beside a target and (inside) one level down in it, what killed runs left."""
    places = [place.parent]
    if inside and place.is_dir():
        places += [place, *(path for path in place.iterdir() if path.is_dir() and not path.is_symlink())]
    for folder in places:
        for room in abandoned(folder):
            clear(room)
        _remove_old_locks(folder)


def _remove_old_locks(folder: Path) -> None:
    """A killed run's lock is open, but its file is still there."""
    with contextlib.suppress(OSError):
        for path in [entry for entry in folder.iterdir() if entry.name.endswith(LOCK) and entry.is_file()]:
            told = _told(path)
            if told and told["host"] == platform.node() and is_gone(told["pid"], told["started"]):
                with contextlib.suppress(OSError, Timeout), FileLock(path, timeout=0):
                    path.unlink()


def make_parents(target: Path) -> list[Path]:
    """Make the folders above a target; returns those that weren't there, innermost first."""
    made = [p for p in target.parents if not p.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        remove_empty(made)
        raise UserError(f"can't write to {target.parent}: {error.strerror or error}") from error
    return made


def remove_empty(folders: Sequence[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


@contextlib.contextmanager
def _lock(place: Path, out: Path, *, inside: bool) -> Iterator[None]:
    """Hold the lock file of an output. Two that unlink and make it in the same instant are told apart at the rename."""
    path = place / LOCK if inside else place.parent / f".{shortened(place.name)}{LOCK}"
    lock = FileLock(path, timeout=0)
    if place in _HELD:
        raise UserError(f"--out {out} is being written by another run of this process; name another place")
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"--out {out} is being written by {_holder(path)}; wait for it or name another place") from None
    except OSError as error:
        raise UserError(f"can't write to {path.parent}: {error.strerror or error}") from error
    try:
        path.write_text(json.dumps(_about_this_run()))
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        lock.release()


def _about_this_run() -> dict[str, Any]:
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    since = datetime.now().isoformat(" ", "seconds")
    own = os.getpid()
    return {"pid": own, "started": start_of(own), "host": platform.node(), "since": since, "command": command}


def _told(path: Path) -> dict[str, Any] | None:
    """What a lock's file says of its holder."""
    try:
        found = json.loads(path.read_text())
        return {**found, "pid": int(found["pid"]), "started": int(found["started"]), "host": str(found["host"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _holder(path: Path) -> str:
    """Who holds a lock, as far as its file says."""
    told = _told(path)
    if told is None:
        return "another process"
    words = str(told.get("command", ""))[:200]
    return f"process {told['pid']} on {told['host']} since {told.get('since')} ({words})"
