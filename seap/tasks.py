"""A task is a name and a list of examples: from a file, a folder, our built-in tasks or the Hugging Face Hub.

Columns that a row may have, the first that fits:

    question, choices, answer   multiple choice; text = question + " " + gold choice
    prompt, answer              text = prompt + answer, with a space between where there is no whitespace
    question, answer            the same with prompt = "Question: {question}\\nAnswer:"
    text                        alone, or beside one of the above: then it replaces the text made there

Other columns are ignored. Under the name of a data set in `seap.hub` its upstream columns are read too.
"""

import json
import logging
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from seap import builtin, hub
from seap.errors import UserError, unknown
from seap.readers import READERS, Row, read_rows, split_files

SPLITS = ("train", "test")
KNOWN = (*builtin.TASKS, *hub.TASKS)
NUM_BUILTIN = {"train": 1000, "test": 200}
SHAPES = ("question + choices + answer", "prompt + answer (or question + answer)", "text")

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Item:
    """One example of a task.

    `answer` carries the whitespace that joins it to `prompt`: the model is to go on with `answer` right after
    `prompt`; compare answers after strip().
    """

    text: str
    """What calibration sees: prompt and gold answer, or the text."""
    prompt: str | None = None
    """What generation is given."""
    answer: str | None = None
    """Gold answer of generation."""
    question: str | None = None
    """Multiple choice: what every choice is appended to, after a space."""
    choices: tuple[str, ...] = ()
    contexts: tuple[str, ...] = ()
    """Multiple choice the other way round (WinoGrande): a context for each choice, all choices the same."""
    label: int | None = None
    """Index of the gold choice."""


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
        if self.path is not None and not self.path.exists():
            where = self.path.absolute()
            raise UserError(f"task {self.name!r}: {where} doesn't exist; give a file or a folder")


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
        return _some(_items(hub.fetch(spec.name, split), spec.name), spec_source(spec))
    parts = {} if spec.path.is_file() else split_files(spec.path)
    if set(parts) <= {"train"}:
        items = _items(read_rows(parts.get("train", [spec.path])), spec.name)
        return _split(_some(items, spec.path), spec.path, split, seed=seed, test_fraction=test_fraction)
    for part in _parts_for(split, spec, list(parts)):
        items = _items(read_rows(parts[part]), spec.name)
        if items:
            return items
    return _some([], spec.path)


def load_examples(given: str) -> tuple[list[Item], str]:
    """All items of a file, or those of the training part of a folder, NAME or NAME=PATH; and where they are from."""
    path = Path(given).expanduser()
    if path.is_file():
        return _some(_items(read_rows([path]), ""), path), str(path.absolute())
    if path.suffix.lower() in READERS and "=" not in given:
        raise UserError(f"no such file: {given}")
    spec = TaskSpec(name="examples", path=path) if path.is_dir() else parse_spec(given)
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


def _items(rows: Iterable[Row], name: str) -> list[Item]:
    """Rows as items, without the blank and the unlabelled ones; an error names the row."""
    rows = list(rows)
    task = hub.TASKS.get(name)
    if task and task.regroup and all(_is_upstream(row, task) for row in rows):
        rows = task.regroup(rows)
    items = []
    for row in rows:
        try:
            item = _upstream_item(row.values, task) if task and _is_upstream(row, task) else _item(row.values)
        except UserError as error:
            raise UserError(f"{row.where}: {error}") from error
        if item is not None:
            items.append(item)
    dropped = len(rows) - len(items)
    if dropped:
        log.warning("task %s: dropped %d of %d rows: blank, or without a label", name, dropped, len(rows))
    return items


def _is_upstream(row: Row, task: hub.HubTask) -> bool:
    return task.needs.keys() <= row.values.keys()


def _upstream_item(values: dict[str, Any], task: hub.HubTask) -> Item | None:
    for column, types in task.needs.items():
        value = values[column]
        if _missing(value):
            return None
        if not isinstance(value, types):
            allowed = " or ".join(kind.__name__ for kind in types)
            raise UserError(f"column {column!r} is {type(value).__name__}; allowed: {allowed}")
    item = _item(task.columns(values))
    if item is None or task.corpus is None:
        return item
    gold = item.choices[item.label] if item.label is not None else item.answer or ""
    return replace(item, text=task.corpus(values, gold))


def _item(values: dict[str, Any]) -> Item | None:
    """The item of a row in one of the accepted shapes; None where a column of its shape is blank."""
    columns = values.keys()
    if {"question", "choices", "answer"} <= columns:
        item = _choice_item(values)
    elif {"prompt", "answer"} <= columns:
        item = _prompt_item(values["prompt"], values["answer"])
    elif {"question", "answer"} <= columns:
        item = _prompt_item(values["question"], values["answer"], template="Question: {}\nAnswer:")
    elif "text" in columns:
        text = values["text"]
        return None if _missing(text) else Item(text=_str("text", text))
    else:
        raise _wrong_columns(columns)
    text = values.get("text")
    return item if item is None or _missing(text) else replace(item, text=_str("text", text))


def _prompt_item(prompt: Any, answer: Any, *, template: str = "{}") -> Item | None:
    if _missing(prompt) or _missing(answer):
        return None
    prompt, answer = template.format(_str("prompt", prompt)), _str("answer", answer)
    if not prompt[-1].isspace() and not answer[0].isspace():
        answer = f" {answer}"
    return Item(text=prompt + answer, prompt=prompt, answer=answer)


def _choice_item(values: dict[str, Any]) -> Item | None:
    if any(_missing(values[column]) for column in ("question", "choices", "answer")):
        return None
    question = _str("question", values["question"])
    choices, labels = _choices(values["choices"])
    label = _gold(values["answer"], choices, labels)
    if label is None:
        return None
    return Item(text=f"{question} {choices[label]}", question=question, choices=choices, label=label)


def _choices(value: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Texts and labels (or none) of `choices`: a list, {"text": [...], "label": [...]}, or either as JSON."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise UserError(f'choices {value!r:.60}: not JSON; allowed: ["first", "second"]') from error
    texts, labels = (value.get("text"), value.get("label") or []) if isinstance(value, dict) else (value, [])
    if not isinstance(texts, list) or not isinstance(labels, list):
        raise UserError(f'choices {value!r:.60}; allowed: [string, …] or {{"text": […], "label": […]}}')
    if len(texts) < 2:
        raise UserError(f"{len(texts)} choices; at least 2 are needed")
    if labels and len(labels) != len(texts):
        raise UserError(f"{len(labels)} labels for {len(texts)} choices")
    for number, text in enumerate(texts, start=1):
        if _missing(_str(f"choice {number}", text)):
            raise UserError(f"choice {number} is blank")
    return tuple(texts), tuple(str(label).strip() for label in labels)


def _gold(answer: Any, choices: Sequence[str], labels: Sequence[str]) -> int | None:
    """The index of the gold choice; None for -1, the Hub's mark of a row without a label.

    A number is an index from 0. A string is, the first that fits: one of the labels, where there are labels;
    the text of a choice; digits, an index from 0; a letter, "A" the first. Labels come first because ARC has
    a row whose choice A is the text "C".
    """
    index: int | None = None
    if isinstance(answer, float) and answer.is_integer():
        answer = int(answer)
    if isinstance(answer, int) and not isinstance(answer, bool):
        index = answer
    elif isinstance(answer, str):
        index = _gold_from_text(answer.strip(), [choice.strip() for choice in choices], labels)
    if index == -1:
        return None
    if index is None or not 0 <= index < len(choices):
        allowed = [f"an index 0 to {len(choices) - 1}", f"a letter A to {chr(64 + min(len(choices), 26))}"]
        allowed += [f"a label ({', '.join(labels)})"] if labels else []
        allowed.append("the text of a choice")
        raise UserError(f"answer {answer!r} is none of the choices; allowed: {', '.join(allowed)}")
    return index


def _gold_from_text(answer: str, choices: Sequence[str], labels: Sequence[str]) -> int | None:
    if answer in labels:
        return labels.index(answer)
    if answer in choices:
        return choices.index(answer)
    if re.fullmatch(r"-?[0-9]+", answer):
        # Labels 1 to 4 say that digits count from 1: a digit that is no label is a mistake, not an index.
        return None if any(label.isdigit() for label in labels) and answer != "-1" else int(answer)
    if re.fullmatch(r"[A-Za-z]", answer):
        return ord(answer.upper()) - ord("A")
    return None


def _wrong_columns(columns: Iterable[str]) -> UserError:
    known = [name for name, task in hub.TASKS.items() if task.needs.keys() <= set(columns)]
    hint = f"; these are the columns of {' or '.join(known)}: give {known[0]}=PATH" if known else ""
    found = ", ".join(map(str, columns)) or "none"
    return UserError(f"wrong columns: {found}; accepted: {'; '.join(SHAPES)}{hint}")


def _missing(value: Any) -> bool:
    """None, NaN and blank strings."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def _str(name: str, value: Any) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and name == "answer":
        return str(value)
    if not isinstance(value, str):
        raise UserError(f"{name} is {value!r:.60}, a {type(value).__name__}; it must be a string")
    return value
