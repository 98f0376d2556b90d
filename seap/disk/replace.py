"""Puts a finished draft in its place in one step, so that a kill at any moment leaves the old result or the new one.

A file takes another's place by one rename. A folder changes places with the old one by Linux's RENAME_EXCHANGE; where
that isn't to be had, by two renames, and a journal in the room says what the next start is to finish. Of the old folder
only what seap wrote is removed: the rest is carried over.
"""

import contextlib
import ctypes
import errno
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from seap.disk.manifest import edited, own_files
from seap.errors import UserError

_AT_FDCWD = -100
_NO_REPLACE, _EXCHANGE = 1, 2  # linux/fs.h
JOURNAL = "journal.json"


def _rename2(source: Path, target: Path, flags: int) -> bool:
    """Linux's renameat2; False where the system or the file system has none."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if call is None:
        return False
    if call(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flags) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM):
        return False
    raise OSError(code, os.strerror(code), str(target))


def put(room: Path, targets: Sequence[Path]) -> None:
    """Let the drafts in the room be the targets, all of them or, killed before the journal is there, none.

    What isn't seap's in an old folder is carried over. All targets are in the folder that the room is in.
    """
    sync(room)
    for index, target in enumerate(targets):
        if _is_full(target):
            carry_over(target, draft_of(room, index, target.name))
            sync(draft_of(room, index, target.name))
    if len(targets) > 1 or any(map(_is_full, targets)):
        _write_journal(room, targets)
    for index, target in enumerate(targets):
        _put(room, index, target)
    sync_folder(room.parent)


def draft_of(room: Path, index: int, name: str) -> Path:
    """Where in a room the draft of its target with this index is."""
    return room / f"new{index}" / name


def _is_full(target: Path) -> bool:
    return target.is_dir() and any(target.iterdir())


def _put(room: Path, index: int, target: Path) -> None:
    draft = draft_of(room, index, target.name)
    if not os.path.lexists(target):
        if not _rename2(draft, target, _NO_REPLACE):
            os.rename(draft, target)
    elif not _is_full(target):
        os.replace(draft, target)
    elif not _rename2(draft, target, _EXCHANGE):
        os.rename(target, room / f"old{index}")
        os.rename(draft, target)


def _write_journal(room: Path, targets: Sequence[Path]) -> None:
    drafts = [draft_of(room, index, target.name) for index, target in enumerate(targets)]
    told = [
        {"target": target.name, "draft": _identity(draft), "old": _identity(target)}
        for draft, target in zip(drafts, targets, strict=True)
    ]
    begun = room / f"{JOURNAL}.begun"
    begun.write_text(json.dumps(told))
    sync(begun)
    begun.rename(room / JOURNAL)
    sync_folder(room)


def _identity(path: Path) -> list[int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return [found.st_dev, found.st_ino]


def clear(room: Path) -> None:
    """Finish the replacement that a room's journal tells of, then remove the room."""
    for index, (name, identity, before) in enumerate(_journal_of(room)):
        target, old = room.parent / name, room / f"old{index}"
        draft = draft_of(room, index, name)
        if _identity(draft) == identity and _identity(target) in (None, before):
            with contextlib.suppress(OSError):
                _put(room, index, target)
        if not os.path.lexists(target) and old.exists():
            old.rename(target)
        if _identity(target) == identity:
            for rest in (draft, old):
                if rest.is_dir():
                    _retire(rest, target)
        sync_folder(target.parent)
    shutil.rmtree(room, ignore_errors=True)


def _journal_of(room: Path) -> list[tuple[str, list[int], list[int] | None]]:
    """The targets' names, and which file or folder the draft and what it replaces are."""
    try:
        entries = json.loads((room / JOURNAL).read_text())
        told = [(str(entry["target"]), list(entry["draft"]), entry["old"]) for entry in entries]
    except (OSError, ValueError, TypeError, KeyError):
        return []
    return told if all(name == Path(name).name and name not in ("", ".", "..") for name, _, _ in told) else []


def _inside(folder: Path) -> list[Path]:
    """Files, links and empty folders in a folder, as paths inside it; links aren't followed."""
    found = []
    for place, folders, files in os.walk(folder):
        here = Path(place)
        links = [name for name in folders if (here / name).is_symlink()]
        found += [(here / name).relative_to(folder) for name in (*files, *links)]
        if not folders and not files and here != folder:
            found.append(here.relative_to(folder))
    return found


def carry_over(old: Path, draft: Path) -> None:
    """Give the draft what in the old folder isn't seap's, and what was edited since, under a name that is free."""
    own, changed = own_files(old), edited(old)
    for path in _inside(old):
        name = path.as_posix()
        if name in own and name not in changed:
            continue
        wanted = draft / path
        if (old / path).is_dir() and not (old / path).is_symlink():
            wanted.mkdir(parents=True, exist_ok=True)
            continue
        _link(old / path, _free(wanted) if os.path.lexists(wanted) or name in changed else wanted)


def _free(path: Path) -> Path:
    """`README.md.before`, `README.md.before2` …: the first that isn't there."""
    count, found = 1, path.with_name(f"{path.name}.before")
    while os.path.lexists(found):
        count += 1
        found = path.with_name(f"{path.name}.before{count}")
    return found


def _link(source: Path, target: Path) -> None:
    """The same file under a second name; a copy where there can't be one."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(source, target, follow_symlinks=False)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{source} isn't seap's, and stands where a new file must go; move it away") from error
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def _retire(old: Path, target: Path) -> None:
    """Take out of an old folder what the new one doesn't have: what somebody put there in the last moment."""
    own = own_files(old)
    for path in _inside(old):
        source, place = old / path, target / path
        if path.as_posix() in own or (source.is_dir() and not source.is_symlink()):
            continue
        if os.path.lexists(place) and source.lstat().st_ino == place.lstat().st_ino:
            continue
        if _is_kept(source, target, path):
            continue
        with contextlib.suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
            source.rename(_free(place) if os.path.lexists(place) else place)


def _is_kept(source: Path, target: Path, path: Path) -> bool:
    """Whether the new folder has a file already, under a name like `a.before`, or as a copy."""
    place = target / path
    beside = [place, *place.parent.glob(f"{place.name}.before*")] if place.parent.is_dir() else []
    here = source.lstat()
    same = [found.lstat() for found in beside if os.path.lexists(found)]
    return any(
        found.st_ino == here.st_ino or (found.st_size, found.st_mtime_ns) == (here.st_size, here.st_mtime_ns)
        for found in same
    )


def sync(path: Path) -> None:
    """Have a file, or a folder with all that is in it, really be on the disk."""
    if path.is_symlink():
        return
    if path.is_dir():
        for entry in path.iterdir():
            sync(entry)
        sync_folder(path)
    elif path.is_file():
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sync_folder(path: Path) -> None:
    """Have a folder's list of names be on the disk; not every system can."""
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def settle_modes(draft: Path) -> None:
    """One mode for all files and one for all folders: those that this process's umask gives to new ones."""
    folder, probe = draft.parent, draft.with_name(f".{draft.name[:9]}.probe")
    probe.touch()
    modes = {True: folder.stat().st_mode & 0o7777, False: probe.stat().st_mode & 0o7777}
    probe.unlink()
    for path in [draft, *(draft.rglob("*") if draft.is_dir() else ())]:
        if not path.is_symlink():
            path.chmod(modes[path.is_dir()])
