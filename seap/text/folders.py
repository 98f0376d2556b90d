"""Which files of a folder belong to a split: by their names, as clones from the Hub and saved data sets have them."""

import json
import os.path
import re
from collections.abc import Iterable
from pathlib import Path

from seap.disk.kinds import BESIDE
from seap.errors import UserError
from seap.text.decoding import PACKED
from seap.text.readers import READERS, kind_of, types

SPLIT_WORDS = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}


def split_files(folder: Path) -> dict[str, list[Path]]:
    """The files of each split of a folder, shards in sorted order; a split that isn't there has no entry.

    A file belongs to a split by the one split word among the words of its name: `train.csv`,
    `train-00000-of-00002.parquet`, `plain_text_train_0000.parquet`. Where a file is named by the word alone,
    the others are left out. Splits may be folders (`train/0.parquet`); where there are none, they are looked for in
    `data`, or in the one folder that has some, as in a clone from the Hub. What `save_to_disk` of datasets writes is
    read too.
    """
    saved = _saved(folder)
    if saved:
        return saved
    there = _listing(folder)
    files = [path for path in there if os.path.isfile(path) and kind_of(path) in READERS]
    found = {split: _files_of(split, files) or _files_in(split, there) for split in SPLIT_WORDS}
    found = {split: paths for split, paths in found.items() if paths}
    inner = {} if found else _inner(there)
    if len(inner) > 1 and "data" not in inner:
        raise UserError(f"{folder}: {', '.join(inner)} each have files of a split; give one of these folders")
    found = found or inner.get("data", next(iter(inner.values()), {}))
    if not found:
        listed = ", ".join(path.name for path in there[:20]) or "nothing"
        raise UserError(
            f"{folder}: no file of a split; the folder has: {listed}; "
            f"accepted: train.* with or without test.* (or validation.*, dev.*), where * is one of {types()}"
        )
    return found


def _listing(folder: Path) -> list[Path]:
    try:
        found = [path for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError as error:
        raise UserError(f"{folder}: can't be read: {error.strerror or error}") from error
    return sorted(path for path in found if not path.name.endswith(BESIDE))


def _files_in(split: str, there: Iterable[Path]) -> list[Path]:
    """Those of a folder that is named by the split."""
    folders = [path for path in there if path.is_dir() and path.name.lower() in SPLIT_WORDS[split]]
    return [path for folder in folders for path in _listing(folder) if path.is_file() and kind_of(path) in READERS]


def _inner(there: Iterable[Path]) -> dict[str, dict[str, list[Path]]]:
    """The splits of each folder in a folder."""
    found = {}
    for folder in there:
        if folder.is_dir():
            files = [path for path in _listing(folder) if path.is_file() and kind_of(path) in READERS]
            splits = _saved(folder) or {split: _files_of(split, files) for split in SPLIT_WORDS}
            if any(splits.values()):
                found[folder.name] = {split: paths for split, paths in splits.items() if paths}
    return found


def _saved(folder: Path) -> dict[str, list[Path]]:
    """The files of a data set that `save_to_disk` of datasets wrote, or of several by split."""
    if (folder / "state.json").is_file():
        return {"train": _arrow_files(folder)}
    if not (folder / "dataset_dict.json").is_file():
        return {}
    named = {path.name: path for path in _listing(folder) if (path / "state.json").is_file()}
    words = {word: split for split, words in SPLIT_WORDS.items() for word in words}
    return {words[name]: _arrow_files(path) for name, path in named.items() if name in words}


def _arrow_files(folder: Path) -> list[Path]:
    try:
        listed = json.loads((folder / "state.json").read_text())["_data_files"]
        return [folder / Path(entry["filename"]).name for entry in listed]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / 'state.json'} is damaged ({error}); save the data set again") from error


def _files_of(split: str, files: list[Path]) -> list[Path]:
    words = SPLIT_WORDS[split]
    found = [path for path in files if _stem(path) in words]
    found = found or [path for path in files if _split_of(path) == split]
    if len({(_without_numbers(path), kind_of(path)) for path in found}) > 1:
        raise UserError(
            f"{found[0].parent}: {', '.join(path.name for path in found)} are all named {split}, "
            "but not as shards of one data set; keep one in the folder"
        )
    return found


def _split_of(path: Path) -> str | None:
    tokens = set(_tokens(path))
    named = [split for split, words in SPLIT_WORDS.items() if tokens.intersection(words)]
    return named[0] if len(named) == 1 else None


def _tokens(path: Path) -> list[str]:
    return re.split(r"[^a-z0-9]+", _stem(path))


def _without_numbers(path: Path) -> tuple[str, ...]:
    return tuple(token for token in _tokens(path) if not any(c.isdigit() for c in token))


def _stem(path: Path) -> str:
    return Path(path.stem if path.suffix.lower() in PACKED else path.name).stem.lower()
