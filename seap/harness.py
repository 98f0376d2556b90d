"""lm-evaluation-harness as the reference for standard tasks, on a loaded model and, where asked, on local files.

Prompts, metrics and splits are the installed harness's own: of a task that reads local files only the data set is
replaced, and its rows take upstream's column names first.
"""

import contextlib
import copy
import difflib
import functools
import importlib.util
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seap.errors import UserError, missing_extra, unknown
from seap.harness_data import LOCAL as LOCAL
from seap.hub import Values
from seap.items import Item
from seap.readers import read_rows, split_files

PURPOSE = "seap eval --harness"
SPLIT_KEYS = ("training_split", "validation_split", "test_split", "fewshot_split")
SEEDS = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
TEMPLATE_KEYS = ("doc_to_text", "doc_to_target", "doc_to_choice", "target_delimiter")

log = logging.getLogger(__name__)


def check(
    names: Sequence[str], data: Path | None = None, *, limit: int | None = None, num_fewshot: int | None = None
) -> None:
    """Raise UserError for whatever can be known to fail before a model is loaded; options as in `evaluate`.

    Without `data` that is the names, which takes the harness some seconds; with it, all files are read too.
    """
    _check_installed()
    if not names:
        raise UserError("no task of lm-evaluation-harness named; give one, such as arc_easy")
    if limit is not None and limit < 1:
        raise UserError(f"--harness-limit {limit}; at least 1 item is needed, and no limit takes all")
    if num_fewshot is not None and num_fewshot < 0:
        raise UserError(f"--num-fewshot {num_fewshot}; allowed: 0 and above, and none given takes the task's own")
    for name in names:
        if data is None:
            _check_name(name)
        else:
            _read(name, data, num_fewshot)


def _check_installed() -> None:
    for module, package in (("lm_eval", "lm-eval"), ("accelerate", "accelerate")):
        if importlib.util.find_spec(module) is None:
            raise missing_extra(package, "eval", PURPOSE)


def evaluate(
    model: Any,
    tokenizer: Any,
    names: Sequence[str],
    *,
    data: Path | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    batch_size: int = 16,
    seed: int | None = None,
) -> list[dict[str, Any]]:
    """Run tasks of lm-evaluation-harness on a loaded model, dense or pruned: one row per task, metric and filter.

    Without `data` the harness fetches its own data sets; with it, a folder with a sub-folder per task, nothing is
    fetched. `num_fewshot` and `seed` are the harness's own where None: GSM8K's are 5, the multiple-choice tasks' 0.
    The first `limit` items are taken. A row's `stderr` is None where the harness gives none, `note` says in which way
    local text differs from upstream's. The figures are those of `lm_eval --model hf` with the same dtype: in
    bfloat16 the harness also sums log-likelihoods in bfloat16. Like the harness it seeds the global generators.
    Raises UserError as `check` does, and when a data set can't be fetched.
    """
    check(names, data, limit=limit, num_fewshot=num_fewshot)
    from lm_eval import simple_evaluate  # type: ignore[import-untyped, unused-ignore]
    from lm_eval.models.huggingface import HFLM  # type: ignore[import-untyped, unused-ignore]

    names = list(dict.fromkeys(names))
    with _quiet() as truncations:
        notes, tasks = _fetched(names) if data is None else _local(names, data, num_fewshot)
        lm = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size)  # it may add a pad token
        _check_room(lm, tasks)
        seeds = {} if seed is None else dict.fromkeys(SEEDS, seed)
        with contextlib.redirect_stdout(sys.stderr):
            found = simple_evaluate(
                model=lm,
                tasks=tasks,
                task_manager=_manager(LOCAL[names[0]].home if data else None),
                limit=limit,
                num_fewshot=num_fewshot,
                log_samples=False,
                **seeds,
            )
    if truncations.count:
        log.warning("%s: prompts longer than the model's %d tokens lost their beginning", PURPOSE, lm.max_length)
    return [row for name in found["results"] for row in _rows(name, found, notes.get(name))]


def as_items(name: str, rows: Sequence[Values]) -> list[Item]:
    """Rows of a multiple-choice task as items that hold exactly what the harness scores, without examples before it.

    `question` is the context (winogrande has one per choice: `contexts`), and each choice is appended to it after a
    space. Rows have upstream's columns, or those of the local files. Raises UserError for a task of another kind.
    """
    _check_installed()
    if name not in LOCAL:
        raise unknown("harness task with local files", name, LOCAL)
    with _quiet():
        task = _task(name, {_eval_split(_config(name)): _converted(name, rows, name)}, name)
    if task.OUTPUT_TYPE != "multiple_choice":
        raise UserError(f"{name} isn't multiple choice; score it with seap.harness.evaluate")
    return [_item(task, doc) for doc in task.eval_docs]


def local_rows(name: str, data: Path) -> list[Values]:
    """The rows that the harness evaluates, with upstream's columns, from the task's folder in `data`."""
    _check_installed()
    return _read(name, data, 0).splits[_eval_split(_config(name))]


def export(names: Sequence[str], data: Path, out: Path) -> None:
    """Write task definitions for a plain `lm_eval --include_path OUT`, which read local files under upstream's names.

    A definition includes the installed harness's own, so it belongs to this machine. Raises UserError as `check` does.
    """
    check(names, data)
    import pyarrow  # type: ignore[import-untyped, unused-ignore]
    import pyarrow.parquet  # type: ignore[import-untyped, unused-ignore]

    for name in names:
        splits = _read(name, data, None, whole=True).splits
        lines = [f"include: {_entry(name).yaml_path}", f"task: {name}", "dataset_path: parquet", "dataset_name: null"]
        lines += [f"{key}: null" for key in _absent(_config(name), splits)]
        lines += ["dataset_kwargs:", "  data_files:"]
        for split, rows in splits.items():
            file = (out / name / f"{split}.parquet").absolute()
            file.parent.mkdir(parents=True, exist_ok=True)
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
            lines.append(f"    {split}: {file}")
        (out / f"{name}.yaml").write_text("\n".join(lines) + "\n")


@dataclass(frozen=True)
class _Data:
    """A task's rows by upstream's names of the splits."""

    splits: dict[str, list[Values]]
    note: str | None


def _read(name: str, data: Path, num_fewshot: int | None, *, whole: bool = False) -> _Data:
    """The splits that a run needs: what is evaluated, and where examples are asked for (or `whole`) their split."""
    if name not in LOCAL:
        error = unknown("harness task with local files", name, LOCAL)
        raise UserError(f"{error}; every other task of the harness comes from the Hub: leave --harness-data out")
    task, config = LOCAL[name], _config(name)
    folder = next((data / known for known in task.folders if (data / known).is_dir()), None)
    if folder is None:
        raise UserError(f"task {name!r}: {data} has no folder {' or '.join(task.folders)} with its Parquet files")
    parts = split_files(folder)
    evaluated = _eval_split(config)
    part = evaluated if evaluated in parts else task.spare
    if part not in parts:
        raise UserError(f"task {name!r}: {folder} has parts {', '.join(parts)}; the harness evaluates on {evaluated}")
    rows = [row.values for row in read_rows(parts[part])]
    splits = {evaluated: _converted(name, rows, folder)}
    examples = str(config.get("fewshot_split") or config.get("training_split"))
    if config.get("num_fewshot", 0) if num_fewshot is None else num_fewshot:
        if examples not in parts:
            raise UserError(
                f"task {name!r}: {folder} has no {examples} part to draw examples from; use --num-fewshot 0"
            )
        whole = True
    if whole and examples in parts:
        splits[examples] = _converted(name, [row.values for row in read_rows(parts[examples])], folder)
    return _Data(splits, task.note(rows))


def _converted(name: str, rows: Sequence[Values], where: Path | str) -> list[Values]:
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
            found, needed = ", ".join(map(str, row)), ", ".join(task.needs)
            raise UserError(f"{where}: columns {found}; the harness's {name} reads {needed}")
    return [{column: row[column] for column in task.needs} for row in converted]


@functools.cache
def _manager(home: str | None) -> Any:
    """An index of the harness's tasks: of one folder (at once), or of all (seconds)."""
    import lm_eval.tasks  # type: ignore[import-untyped, unused-ignore]

    if home is None:
        return lm_eval.tasks.TaskManager()
    folder = Path(lm_eval.tasks.__file__).parent / home
    return lm_eval.tasks.TaskManager(include_path=str(folder), include_defaults=False)


def _entry(name: str) -> Any:
    return _manager(LOCAL[name].home).task_index[name]


def _config(name: str) -> dict[str, Any]:
    return _entry(name).cfg


def _eval_split(config: Mapping[str, Any]) -> str:
    return str(config.get("test_split") or config["validation_split"])


def _absent(config: Mapping[str, Any], splits: Mapping[str, Any]) -> list[str]:
    """Keys of upstream's config that name a split which isn't here."""
    return [key for key in SPLIT_KEYS if config.get(key) not in (None, *splits)]


def _check_name(name: str) -> None:
    known = _manager(None).all_tasks
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3)
        hint = f" did you mean {' or '.join(map(repr, close))}?" if close else ""
        raise UserError(f"unknown task {name!r} of lm-evaluation-harness;{hint} all {len(known):,}: lm_eval ls tasks")


def _local(names: Sequence[str], data: Path, num_fewshot: int | None) -> tuple[dict[str, str | None], list[Any]]:
    read = {name: _read(name, data, num_fewshot) for name in names}
    notes = {name: found.note for name, found in read.items()}
    return notes, [_task(name, found.splits, data) for name, found in read.items()]


def _task(name: str, splits: Mapping[str, Sequence[Values]], where: Path | str) -> Any:
    """The harness's own task over these rows."""
    from datasets import Dataset  # type: ignore[import-untyped, unused-ignore]

    def dataset(**_: Any) -> dict[str, Any]:
        return {split: Dataset.from_list(list(rows)) for split, rows in splits.items()}

    changes = {"task": name, "custom_dataset": dataset, "dataset_path": str(where), "dataset_name": None}
    changes |= dict.fromkeys(_absent(_config(name), splits))
    # A group's member is how the harness lets a known task be loaded with changes.
    return _manager(LOCAL[name].home).load({"group": "seap", "task": [changes]})["tasks"][name]


def _fetched(names: Sequence[str]) -> tuple[dict[str, str | None], list[Any]]:
    """Tasks and groups over their data sets from the Hub, or from its cache."""
    loaded: list[Any] = []
    for name in names:
        try:
            found = _manager(None).load(name)
        except Exception as error:  # the Hub, the network and the cache each raise their own
            raise UserError(
                f"task {name!r}: couldn't fetch its data set ({type(error).__name__}: {error}); "
                f"with local files ({', '.join(LOCAL)}) give --harness-data FOLDER"
            ) from error
        loaded += [found["groups"][name]] if name in found["groups"] else list(found["tasks"].values())
    return {}, loaded


def _check_room(lm: Any, tasks: Sequence[Any]) -> None:
    generating = [task.task_name for task in tasks if getattr(task, "OUTPUT_TYPE", None) == "generate_until"]
    if generating and lm.max_length <= lm.max_gen_toks:
        raise UserError(
            f"{', '.join(generating)}: the harness generates up to {lm.max_gen_toks} tokens, "
            f"the model holds {lm.max_length} with the prompt"
        )


def _item(task: Any, doc: Values) -> Item:
    requests = task.construct_requests(doc, task.fewshot_context(doc, num_fewshot=0))
    contexts = tuple(request.args[0] for request in requests)
    choices = tuple(request.args[1].removeprefix(task.config.target_delimiter) for request in requests)
    if task.multiple_input:  # the harness has text and target of such a task the other way round
        label = int(task.doc_to_text(doc))
        return Item(text=f"{contexts[label]} {choices[label]}", contexts=contexts, choices=choices, label=label)
    label = int(task.doc_to_target(doc))
    return Item(text=f"{contexts[0]} {choices[label]}", question=contexts[0], choices=choices, label=label)


def _rows(name: str, found: Mapping[str, Any], note: str | None) -> Iterator[dict[str, Any]]:
    config = found["configs"].get(name, {})
    about = {
        "n": found["n-samples"].get(name, {}).get("effective"),
        "num_fewshot": found["n-shot"].get(name),
        "harness_version": _version(),
        "task_version": found["versions"].get(name),
        **{key: config.get(key) for key in TEMPLATE_KEYS},
        "note": note,
    }
    for key, value in found["results"][name].items():
        metric, comma, kind = key.partition(",")
        if comma and not metric.endswith("_stderr"):
            stderr = found["results"][name].get(f"{metric}_stderr,{kind}")
            filtered = {"filter": None if kind == "none" else kind}
            yield {
                "task": name,
                "metric": metric,
                **filtered,
                "value": _number(value),
                "stderr": _number(stderr),
            } | about


def _number(value: Any) -> float | None:
    """None for the harness's "N/A"."""
    return None if value is None or isinstance(value, str) else float(value)


def _version() -> str:
    import lm_eval  # type: ignore[import-untyped, unused-ignore]

    return lm_eval.__version__


class _Truncations(logging.Filter):
    """Notes when the harness says that a prompt was cut, and lets only errors through."""

    count = 0

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        self.count += "exceeds model's maximum length" in text or "Left truncation applied" in text
        return record.levelno >= logging.ERROR


@contextlib.contextmanager
def _quiet() -> Iterator[_Truncations]:
    """Keep the harness's chatter off the screen, and yield what it said about cut prompts."""
    harness, models = logging.getLogger("lm_eval"), logging.getLogger("lm_eval.models.huggingface")
    levels, truncations = (harness.level, models.level), _Truncations()
    harness.setLevel(logging.ERROR)
    models.setLevel(logging.WARNING)
    models.addFilter(truncations)
    try:
        yield truncations
    finally:
        models.removeFilter(truncations)
        harness.setLevel(levels[0])
        models.setLevel(levels[1])
