"""Artefacts on disk: written whole or not at all, with metadata that says what they are.

A safetensors file of ours has string metadata: `kind` (stats or mask), `format`, and `about` (JSON).
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from seap.errors import UserError

FORMAT = "1"


def digest(value: Any) -> str:
    """A short stable hash of anything that JSON can say."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


@contextlib.contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """A temporary path beside `target` (file or folder) that takes its name when the block ends well.

    On any error nothing is left behind, and what stood at `target` stays.
    """
    parent = target.resolve().parent
    made = [p for p in (parent, *parent.parents) if not p.exists()]
    try:
        parent.mkdir(parents=True, exist_ok=True)
        room = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=parent))
    except OSError as error:
        raise UserError(f"can't write to {parent}: {error.strerror or error}") from error
    done = False
    try:
        draft = room / target.name
        yield draft
        if target.is_dir() and draft.is_dir():
            target.rename(room / "old")
        os.replace(draft, target)
        done = True
    except (OSError, SafetensorError) as error:
        full = shutil.disk_usage(parent).free < 1 << 20 or "No space left" in str(error)
        why = "the disk is full" if full else str(error)
        raise UserError(f"couldn't write {target}: {why}; nothing was left behind") from error
    finally:
        shutil.rmtree(room, ignore_errors=True)
        if not done:
            for path in made:
                with contextlib.suppress(OSError):
                    path.rmdir()


def write_json(path: Path, value: Any) -> None:
    with written_whole(path) as draft:
        draft.write_text(json.dumps(value, indent=2) + "\n")


def write_tensors(path: Path, kind: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write one of our safetensors files."""
    metadata = {"kind": kind, "format": FORMAT, "about": json.dumps(dict(about))}
    with written_whole(path) as draft:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, draft, metadata=metadata)


def read_about(path: Path, kind: str | None = None) -> tuple[str, dict[str, Any]]:
    """The kind and the metadata of one of our files. Raises UserError for a foreign, truncated or missing one."""
    with _opened(path) as file:
        metadata = file.metadata() or {}
    found = metadata.get("kind")
    if "about" not in metadata or found not in ("stats", "mask"):
        raise UserError(f"{path} is a safetensors file, but none of seap's: it has no `kind` in its metadata")
    if kind is not None and found != kind:
        raise UserError(f"{path} holds {found}, expected {kind}")
    if metadata["format"] != FORMAT:
        raise UserError(f"{path} has format {metadata['format']}, this seap reads {FORMAT}; make the file again")
    return found, json.loads(metadata["about"])


def read_tensors(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the metadata of one of our files."""
    _, about = read_about(path, kind)
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise UserError(f"no such file: {path}")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is truncated or no safetensors file ({error}); make it again") from error


def check_output(path: Path, *, overwrite: bool = False) -> None:
    """Refuse, before any long work, an output folder that would lose something."""
    if path.is_file():
        raise UserError(f"--out {path} is a file; name a folder that doesn't exist yet")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise UserError(f"--out {path} isn't empty; name another folder or add --overwrite")
    parent = next(p for p in path.resolve().parents if p.exists())
    if not os.access(parent, os.W_OK):
        raise UserError(f"--out {path}: {parent} is not writable")


def is_current(path: Path, key: str) -> bool:
    """Whether a file with this key stands there already. Raises UserError for one with another key."""
    if not path.exists():
        return False
    _, about = read_about(path)
    if about.get("key") != key:
        raise UserError(f"{path} was made with other text, options or another model; delete it or name another --out")
    return True
