"""The tasks of a run, however they are given → their training items, and the rows of tokens that are measured."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seap.errors import UserError
from seap.text.corpus import Corpus, build_corpus, longest_sequence
from seap.text.items import Item
from seap.text.memory import in_memory, items_in_memory
from seap.text.options import Calibration
from seap.text.tasks import apart, load_items, parse_spec, spec_source
from seap.text.tokens import check_ids

Tasks = str | Sequence[Any] | Mapping[str, Sequence[Any]]


def items_of(tasks: Tasks) -> tuple[dict[str, list[Item]], dict[str, str]]:
    """The training items of each task, and where they are from. Raises UserError for two tasks of one name."""
    if isinstance(tasks, Path):
        raise UserError(f"task {tasks}: a task has a name; give it as NAME=PATH, such as {tasks.stem}={tasks}")
    given = tasks if isinstance(tasks, str) else in_memory(tasks)
    if isinstance(given, str) or not isinstance(given, Mapping):
        specs = apart(parse_spec(spec) for spec in ([given] if isinstance(given, str) else given))
        return {s.name: load_items(s, "train") for s in specs}, {spec.name: spec_source(spec) for spec in specs}
    items = {name: items_in_memory(name, examples) for name, examples in given.items()}
    return items, dict.fromkeys(items, "given in memory")


def build_corpora(model: Any, tokenizer: Any, tasks: Tasks, options: Calibration) -> dict[str, Corpus]:
    """The corpus of each task, given as `NAME`, `NAME=PATH`, several of them, or a dict of name → examples.

    Examples are texts, lists of messages, or rows with the columns of a task's file, as a `datasets.Dataset` has them;
    a list of messages or rows without a name, or a Dataset, is the task `data`.
    """
    seq_len = longest_sequence(model, options)
    items, sources = items_of(tasks)
    corpora = {
        name: build_corpus(name, found, tokenizer, options, source=sources[name], seq_len=seq_len)
        for name, found in items.items()
    }
    for name, corpus in corpora.items():
        check_ids((*corpus.rows, *corpus.contrast.rows), model, tokenizer, f"task {name}")
    return corpora
