"""A task is a name and a list of examples: from a file, a folder, our built-in tasks or the Hugging Face Hub.

Which columns a row may have is said in `seap.items`.
"""

import os.path
import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from seap.disk.place import at_home
from seap.errors import UserError, unknown
from seap.text import builtin, hub
from seap.text.columns import listed
from seap.text.folders import split_files
from seap.text.items import Item, to_items
from seap.text.readers import READERS, Row, kind_of, read_rows

SPLITS = ("train", "test")
KNOWN = (*builtin.TASKS, *hub.TASKS)
NUM_BUILTIN = {"train": 1000, "test": 200}


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """Which task: `path` is a file or folder, `dataset` owner/name or owner/name:config on the Hub; neither for KNOWN.

    columns: field → the column that it is read from. Raises UserError for an unknown name.
    """

    name: str
    path: Path | None = None
    dataset: str | None = None
    columns: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", self.name):
            raise UserError(
                f"task name {self.name!r}; allowed, as files are named after it: letters, digits, '_', '.', "
                "'-', the first one no '.' or '-'; for data of your own give NAME=PATH"
            )
        if self.dataset is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?", self.dataset):
            raise UserError(f"task {self.name!r}: hub:{self.dataset}; give hub:owner/name or hub:owner/name:config")
        if self.path is None and self.dataset is None and self.name not in KNOWN:
            error = unknown("task", self.name, KNOWN)
            raise UserError(f"{error}; for data of your own give {self.name}=PATH")
        if self.path is not None and not (os.path.isfile(self.path) or os.path.isdir(self.path)):
            state = "is neither a file nor a folder" if os.path.lexists(self.path) else "doesn't exist"
            raise UserError(f"task {self.name!r}: {self.path.absolute()} {state}; give a file or a folder")


def parse_spec(spec: str) -> TaskSpec:
    """`NAME` (one of KNOWN), `NAME=PATH` or `NAME=hub:owner/name[:config]`, and after these `[FIELD=COLUMN,…]`.

    Raises UserError for a bad or unknown name, or a missing path.
    """
    name, equals, place = spec.partition("=")
    if equals and not place:
        raise UserError(f"task {spec!r}: nothing after '='; give NAME=PATH, or NAME alone for a known task")
    mapped = re.fullmatch(r"(.+)\[([^\[\]]+=[^\[\]]+)\]", place)
    columns: tuple[tuple[str, str], ...] = ()
    if mapped and not at_home(place).exists():
        place, columns = mapped[1], parse_columns(mapped[2].split(","))
    if place.startswith("hub:"):
        return TaskSpec(name=name, dataset=place.removeprefix("hub:"), columns=columns)
    return TaskSpec(name=name, path=at_home(place) if place else None, columns=columns)


def apart(specs: Iterable[TaskSpec]) -> list[TaskSpec]:
    """The same. Raises UserError for two tasks of one name."""
    found = list(specs)
    names = [spec.name for spec in found]
    if len(set(names)) < len(names):
        raise UserError(f"two tasks have one name: {', '.join(names)}; name them apart, as NAME=PATH")
    return found


def parse_columns(given: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """`question=goal` → field and column. Raises UserError for anything else."""
    pairs = [tuple(part.strip() for part in one.partition("=")[::2]) for one in given]
    if bad := [one for one, pair in zip(given, pairs, strict=True) if not all(pair)]:
        raise UserError(f"--columns {bad[0]}: must be FIELD=COLUMN, such as question=goal")
    return tuple((field, column) for field, column in pairs)


def with_columns(tasks: Sequence[str], columns: Sequence[str]) -> tuple[str, ...]:
    """Tasks of `--task` with what `--columns` says of their data. Raises UserError for tasks that have their own."""
    if not columns:
        return tuple(tasks)
    parsed = parse_columns([one for part in columns for one in part.split(",")])
    if named := [task for task in tasks if "=" not in task]:
        raise UserError(f"--columns says what the columns of your data mean; {named[0]} is a task that has its own")
    told = ",".join("=".join(pair) for pair in parsed)
    return tuple(f"{task}[{told}]" for task in tasks)


def specs_of(told: str) -> tuple[str, ...]:
    """`A,B=PATH[question=goal,answer=sol]` → its tasks: a comma between brackets parts columns."""
    return tuple(re.split(r",(?![^\[\]]*\])", told))


def spec_source(spec: TaskSpec | str) -> str:
    """Where the items come from, for provenance: `builtin`, `hub:openai/gsm8k@main` or an absolute path."""
    spec = parse_spec(spec) if isinstance(spec, str) else spec
    told = f"[{','.join('='.join(pair) for pair in spec.columns)}]" if spec.columns else ""
    if spec.dataset is not None:
        return f"hub:{spec.dataset}{told}"
    if spec.path is not None:
        return f"{spec.path.absolute()}{told}"
    return "builtin" if spec.name in builtin.TASKS else hub.TASKS[spec.name].source


def load_items(
    spec: TaskSpec | str, split: str, *, seed: int = 0, test_fraction: float = 0.2, unanswered: bool = False
) -> list[Item]:
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
    if spec.path is None and spec.dataset is None:
        return _some(to_items(hub.fetch(spec.name, split), spec.name), spec_source(spec))
    parts = _parts_of(spec)
    if set(parts) <= {"train"}:
        if (own := _own_part(spec, parts["train"], split)) is not None:
            return own
        items = _items_of(spec, parts["train"], unanswered)
        return _split(_some(items, _where(spec)), _where(spec), split, seed=seed, test_fraction=test_fraction)
    for part in _parts_for(split, spec, list(parts)):
        items = _items_of(spec, parts[part], unanswered)
        if items:
            return items
    return _some([], _where(spec))


def _own_part(spec: TaskSpec, read: Callable[[], list[Row]], split: str) -> list[Item] | None:
    """The items of a known data set's own part, where one file holds all parts; None for any other file."""
    task = hub.TASKS.get(spec.name)
    if task is None or task.part is None:
        return None
    rows = read()
    if not rows or any(task.needs.keys() - row.values.keys() for row in rows):
        return None
    if split == "train" and not task.train:
        raise hub.no_train_part(spec.name)
    chosen = []
    for row in rows:
        try:
            if task.part(row.values) == split:
                chosen.append(row)
        except UserError as error:
            raise UserError(f"{row.where}: {error}") from error
    return _some(to_items(chosen, spec.name), _where(spec))


def _where(spec: TaskSpec) -> Path | str:
    return spec.path if spec.path is not None else spec_source(spec)


def _parts_of(spec: TaskSpec) -> dict[str, Callable[[], list[Row]]]:
    """What reads each part of a file, a folder or a data set on the Hub."""
    if spec.dataset is not None:
        found = hub.fetch_any(spec.dataset)
        return {part: partial(hub.rows_of, spec.dataset, part, rows) for part, rows in found.items()}
    assert spec.path is not None
    files = {"train": [spec.path]} if os.path.isfile(spec.path) else split_files(spec.path)
    return {part: partial(read_rows, paths) for part, paths in files.items()}


def _items_of(spec: TaskSpec, read: Callable[[], list[Row]], unanswered: bool) -> list[Item]:
    rows = [renamed(row, spec.columns) for row in read()]
    return to_items(rows, spec.name, unanswered=unanswered)


def load_prompts(given: str) -> tuple[list[Item], str]:
    """The training part of a file, folder, NAME or NAME=PATH, whose rows need no answers; and where it is from.

    The test part stays unread, since what is written after its prompts may be calibrated on.
    """
    path = at_home(given)
    spec = TaskSpec(name="prompts", path=path) if os.path.exists(path) else parse_spec(given)
    return load_items(spec, "train", unanswered=True), spec_source(spec)


def renamed(row: Row, columns: Sequence[tuple[str, str]]) -> Row:
    """A row whose columns have the names of the fields that they are; `meta.question` is an entry of an object."""
    if not columns:
        return row
    values, taken = dict(row.values), {}
    for field, column in columns:
        found: Any = values
        for part in [column] if column in values else column.split("."):
            if not isinstance(found, dict) or part not in found:
                there = listed(row.values)
                raise UserError(f"{row.where}: --columns {field}={column}: no such column; the row has {there}")
            found = found[part]
        taken[field] = found
    gone = {column for _, column in columns}
    return replace(row, values={name: value for name, value in values.items() if name not in gone} | taken)


def load_examples(given: str) -> tuple[list[Item], str]:
    """All items of a file, or those of the training part of a folder, NAME or NAME=PATH; and where they are from."""
    path = at_home(given)
    if os.path.isfile(path):
        return _some(to_items(read_rows([path]), ""), path), str(path.absolute())
    if kind_of(path) in READERS and "=" not in given:
        raise UserError(f"no such file: {given}")
    spec = TaskSpec(name="examples", path=path) if os.path.isdir(path) else parse_spec(given)
    return load_items(spec, "train"), spec_source(spec)


def _parts_for(split: str, spec: TaskSpec, parts: Sequence[str]) -> list[str]:
    """The parts of a folder that may serve as this split, best first."""
    if "train" not in parts and len(parts) < 2:
        raise UserError(f"{_where(spec)}: only a {parts[0]} part; add train.*, or give the file, to split it")
    train = "train" if "train" in parts else "validation"
    if split == "train":
        return [train]
    first = hub.TASKS[spec.name].test if spec.name in hub.TASKS else "test"
    return sorted((part for part in parts if part != train), key=lambda part: part != first)


def _split(items: list[Item], path: Path | str, split: str, *, seed: int, test_fraction: float) -> list[Item]:
    """Items that begin alike stay together: a log holds a conversation again with every turn that is added to it."""
    texts = list(dict.fromkeys(item.opening for item in items))
    random.Random(seed).shuffle(texts)
    num_test = min(max(1, round(len(texts) * test_fraction)), len(texts) - 1)
    if split == "test" and not num_test:
        raise UserError(f"{path}: only one text, kept for train; add rows, or give a folder with test.*")
    order = {text: i for i, text in enumerate(texts)}
    shuffled = sorted(items, key=lambda item: order[item.opening])
    return [item for item in shuffled if (order[item.opening] < num_test) == (split == "test")]


def _some(items: list[Item], source: Path | str) -> list[Item]:
    if not items:
        raise UserError(f"{source}: every row is blank or without a label; at least one must have text")
    return items
