"""Imported: what stands under a command's output: the old result, the new one, nothing, or something else."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from seap.disk.digests import damaged, digest_of
from seap.disk.kinds import kind_of
from seap.disk.manifest import MANIFEST, read_manifest
from seap.exports.engines import check
from seap.exports.options import Deployment
from seap.files import read_about, read_tensors

MINE = "mine.txt"


def files_of(path: Path) -> dict[str, str]:
    """A digest of every file of a result, by its path inside it."""
    found = [path] if path.is_file() else sorted(path.rglob("*"))
    return {str(file.relative_to(path.parent)): digest_of(file) for file in found if file.is_file()}


def listing(place: Path) -> dict[str, str]:
    """Every file with its digest, and every folder, but for what the last run said."""
    found = {path: digest_of(path) if path.is_file() else "" for path in place.rglob("*")}
    return {str(path.relative_to(place)): told for path, told in found.items() if path.name not in ("log", "steps")}


def put_foreign(place: Path, out: tuple[str, ...]) -> None:
    """Files that aren't seap's: in folders that are written, and beside results."""
    for name in ("", *out):
        folder = place / name if (place / name).is_dir() else (place / name).parent
        (folder / MINE).write_text(f"mine, in {folder.relative_to(place)}")
        (folder / "mine").mkdir(exist_ok=True)
        (folder / "mine" / MINE).write_text("mine, deeper")


def foreign(place: Path, out: tuple[str, ...]) -> set[tuple[str, str]]:
    """These files with their digests, and what commands read, except where a folder is between two renames."""
    there = {path for path in place.rglob(MINE) if ".seap-" not in str(path)}
    there |= {path for name in ("in", "dense") for path in (place / name).rglob("*") if path.is_file()}
    return {
        (str(path.relative_to(place)), digest_of(path))
        for path in there
        if all((place / name).exists() or place / name not in path.parents for name in out)
    }


@dataclass(frozen=True)
class Results:
    """What one run left: for each output its files' digests; `volatile` ones differ from run to run."""

    place: Path
    out: tuple[str, ...]
    files: tuple[dict[str, str], ...]
    volatile: frozenset[str] = frozenset()

    @classmethod
    def of(cls, place: Path, out: tuple[str, ...]) -> "Results":
        return cls(place, out, tuple(files_of(place / name) for name in out))

    def apart_from(self, other: "Results") -> "Results":
        """The same, knowing from a second run which files differ from run to run."""
        pairs = [
            (name, mine[name], its.get(name))
            for mine, its in zip(self.files, other.files, strict=True)
            for name in mine
        ]
        return replace(self, volatile=frozenset(name for name, mine, its in pairs if mine != its))

    def state_of(self, place: Path, old: "Results") -> tuple[list[str], list[str]]:
        """For each output old, new or gone, and what is wrong with it; self is the new one."""
        states, wrong = [], []
        for index, name in enumerate(self.out):
            now = files_of(place / name)
            states.append("gone" if not now else "old" if now == old.files[index] else "new")
            if states[-1] == "new":
                wrong += [f"{name} (not the old one) {fault}" for fault in self._faults(place / name, now, index)]
        return states, wrong

    def _faults(self, path: Path, now: dict[str, str], index: int) -> list[str]:
        """What tells a result from the new one, and what seap's own readers say of it."""
        wanted = self.files[index]
        found = [f"has or lacks {name}" for name in now.keys() ^ wanted.keys()]
        for name in now.keys() & wanted.keys():
            mine, its = path.parent / name, self.place / Path(self.out[index]).parent / name
            same = now[name] == wanted[name] or (name in self.volatile and alike(mine, its))
            found += [] if same else [f"has another {name}"]
        return found + unreadable(path)


def alike(one: Path, other: Path) -> bool:
    """Whether two files are the same but for what differs from run to run, such as seconds."""
    if one.suffix == ".json":
        return bool(outline(json.loads(one.read_text())) == outline(json.loads(other.read_text())))
    return one.suffix in (".html", ".csv", ".svg", ".png", ".md") and one.stat().st_size > 0.8 * other.stat().st_size


def outline(value: Any) -> Any:
    """What a JSON file has, without its numbers and the texts in it."""
    if isinstance(value, dict):
        return {key: outline(part) for key, part in value.items()}
    if isinstance(value, list):
        return [outline(part) for part in value]
    return None if isinstance(value, int | float) else type(value).__name__ if value is not None else None


def unreadable(path: Path) -> list[str]:
    """What seap's own readers say against a result."""
    if path.is_dir():
        told = read_manifest(path)
        if told is None:
            return [f"has no {MANIFEST}"]
        wrong = damaged(path, {name: part["digest"] for name, part in told["files"].items()})
        found = [f"{name} {what}" for name, what in wrong.items()]
        if told["kind"] in ("checkpoint", "export"):
            found += [f"{name} {what}" for name, what in check(str(path), Deployment())["damaged"].items()]
        return found
    if path.suffix == ".html" and not path.read_text().rstrip().endswith("</html>"):
        return ["ends early"]
    if path.suffix == ".safetensors":
        read_tensors(path, read_about(path)[0])
    return [] if kind_of(path) is not None else ["isn't seap's"]
