"""The tasks of lm-evaluation-harness: by name, over their data sets from the Hub or over local files.

Prompts, metrics and splits are the installed harness's own: of a task that reads local files only the data set is
replaced, and its rows take upstream's column names first.
"""

import difflib
import functools
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seap.errors import UserError, unknown
from seap.evaluation.harness_data import LOCAL
from seap.text.columns import listed
from seap.text.folders import split_files
from seap.text.hub import Values
from seap.text.readers import read_rows

SPLIT_KEYS = ("training_split", "validation_split", "test_split", "fewshot_split")


@dataclass(frozen=True)
class _Data:
    """A task's rows by upstream's names of the splits."""

    splits: dict[str, list[Values]]
    note: str | None


def read_local(name: str, data: Path, num_fewshot: int | None, *, whole: bool = False) -> _Data:
    """The splits that a run needs: what is evaluated, and where examples are asked for (or `whole`) their split."""
    if name not in LOCAL:
        error = unknown("harness task with local files", name, LOCAL)
        raise UserError(f"{error}; every other task of the harness comes from the Hub: leave --harness-data out")
    task, config = LOCAL[name], config_of(name)
    check_needs(name, config)
    folder = next((data / known for known in task.folders if (data / known).is_dir()), None)
    if folder is None:
        raise UserError(f"task {name!r}: {data} has no folder {' or '.join(task.folders)} with its Parquet files")
    parts = split_files(folder)
    evaluated = eval_split(config)
    part = evaluated if evaluated in parts else task.spare
    if part not in parts:
        raise UserError(f"task {name!r}: {folder} has parts {', '.join(parts)}; the harness evaluates on {evaluated}")
    rows = [row.values for row in read_rows(parts[part])]
    splits = {evaluated: converted(name, rows, folder)}
    examples = str(config.get("fewshot_split") or config.get("training_split"))
    if config.get("num_fewshot", 0) if num_fewshot is None else num_fewshot:
        if examples not in parts:
            raise UserError(
                f"task {name!r}: {folder} has no {examples} part to draw examples from; use --num-fewshot 0"
            )
        whole = True
    if whole and examples in parts:
        splits[examples] = converted(name, [row.values for row in read_rows(parts[examples])], folder)
    return _Data(splits, task.note(rows))


def converted(name: str, rows: Sequence[Values], where: Path | str) -> list[Values]:
    """Rows with upstream's columns and no others, so that every row of a table has the same."""
    task = LOCAL[name]
    if not rows:
        raise UserError(f"{where}: no rows")
    try:
        converted = task.convert(rows)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    for row in converted:
        if any(column not in row for column in task.needs):
            found, needed = listed(row), ", ".join(task.needs)
            raise UserError(f"{where}: columns {found}; the harness's {name} reads {needed}")
    return [{column: row[column] for column in task.needs} for row in converted]


@functools.cache
def manager(home: str | None) -> Any:
    """An index of the harness's tasks: of one folder (at once), or of all (seconds)."""
    import lm_eval.tasks  # type: ignore[import-untyped, unused-ignore]

    if home is None:
        return lm_eval.tasks.TaskManager()
    folder = Path(lm_eval.tasks.__file__).parent / home
    return lm_eval.tasks.TaskManager(include_path=str(folder), include_defaults=False)


def entry(name: str) -> Any:
    return manager(LOCAL[name].home).task_index[name]


def config_of(name: str) -> dict[str, Any]:
    return entry(name).cfg


def eval_split(config: Mapping[str, Any]) -> str:
    return str(config.get("test_split") or config["validation_split"])


def absent_splits(config: Mapping[str, Any], splits: Mapping[str, Any]) -> list[str]:
    """Keys of upstream's config that name a split which isn't here."""
    return [key for key in SPLIT_KEYS if config.get(key) not in (None, *splits)]


def check_name(name: str) -> None:
    known = manager(None).all_tasks
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3)
        hint = f" did you mean {' or '.join(map(repr, close))}?" if close else ""
        raise UserError(f"unknown task {name!r} of lm-evaluation-harness;{hint} all {len(known):,}: lm_eval ls tasks")
    check_needs(name, manager(None).task_index[name].cfg or {})


def check_needs(name: str, config: Mapping[str, Any]) -> None:
    """Refuse a task that would run generated code in this process, or whose own code lacks a package or data."""
    if config.get("unsafe_code"):
        raise UserError(
            f"task {name!r} runs what the model writes in the harness's own process; humaneval and mbpp are run apart: "
            "seap eval MODEL --task humaneval=FILE --run-generated-code"
        )
    task = LOCAL.get(name)
    for package in task.packages if task else ():
        if importlib.util.find_spec(package) is None:
            raise UserError(f'task {name!r} needs {package}, which is not installed: pip install "lm-eval[{name}]"')
    if task and task.nltk_data:
        import nltk  # type: ignore[import-untyped, unused-ignore]

        try:
            nltk.data.find(task.nltk_data)
        except LookupError as error:
            resource = task.nltk_data.rpartition("/")[2]
            raise UserError(
                f"task {name!r} reads nltk's {resource}, which isn't here: python -m nltk.downloader {resource}"
            ) from error


def local_tasks(names: Sequence[str], data: Path, num_fewshot: int | None) -> tuple[dict[str, str | None], list[Any]]:
    read = {name: read_local(name, data, num_fewshot) for name in names}
    notes = {name: found.note for name, found in read.items()}
    return notes, [task_over(name, found.splits, data) for name, found in read.items()]


def task_over(name: str, splits: Mapping[str, Sequence[Values]], where: Path | str) -> Any:
    """The harness's own task over these rows."""
    from datasets import Dataset  # type: ignore[import-untyped, unused-ignore]

    def dataset(**_: Any) -> dict[str, Any]:
        return {split: Dataset.from_list(list(rows)) for split, rows in splits.items()}

    changes = {"task": name, "custom_dataset": dataset, "dataset_path": str(where), "dataset_name": None}
    changes |= dict.fromkeys(absent_splits(config_of(name), splits))
    # A group's member is how the harness lets a known task be loaded with changes.
    return manager(LOCAL[name].home).load({"group": "seap", "task": [changes]})["tasks"][name]


def fetched_tasks(names: Sequence[str]) -> tuple[dict[str, str | None], list[Any]]:
    """Tasks and groups over their data sets from the Hub, or from its cache."""
    loaded: list[Any] = []
    for name in names:
        try:
            found = manager(None).load(name)
        except ImportError as error:
            raise UserError(
                f"task {name!r} needs {error.name or error}, which is not installed: pip install it"
            ) from error
        except Exception as error:  # the Hub, the network and the cache each raise their own
            raise UserError(
                f"task {name!r}: couldn't fetch its data set ({type(error).__name__}: {error}); "
                f"with local files ({', '.join(LOCAL)}) give --harness-data FOLDER"
            ) from error
        loaded += [found["groups"][name]] if name in found["groups"] else list(found["tasks"].values())
    return {}, loaded
