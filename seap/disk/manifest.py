"""The list, in a folder that seap wrote as a whole, of the files that are seap's own."""

import json
from pathlib import Path, PurePosixPath
from typing import Any

from seap.disk.digests import digest_of

MANIFEST = "seap-files.json"
SMALL = 1 << 20  # bytes; what somebody may have edited by hand


def write_manifest(folder: Path, kind: str) -> None:
    """List every file of a folder as it is now, with sizes and digests."""
    files = {
        str(path.relative_to(folder).as_posix()): {"bytes": path.stat().st_size, "digest": digest_of(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    (folder / MANIFEST).write_text(json.dumps({"kind": kind, "files": files}, indent=2) + "\n")


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """What a folder's list says; None where there is none that can be trusted."""
    path = folder / MANIFEST
    if path.is_symlink() or not path.is_file():
        return None
    try:
        found = json.loads(path.read_text())
        names, kind = list(found["files"]), found["kind"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    inside = all(not (parts := PurePosixPath(name)).is_absolute() and ".." not in parts.parts for name in names)
    return dict(found) if inside and isinstance(kind, str) else None


def own_files(folder: Path) -> set[str]:
    """The files that seap wrote, its list among them, as paths inside the folder."""
    found = read_manifest(folder)
    return {MANIFEST, *found["files"]} if found else set()


def edited(folder: Path) -> set[str]:
    """Those of seap's own small files that aren't any more what seap wrote."""
    found = read_manifest(folder) or {"files": {}}
    changed = set()
    for name, told in found["files"].items():
        path = folder / name
        known = isinstance(told, dict)
        if path.is_file() and path.stat().st_size <= SMALL and (not known or digest_of(path) != told.get("digest")):
            changed.add(name)
    return changed
