"""Writes results whole or not at all."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from seap.disk.claim import Claim, State, check_unchanged, covering, make_parents, remove_empty, state_of, tidy
from seap.disk.kinds import FOLDERS
from seap.disk.manifest import write_manifest
from seap.disk.place import check_place, resolved
from seap.disk.replace import clear, draft_of, put, settle_modes
from seap.disk.rooms import abandoned, make_room, unlock
from seap.errors import UserError


@contextlib.contextmanager
def written_whole(target: Path, kind: str) -> Iterator[Path]:
    """A temporary path beside `target` that takes its name when the block ends well.

    kind: what is written, which says whether it is a file or (`kinds.FOLDERS`) a folder, which is then there, and gets
    a list of its files. On any error, an interrupt included, nothing is left behind, and what stood at `target` stays.
    Raises UserError for a target that isn't this kind's to replace (with what a claim on it allows), or that another
    run wrote meanwhile.
    """
    with written_together([(target, kind)]) as [draft]:
        yield draft


@contextlib.contextmanager
def written_together(wanted: Sequence[tuple[Path, str]]) -> Iterator[list[Path]]:
    """As `written_whole`, for targets in one folder that belong together: all of them are replaced, or none."""
    places = [_Place.of(target, kind) for target, kind in wanted]
    parent = places[0].path.parent
    made, done = make_parents(places[0].path), False
    try:
        room, handle = make_room(parent, places[0].path.name)
    except OSError as error:
        remove_empty(made)
        raise UserError(f"can't write to {parent}: {error.strerror or error}") from error
    drafts = [draft_of(room, index, place.path.name) for index, place in enumerate(places)]
    try:
        for place, draft in zip(places, drafts, strict=True):
            draft.parent.mkdir()
            if place.kind in FOLDERS:
                draft.mkdir()
        yield drafts
        for place, draft in zip(places, drafts, strict=True):
            place.finish(draft)
        put(room, [place.path for place in places])
        done = True
    except (OSError, SafetensorError) as error:
        full = shutil.disk_usage(parent).free < 1 << 20 or "No space left" in str(error)
        why = "the disk is full" if full else str(error)
        raise UserError(f"couldn't write {wanted[0][0]}: {why}; nothing was left behind") from error
    finally:
        clear(room)
        unlock(handle)
        for place in places:
            place.note(written=done)
        if not done:
            remove_empty(made)


@dataclass(frozen=True)
class _Place:
    """A target, and what stood there when the run, or without a claim the writing, began."""

    asked: Path
    path: Path
    kind: str
    claim: Claim | None
    seen: State

    @classmethod
    def of(cls, target: Path, kind: str) -> "_Place":
        path = resolved(target)
        claim = covering(path)
        if claim is None:
            tidy(path)
        check_place(target, kind, overwrite=claim is not None and claim.overwrite)
        return cls(target, path, kind, claim, claim.seen if claim and claim.target == path else state_of(path))

    def finish(self, draft: Path) -> None:
        """List and settle what was written, and look once more whether it may take its place."""
        if self.kind in FOLDERS:
            write_manifest(draft, self.kind)
        settle_modes(draft)
        if self.path.is_file():
            shutil.copymode(self.path, draft)
        check_unchanged(self.path, self.seen)
        check_place(self.asked, self.kind, overwrite=self.claim is not None and self.claim.overwrite)

    def note(self, *, written: bool) -> None:
        if written and self.claim is not None and self.claim.target == self.path:
            self.claim.seen = state_of(self.path)


@contextlib.contextmanager
def temporary(name: str, parent: Path | None = None) -> Iterator[Path]:
    """A folder in `parent` (by default the system's place for such), gone afterwards, or at the next start there."""
    room, handle = lasting(name, parent)
    try:
        yield room
    finally:
        shutil.rmtree(room, ignore_errors=True)
        unlock(handle)


def lasting(name: str, parent: Path | None = None) -> tuple[Path, int | None]:
    """As `temporary`, but for the caller to remove; with the handle to be unlocked then."""
    place = Path(tempfile.gettempdir()) if parent is None else parent
    for room in abandoned(place):
        clear(room)
    try:
        return make_room(place, name)
    except OSError as error:
        raise UserError(f"can't write to {place}: {error.strerror or error}") from error


@contextlib.contextmanager
def folder_beside(target: Path) -> Iterator[Path]:
    """A temporary folder on the disk of `target`, for parts that are moved there; gone afterwards."""
    parent = next(p for p in target.resolve().parents if p.exists())
    with temporary(target.name, parent) as room:
        yield room
