"""A task is a name and a list of examples: from a file, a folder, our built-in tasks or the Hugging Face Hub.

Which columns a row may have is said in `seap.items`.
"""

import os.path
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from seap.errors import UserError, unknown
from seap.text import builtin, hub
from seap.text.items import Item, to_items
from seap.text.readers import READERS, read_rows, split_files

SPLITS = ("train", "test")
KNOWN = (*builtin.TASKS, *hub.TASKS)
NUM_BUILTIN = {"train": 1000, "test": 200}


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """Which task: `path` is a file or folder, None for a name in KNOWN. Raises UserError for others."""

    name: str
    path: Path | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", self.name):
            raise UserError(
                f"task name {self.name!r}; allowed, as files are named after it: letters, digits, '_', '.', "
                "'-', the first one no '.' or '-'; for data of your own give NAME=PATH"
            )
        if self.path is None and self.name not in KNOWN:
            error = unknown("task", self.name, KNOWN)
            raise UserError(f"{error}; for data of your own give {self.name}=PATH")
        if self.path is not None and not (os.path.isfile(self.path) or os.path.isdir(self.path)):
            state = "is neither a file nor a folder" if os.path.lexists(self.path) else "doesn't exist"
            raise UserError(f"task {self.name!r}: {self.path.absolute()} {state}; give a file or a folder")


def parse_spec(spec: str) -> TaskSpec:
    """`NAME` (one of KNOWN) or `NAME=PATH`. Raises UserError for a bad or unknown name, or a missing path."""
    name, equals, path = spec.partition("=")
    if equals and not path:
        raise UserError(f"task {spec!r}: nothing after '='; give NAME=PATH, or NAME alone for a known task")
    return TaskSpec(name=name, path=Path(path).expanduser() if path else None)


def spec_source(spec: TaskSpec | str) -> str:
    """Where the items come from, for provenance: `builtin`, `hub:openai/gsm8k@main` or an absolute path."""
    spec = parse_spec(spec) if isinstance(spec, str) else spec
    if spec.path is not None:
        return str(spec.path.absolute())
    return "builtin" if spec.name in builtin.TASKS else hub.TASKS[spec.name].source


def load_items(spec: TaskSpec | str, split: str, *, seed: int = 0, test_fraction: float = 0.2) -> list[Item]:
    """The items of one split ("train" or "test").

    A file, or a folder with a train part only, is shuffled and split by `seed`: no text is in both splits,
    however often it occurs. Other folders and the Hub keep their parts and order; a test part without labels
    gives way to the validation part, and a folder of validation and test trains on validation. Rows that are
    blank or have no label (null, "" or -1) are dropped. Raises UserError for what can't be read as a task.
    """
    spec = parse_spec(spec) if isinstance(spec, str) else spec
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    if not 0 < test_fraction < 1:
        raise UserError(f"test_fraction {test_fraction}; allowed: above 0 and below 1")
    if spec.path is None and spec.name in builtin.TASKS:
        drawn = builtin.items(spec.name, split, NUM_BUILTIN[split], seed=seed)
        return [Item(text=item.text, prompt=item.prompt, answer=item.answer) for item in drawn]
    if spec.path is None:
        return _some(to_items(hub.fetch(spec.name, split), spec.name), spec_source(spec))
    parts = {} if os.path.isfile(spec.path) else split_files(spec.path)
    if set(parts) <= {"train"}:
        items = to_items(read_rows(parts.get("train", [spec.path])), spec.name)
        return _split(_some(items, spec.path), spec.path, split, seed=seed, test_fraction=test_fraction)
    for part in _parts_for(split, spec, list(parts)):
        items = to_items(read_rows(parts[part]), spec.name)
        if items:
            return items
    return _some([], spec.path)


def load_examples(given: str) -> tuple[list[Item], str]:
    """All items of a file, or those of the training part of a folder, NAME or NAME=PATH; and where they are from."""
    path = Path(given).expanduser()
    if os.path.isfile(path):
        return _some(to_items(read_rows([path]), ""), path), str(path.absolute())
    if path.suffix.lower() in READERS and "=" not in given:
        raise UserError(f"no such file: {given}")
    spec = TaskSpec(name="examples", path=path) if os.path.isdir(path) else parse_spec(given)
    return load_items(spec, "train"), spec_source(spec)


def _parts_for(split: str, spec: TaskSpec, parts: Sequence[str]) -> list[str]:
    """The parts of a folder that may serve as this split, best first."""
    if "train" not in parts and len(parts) < 2:
        raise UserError(f"{spec.path}: only a {parts[0]} part; add train.*, or give the file, to split it")
    train = "train" if "train" in parts else "validation"
    if split == "train":
        return [train]
    first = hub.TASKS[spec.name].test if spec.name in hub.TASKS else "test"
    return sorted((part for part in parts if part != train), key=lambda part: part != first)


def _split(items: list[Item], path: Path, split: str, *, seed: int, test_fraction: float) -> list[Item]:
    texts = list(dict.fromkeys(item.text for item in items))
    random.Random(seed).shuffle(texts)
    num_test = min(max(1, round(len(texts) * test_fraction)), len(texts) - 1)
    if split == "test" and not num_test:
        raise UserError(f"{path}: only one text, kept for train; add rows, or give a folder with test.*")
    order = {text: i for i, text in enumerate(texts)}
    shuffled = sorted(items, key=lambda item: order[item.text])
    return [item for item in shuffled if (order[item.text] < num_test) == (split == "test")]


def _some(items: list[Item], source: Path | str) -> list[Item]:
    if not items:
        raise UserError(f"{source}: every row is blank or without a label; at least one must have text")
    return items
