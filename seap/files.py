"""Artefacts: JSON and safetensors files, with metadata that says what they are.

A safetensors file of ours has one metadata entry, `seap`: JSON with `kind` (stats, mask, network or router), `format`
and `about`.
"""

import contextlib
import hashlib
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from seap.disk.claim import state_of
from seap.disk.digests import digest_of
from seap.disk.kinds import RESULT, about_of
from seap.disk.place import check_space
from seap.disk.whole import written_together, written_whole
from seap.errors import UserError, first_line

FORMAT = "1"
PIECE = 1 << 19  # numbers that are written at a time: 1 to 4 MB, with which Linux is ten times faster than with 32
ON_DISK = {
    **{torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"},
    **{torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL"},
}


def digest(value: Any) -> str:
    """A short stable hash of anything that JSON can say."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def to_json(value: Any, **options: Any) -> str:
    """Strict JSON, in which NaN and the infinities are null."""
    try:
        return json.dumps(value, allow_nan=False, **options)
    except ValueError:
        return json.dumps(_finite(value), allow_nan=False, **options)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    return [_finite(part) for part in value] if isinstance(value, list | tuple) else value


def write_json(path: Path, value: Any, kind: str | None = None) -> None:
    """Indented, but for the records of a list at the top (`rows`), which take a line each: a third of the size.

    kind: of the result, by default what it says of itself. One that stands there is replaced if it is of this kind.
    """
    own = value.get("kind", RESULT) if isinstance(value, dict) else RESULT
    with written_whole(path, kind or str(own)) as draft:
        draft.write_text(_indented(value) + "\n")


def _indented(value: Any) -> str:
    records = {key: part for key, part in value.items() if _is_records(part)} if isinstance(value, dict) else {}
    if not records:
        return to_json(value, indent=2)
    entries = []
    for key, part in value.items():
        lines = ",\n".join("    " + to_json(record) for record in part) if key in records else ""
        text = f"[\n{lines}\n  ]" if lines else to_json(part, indent=2).replace("\n", "\n  ")
        entries.append(f"  {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(entries) + "\n}"


def _is_records(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(part, dict) for part in value)


def write_lines(path: Path, kind: str, rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> dict[str, Any]:
    """Write one JSON object a line, and beside it the metadata, which is returned and has the lines' digest too.

    Both are written, or neither.
    """
    with written_together([(path, kind), (about_of(path), kind)]) as [draft, draft_about]:
        draft.write_text("".join(to_json(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        told = {**about, "digest": digest_of(draft)}
        draft_about.write_text(to_json(told, indent=2) + "\n")
    return told


def write_tensors(path: Path, kind: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write one of our safetensors files; the same content gives the same bytes (so one metadata entry, sorted)."""
    metadata = _metadata(kind, about)
    check_space(path, sum(value.nbytes for value in tensors.values()))
    with written_whole(path, kind) as draft:
        write_safetensors(draft, tensors, metadata)


def tensors_as_bytes(kind: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> bytes:
    """What `write_tensors` writes."""
    file = io.BytesIO()
    _write_into(file, tensors, _metadata(kind, about), dtype=None, dtypes={}, written=lambda pieces: None)
    return file.getvalue()


def _metadata(kind: str, about: Mapping[str, Any]) -> dict[str, str]:
    return {"seap": to_json({"kind": kind, "format": FORMAT, "about": dict(about)}, sort_keys=True)}


def write_safetensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    *,
    dtype: torch.dtype | None = None,
    dtypes: Mapping[str, torch.dtype] = MappingProxyType({}),
    written: Callable[[Sequence[Tensor]], None] = lambda pieces: None,
) -> None:
    """A safetensors file, written from where the tensors lie: `save_file` would copy all of them first.

    dtype: what floating ones become, in pieces. dtypes: what single ones do. written: called with each piece when it is
    in the file.
    https://github.com/huggingface/safetensors#format
    """
    with path.open("wb") as file:
        _write_into(file, tensors, metadata, dtype=dtype, dtypes=dtypes, written=written)


def _write_into(
    file: IO[bytes],
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    *,
    dtype: torch.dtype | None,
    dtypes: Mapping[str, torch.dtype],
    written: Callable[[Sequence[Tensor]], None],
) -> None:
    stored = {
        name: dtypes.get(name) or (dtype if dtype and value.is_floating_point() else value.dtype)
        for name, value in tensors.items()
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
    file.write(len(encoded).to_bytes(8, "little") + encoded)
    for name in names:
        for piece in tensors[name].detach().reshape(-1).split(PIECE):
            file.write(piece.to("cpu", stored[name]).contiguous().view(torch.uint8).numpy().data)
            written([piece])


def read_about(path: Path, kind: str | None = None) -> tuple[str, dict[str, Any]]:
    """The kind and the metadata of one of our files. Raises UserError for a foreign, truncated or missing one."""
    with _opened(path) as file:
        return _about(path, file.metadata(), kind)


def _about(path: Path, entries: Mapping[str, str] | None, kind: str | None) -> tuple[str, dict[str, Any]]:
    metadata = (entries or {}).get("seap")
    if metadata is None:
        raise UserError(f"{path} is a safetensors file, but none of seap's: its metadata has no `seap`")
    from seap import schema  # what checks takes a moment to import

    found, about = schema.about_of_file(path, metadata, kind, FORMAT)
    schema.check_about(path, found, about)
    return found, about


def read_tensors(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the metadata of one of our files."""
    _, about = read_about(path, kind)
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118


def outlines(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name → dtype, as `F64`, and shape of a file's tensors, without reading them."""
    with _opened(path) as file:
        parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return {name: (str(part.get_dtype()), tuple(part.get_shape())) for name, part in parts.items()}


class Opened:
    """One of our safetensors files as it is now. Another that takes its place by renaming, as ours do, isn't read, and
    the old one can be read as long as this is held, even if it is removed.
    """

    def __init__(self, path: Path) -> None:
        _check_there(path)
        self.path, self._place = path, path.resolve()
        self._seen = state_of(self._place)
        with _told(path):
            self._file = safe_open(path, framework="pt")
            self.names: tuple[str, ...] = tuple(self._file.keys())

    def about(self) -> tuple[str, dict[str, Any]]:
        """As `read_about`."""
        return _about(self.path, self._file.metadata(), None)

    def read(self, name: str) -> Tensor:
        """One tensor. Raises UserError where the file itself was written over, whose tensors may lie elsewhere now."""
        now = state_of(self._place)
        if now is not None and self._seen is not None and now != self._seen and now[0] == self._seen[0]:
            raise UserError(
                f"{self.path} was written over while it was in use; restart what uses it, and put files in place by "
                "renaming, as seap does"
            )
        with _told(self.path):
            found: Tensor = self._file.get_tensor(name)
        return found


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    _check_there(path)
    with _told(path), safe_open(path, framework="pt") as file:
        yield file


def _check_there(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"no such file: {path}")


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Raise UserError for a file that can't be read."""
    try:
        yield
    except UserError:
        raise
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError, OverflowError, AttributeError) as error:
        raise UserError(f"{path} is truncated or no safetensors file ({first_line(error)}); make it again") from error


def check_suffix(path: Path, suffix: str) -> None:
    """Refuse an output file that would be misread later."""
    if path.suffix.lower() != suffix and not path.is_dir():
        raise UserError(
            f"--out {path}: what is written is {suffix}, and read again by that; name it {path.stem}{suffix}"
        )


def is_current(path: Path, key: str, *, overwrite: bool = False) -> bool:
    """Whether a file with this key stands there already. Raises UserError for one with another key.

    overwrite: another of seap's own files may be replaced.
    """
    if not path.exists():
        return False
    _, about = read_about(path)
    if about.get("key") == key:
        return True
    if overwrite:
        return False
    raise UserError(f"{path} was made with other text, options or another model; name another --out or add --overwrite")
