"""What a target must be like, so that nothing of anybody else's is lost. Every check is made before the work."""

import math
import os
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path

from seap.disk.kinds import ASKING, COLLECTION, FOLDERS, kind_of
from seap.errors import UserError


def at_home(path: str | Path) -> Path:
    """A path with the home folder in place of `~`; of a user who isn't there as it is given."""
    return Path(os.path.expanduser(path))


def resolved(path: Path) -> Path:
    """Where a path leads. Raises UserError for a link to nothing or in a circle."""
    try:
        if path.is_symlink():
            return path.resolve(strict=True)
        return path.resolve()
    except (OSError, RuntimeError) as error:
        raise UserError(f"--out {path} is a link that leads nowhere; remove it or name another place") from error


def check_place(path: Path, kind: str, *, overwrite: bool = False) -> None:
    """Refuse what can't become a result of this kind without losing something that isn't its to replace."""
    place = resolved(path)
    try:
        mode = place.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise UserError(f"--out {path}: {error.strerror or error}") from error
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise UserError(f"--out {path} is neither a file nor a folder, and is never replaced; name a file or a folder")
    is_folder, wanted = stat.S_ISDIR(mode), kind in FOLDERS or kind == COLLECTION
    if is_folder and not wanted:
        raise UserError(f"--out {path} is a folder, what is written is a file; name one, such as {path / 'NAME'}")
    if wanted and not is_folder:
        raise UserError(f"--out {path} is a file; name a folder that doesn't exist yet")
    if kind != COLLECTION and (not is_folder or _holds_anything(place)):
        _check_own(path, kind, kind_of(place), overwrite=overwrite)


def _holds_anything(folder: Path) -> bool:
    try:
        return any(folder.iterdir())
    except OSError as error:
        raise UserError(f"--out {folder}: {error.strerror or error}") from error


def _check_own(path: Path, kind: str, found: str | None, *, overwrite: bool) -> None:
    if found is None and path.is_dir():
        older = (path / "seap.json").is_file()
        why = "an older seap made it, without a list of its files" if older else f"it isn't a {kind} of seap's"
        way = "remove it yourself, or name another" if older else "name another"
        raise UserError(f"--out {path} isn't empty, and {why}, so --overwrite won't replace it either; {way}")
    if found is None:
        raise UserError(
            f"--out {path} is there already and isn't seap's own, so --overwrite won't replace it either; name another"
        )
    if not overwrite and (found != kind or kind in ASKING):
        what = f"isn't empty: it is a {found}" if path.is_dir() else f"is there already, a {found}"
        raise UserError(f"--out {path} {what}; name another {'folder' if path.is_dir() else 'file'} or add --overwrite")


def check_apart(out: Path, inputs: Mapping[str, Path]) -> None:
    """Refuse an output that is, contains or lies in what is read, or that contains the folder that one is in."""
    place = resolved(out)
    try:
        here = Path.cwd()
    except OSError:
        here = None
    if here is not None and here.is_relative_to(place):
        raise UserError(f"--out {out} is the folder that you are in, or contains it; name another")
    for what, path in inputs.items():
        if not path.exists():
            continue
        source = path.resolve()
        if place == source or (place.exists() and place.samefile(source)):
            raise UserError(f"--out {out} is {what} itself, which would be lost; name another place")
        if source.is_relative_to(place):
            raise UserError(f"--out {out} contains {what} ({path}), which is read; name another place")
        if source.is_dir() and place.is_relative_to(source):
            raise UserError(f"--out {out} lies in {what} ({path}), which is read; name another place")


def check_writable(out: Path, *, inside: bool = False) -> None:
    """Refuse a place where nothing can be written. inside: into `out` itself where it is there."""
    place = resolved(out)
    parent = next(p for p in ([place] if inside else []) + list(place.parents) if p.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise UserError(f"--out {out}: {parent} is not writable")


def check_space(out: Path, num_bytes: float, what: str = "the result") -> None:
    """Raise UserError before the work when the disk can't hold the result."""
    parent = next(p for p in (out.resolve(), *out.resolve().parents) if p.exists())
    free = shutil.disk_usage(parent).free
    if free < num_bytes * 1.02:
        raise UserError(
            f"--out {out}: the disk has {free >> 20} MB free, {what} needs {math.ceil(num_bytes / (1 << 20))} MB"
        )
