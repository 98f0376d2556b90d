"""Kinds of what seap writes, and how its own is told from foreign files: by what is inside, never by the name."""

import json
from pathlib import Path
from typing import Any

from seap.disk.digests import digest_of
from seap.disk.manifest import read_manifest

FOLDERS = ("checkpoint", "export", "page files", "task definitions")  # written as a whole
COLLECTION = "collection"  # a folder that results are put into one by one
ASKING = ("checkpoint", "export", "gguf", "router", "written texts")  # never replaced without --overwrite
RESULT = "result"  # a JSON result that names no kind
GENERATOR = '<meta name="generator" content="seap '  # report or explore
GGUF_KEY = "seap.version"
BESIDE = ".meta.json"
_START = 8192  # bytes that tell what a file is
_LARGEST_HEADER = 100 << 20


def about_of(path: Path) -> Path:
    """Where the metadata of a file that has no room for it stands: beside it."""
    return path.with_name(f"{path.name}{BESIDE}")


def kind_of(path: Path) -> str | None:
    """Which kind of seap's own stands at a path; None for what is foreign or can't be read, and for nothing."""
    try:
        if path.is_dir():
            return (read_manifest(path) or {}).get("kind")
        if not path.is_file():
            return None
        with path.open("rb") as file:
            start = file.read(_START)
        if start.startswith(b"GGUF"):
            return "gguf" if GGUF_KEY.encode() in start else None
        if GENERATOR.encode() in start:
            return "page"
        if start[8:9] == b"{" and (found := _kind_of_tensors(path, start)):
            return found
        return _kind_of_json(path) if start[:1] == b"{" else None
    except (OSError, ValueError, RecursionError):
        return None


def _kind_of_tensors(path: Path, start: bytes) -> str | None:
    """By the metadata of a safetensors file."""
    length = int.from_bytes(start[:8], "little")
    if not 0 < length <= min(_LARGEST_HEADER, path.stat().st_size - 8):
        return None
    with path.open("rb") as file:
        file.seek(8)
        header = json.loads(file.read(length))
    told = header.get("__metadata__", {}).get("seap") if isinstance(header, dict) else None
    return None if told is None else str(json.loads(told)["kind"])


def _kind_of_json(path: Path) -> str | None:
    """By what a result says of its making; texts by what stands beside them, while they are as they were written."""
    beside = about_of(path)
    if beside.is_file():
        told = _made_by_seap(json.loads(beside.read_text()))
        same = told is not None and told.get("digest") in (None, digest_of(path))
        return str(told["kind"]) if told and same and "kind" in told else None
    found = _made_by_seap(json.loads(path.read_text()))
    return None if found is None else str(found.get("kind", RESULT))


def _made_by_seap(value: Any) -> dict[str, Any] | None:
    versions = value.get("versions") if isinstance(value, dict) else None
    return value if isinstance(versions, dict) and "seap" in versions else None
