"""lm-evaluation-harness as the reference for standard tasks: runs them on a loaded model, and reads its figures."""

import contextlib
import copy
import importlib.util
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from seap.disk.whole import written_whole
from seap.errors import UserError, missing_extra, unknown
from seap.evaluation.harness_data import LOCAL
from seap.evaluation.harness_tasks import (
    absent_splits,
    check_name,
    config_of,
    converted,
    entry,
    eval_split,
    fetched_tasks,
    local_tasks,
    manager,
    read_local,
    task_over,
)
from seap.models.continuing import continued, ends_of
from seap.text.hub import Values
from seap.text.items import Item
from seap.text.templates import render

PURPOSE = "seap eval --harness"
SEEDS = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
GREEDY = frozenset({"attention_mask", "do_sample", "temperature"})  # options without which answers are drawn otherwise
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
            check_name(name)
        else:
            read_local(name, data, num_fewshot)


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
    chat: bool = False,
) -> list[dict[str, Any]]:
    """Run tasks of lm-evaluation-harness on a loaded model, dense or pruned: one row per task, metric and filter.

    Without `data` the harness fetches its own data sets; with it, a folder with a sub-folder per task, nothing is
    fetched. `num_fewshot` and `seed` are the harness's own where None: GSM8K's are 5, the multiple-choice tasks' 0.
    The first `limit` items are taken. A row's `stderr` is None where the harness gives none, `note` says in which way
    local text differs from upstream's. chat: prompts in the model's own template, as with
    --apply_chat_template. The figures are those of `lm_eval --model hf` with the same dtype: in bfloat16 the harness
    also sums log-likelihoods in bfloat16. Like the harness it seeds the global generators.
    Raises UserError as `check` does, and when a data set can't be fetched.
    """
    check(names, data, limit=limit, num_fewshot=num_fewshot)
    from lm_eval import simple_evaluate  # type: ignore[import-untyped, unused-ignore]
    from lm_eval.models.huggingface import HFLM  # type: ignore[import-untyped, unused-ignore]

    names = list(dict.fromkeys(names))
    with _quiet() as truncations:
        notes, tasks = fetched_tasks(names) if data is None else local_tasks(names, data, num_fewshot)
        lm = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size)  # it may add a pad token
        _leaving_(lm)
        if chat:
            _chat_(lm)
        _check_room(lm, tasks)
        seeds = {} if seed is None else dict.fromkeys(SEEDS, seed)
        with contextlib.redirect_stdout(sys.stderr):
            found = simple_evaluate(
                model=lm,
                tasks=tasks,
                task_manager=manager(LOCAL[names[0]].home if data else None),
                limit=limit,
                num_fewshot=num_fewshot,
                apply_chat_template=chat,
                log_samples=False,
                **seeds,
            )
    if truncations.count:
        log.warning("%s: prompts longer than the model's %d tokens lost their beginning", PURPOSE, lm.max_length)
    return [row for name in found["results"] for row in _rows(name, found, notes.get(name))]


def _leaving_(lm: Any) -> None:
    """Rows that have ended leave the batch, where answers are written greedily: the texts are the same."""
    whole = lm._model_generate

    def written(context: Any, max_length: int, stop: Sequence[str], **options: Any) -> Any:
        if options.get("do_sample") or options.get("temperature") or not {*options} <= GREEDY:
            return whole(context=context, max_length=max_length, stop=stop, **options)
        return continued(
            lm.model,
            context,
            options["attention_mask"],
            ends=ends_of(lm.model),
            pad=lm.tokenizer.pad_token_id,
            most=max_length - context.shape[1],
            has_ended=lambda ids: any(text in lm.tok_decode(ids) for text in stop),
            do_sample=False,
        )

    lm._model_generate = written


def _chat_(lm: Any) -> None:
    """Its templates run with our limits. Raises UserError where the model has none."""
    if not lm.tokenizer.chat_template:
        raise UserError(f"{PURPOSE} --template chat: the model's tokenizer has no chat template; leave it out")

    def rendered(messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True) -> str:
        asks = add_generation_prompt
        return render(lm.tokenizer, messages, add_generation_prompt=asks, continue_final_message=not asks)

    lm.apply_chat_template = rendered


def as_items(name: str, rows: Sequence[Values]) -> list[Item]:
    """Rows of a multiple-choice task as items that hold exactly what the harness scores, without examples before it.

    `question` is the context (winogrande has one per choice: `contexts`), and each choice is appended to it after a
    space. Rows have upstream's columns, or those of the local files. Raises UserError for a task of another kind.
    """
    _check_installed()
    if name not in LOCAL:
        raise unknown("harness task with local files", name, LOCAL)
    with _quiet():
        task = task_over(name, {eval_split(config_of(name)): converted(name, rows, name)}, name)
    if task.OUTPUT_TYPE != "multiple_choice":
        raise UserError(f"{name} isn't multiple choice; score it with seap.evaluation.harness.evaluate")
    return [_item(task, doc) for doc in task.eval_docs]


def local_rows(name: str, data: Path) -> list[Values]:
    """The rows that the harness evaluates, with upstream's columns, from the task's folder in `data`."""
    _check_installed()
    return read_local(name, data, 0).splits[eval_split(config_of(name))]


def export(names: Sequence[str], data: Path, out: Path) -> None:
    """Write task definitions for a plain `lm_eval --include_path OUT`, which read local files under upstream's names.

    A definition includes the installed harness's own, so it belongs to this machine. Raises UserError as `check` does,
    and for a place that holds anything else.
    """
    check(names, data)
    with written_whole(out, "task definitions") as draft:
        _write_definitions(names, data, draft, out)


def _write_definitions(names: Sequence[str], data: Path, draft: Path, out: Path) -> None:
    """Into a draft, as they are to be read from `out`."""
    import pyarrow  # type: ignore[import-untyped, unused-ignore]
    import pyarrow.parquet  # type: ignore[import-untyped, unused-ignore]

    for name in names:
        splits = read_local(name, data, None, whole=True).splits
        lines = [f"include: {entry(name).yaml_path}", f"task: {name}", "dataset_path: parquet", "dataset_name: null"]
        lines += [f"{key}: null" for key in absent_splits(config_of(name), splits)]
        lines += ["dataset_kwargs:", "  data_files:"]
        for split, rows in splits.items():
            file = Path(name, f"{split}.parquet")
            (draft / name).mkdir(exist_ok=True)
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), draft / file)
            lines.append(f"    {split}: {(out / file).absolute()}")
        (draft / f"{name}.yaml").write_text("\n".join(lines) + "\n")


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
