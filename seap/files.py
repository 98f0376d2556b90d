"""Artefacts on disk: written whole or not at all, with metadata that says what they are.

A safetensors file of ours has one metadata entry, `seap`: JSON with `kind` (stats, mask, network or router), `format`
and `about`.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from seap.errors import UserError

FORMAT = "1"
PIECE = 1 << 19  # numbers that are written at a time: 1 to 4 MB, with which Linux is ten times faster than with 32
ON_DISK = {
    **{torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"},
    **{torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL"},
}
BESIDE = ".meta.json"


def digest(value: Any) -> str:
    """A short stable hash of anything that JSON can say."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


@contextlib.contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """A temporary path beside `target` (file or folder) that takes its name when the block ends well.

    On any error, an interrupt included, nothing is left behind, and what stood at `target` stays.
    """
    target = target.resolve()
    made = [p for p in target.parents if not p.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        room = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    except OSError as error:
        raise UserError(f"can't write to {target.parent}: {error.strerror or error}") from error
    draft, old, done = room / "new" / target.name, room / "old", False
    draft.parent.mkdir()
    try:
        yield draft
        if target.is_dir():
            target.rename(old)
        os.replace(draft, target)
        done = True
    except (OSError, SafetensorError) as error:
        full = shutil.disk_usage(target.parent).free < 1 << 20 or "No space left" in str(error)
        why = "the disk is full" if full else str(error)
        raise UserError(f"couldn't write {target}: {why}; nothing was left behind") from error
    finally:
        if old.exists() and not target.exists():
            old.rename(target)
        shutil.rmtree(room, ignore_errors=True)
        if not done:
            for path in made:
                with contextlib.suppress(OSError):
                    path.rmdir()


@contextlib.contextmanager
def folder_beside(target: Path) -> Iterator[Path]:
    """A temporary folder on the disk of `target`, for parts that are moved there; gone afterwards."""
    parent = next(p for p in target.resolve().parents if p.exists())
    try:
        room = tempfile.TemporaryDirectory(prefix=f".{target.name}.", suffix=".tmp", dir=parent)
    except OSError as error:
        raise UserError(f"can't write to {parent}: {error.strerror or error}") from error
    with room as folder:
        yield Path(folder)


def write_json(path: Path, value: Any) -> None:
    """Indented, but for the records of a list at the top (`rows`), which take a line each: a third of the size."""
    with written_whole(path) as draft:
        draft.write_text(_indented(value) + "\n")


def _indented(value: Any) -> str:
    records = {key: part for key, part in value.items() if _is_records(part)} if isinstance(value, dict) else {}
    if not records:
        return json.dumps(value, indent=2)
    entries = []
    for key, part in value.items():
        lines = ",\n".join("    " + json.dumps(record) for record in part) if key in records else ""
        text = f"[\n{lines}\n  ]" if lines else json.dumps(part, indent=2).replace("\n", "\n  ")
        entries.append(f"  {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(entries) + "\n}"


def _is_records(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(part, dict) for part in value)


def about_of(path: Path) -> Path:
    """Where the metadata of a file that has no room for it stands: beside it."""
    return path.with_name(f"{path.name}{BESIDE}")


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> None:
    """Write one JSON object a line, and beside it the metadata. On an error both stay as they were."""
    with written_whole(path) as draft, written_whole(about_of(path)) as draft_about:
        draft.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        draft_about.write_text(json.dumps(about, indent=2) + "\n")


def write_tensors(path: Path, kind: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write one of our safetensors files; the same content gives the same bytes (so one metadata entry, sorted)."""
    metadata = {"seap": json.dumps({"kind": kind, "format": FORMAT, "about": dict(about)}, sort_keys=True)}
    with written_whole(path) as draft:
        write_safetensors(draft, tensors, metadata)


def write_safetensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    *,
    dtype: torch.dtype | None = None,
    written: Callable[[Sequence[Tensor]], None] = lambda pieces: None,
) -> None:
    """A safetensors file, written from where the tensors lie: `save_file` would copy all of them first.

    dtype: what floating ones become, in pieces. written: called with each piece when it is in the file.
    https://github.com/huggingface/safetensors#format
    """
    stored = {
        name: dtype or value.dtype if value.is_floating_point() else value.dtype for name, value in tensors.items()
    }
    names = sorted(tensors, key=lambda name: (-stored[name].itemsize, name))  # so that all are aligned
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in names:
        start, end = end, end + tensors[name].numel() * stored[name].itemsize
        shape = list(tensors[name].shape)
        header[name] = {"dtype": ON_DISK[stored[name]], "shape": shape, "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name in names:
            for piece in tensors[name].detach().reshape(-1).split(PIECE):
                file.write(piece.to("cpu", stored[name]).contiguous().view(torch.uint8).numpy().data)
                written([piece])


def read_about(path: Path, kind: str | None = None) -> tuple[str, dict[str, Any]]:
    """The kind and the metadata of one of our files. Raises UserError for a foreign, truncated or missing one."""
    with _opened(path) as file:
        metadata = (file.metadata() or {}).get("seap")
    if metadata is None:
        raise UserError(f"{path} is a safetensors file, but none of seap's: its metadata has no `seap`")
    found = json.loads(metadata)
    if kind is not None and found["kind"] != kind:
        raise UserError(f"{path} holds {found['kind']}, expected {kind}")
    if found["format"] != FORMAT:
        raise UserError(f"{path} has format {found['format']}, this seap reads {FORMAT}; make the file again")
    return found["kind"], found["about"]


def read_tensors(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the metadata of one of our files."""
    _, about = read_about(path, kind)
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118


def tensor_names(path: Path) -> list[str]:
    """The names of a file's tensors."""
    with _opened(path) as file:
        return list(file.keys())


def read_one(path: Path, name: str) -> Tensor:
    """One tensor of a file."""
    with _opened(path) as file:
        found: Tensor = file.get_tensor(name)
    return found


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise UserError(f"no such file: {path}")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is truncated or no safetensors file ({error}); make it again") from error


def check_output(path: Path, *, overwrite: bool = False, source: str | None = None) -> None:
    """Refuse, before any long work, an output folder that would lose something that isn't seap's to replace."""
    if path.is_file():
        raise UserError(f"--out {path} is a file; name a folder that doesn't exist yet")
    if source is not None and path.exists() and Path(source).exists() and path.resolve() == Path(source).resolve():
        raise UserError(f"--out {path} is the model itself, which would be lost; name another folder")
    if path.is_dir() and any(path.iterdir()):
        if not overwrite:
            raise UserError(f"--out {path} isn't empty; name another folder or add --overwrite")
        if not (path / "seap.json").is_file():
            raise UserError(f"--out {path} isn't a checkpoint of seap's, so --overwrite won't replace it; name another")
    if path.resolve() == Path.cwd():
        raise UserError(f"--out {path} is the folder that you are in; name another")
    parent = next(p for p in path.resolve().parents if p.exists())
    if not os.access(parent, os.W_OK):
        raise UserError(f"--out {path}: {parent} is not writable")


def check_output_file(path: Path, *, suffix: str, overwrite: bool = False, example: str = "texts") -> None:
    """Refuse, before any long work, an output file that can't be written, would lose another or be misread later."""
    if path.is_dir():
        raise UserError(f"--out {path} is a folder; name a file, such as {path / (example + suffix)}")
    if path.suffix.lower() != suffix:
        raise UserError(
            f"--out {path}: what is written is {suffix}, and read again by that; name it {path.stem}{suffix}"
        )
    if path.exists() and not overwrite:
        raise UserError(f"--out {path} is there already; name another file or add --overwrite")
    parent = next(p for p in path.resolve().parents if p.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise UserError(f"--out {path}: {parent} is not writable")


def is_current(path: Path, key: str) -> bool:
    """Whether a file with this key stands there already. Raises UserError for one with another key."""
    if not path.exists():
        return False
    _, about = read_about(path)
    if about.get("key") != key:
        raise UserError(f"{path} was made with other text, options or another model; delete it or name another --out")
    return True
