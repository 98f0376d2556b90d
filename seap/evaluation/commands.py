"""Eval over files: what can be refused is refused before a model is loaded."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seap.errors import UserError
from seap.evaluation.evaluate import Test, evaluate, evaluate_beside, load_test, prepare
from seap.evaluation.likeness import Reference
from seap.evaluation.metrics import ratio_of
from seap.evaluation.options import Evaluation
from seap.models import loader


def evaluate_tasks(
    name: str,
    tasks: Sequence[str],
    options: Evaluation,
    *,
    dense: str | None = None,
    loading: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """`seap eval`: one row per task, its tests read before the model is loaded.

    dense: the model it was pruned from, whose own figures each row then has too, under `dense`.
    """
    if not tasks:
        raise UserError("nothing to measure: add --task NAME or --task NAME=PATH, or --harness TASKS")
    tests = [load_test(spec, options) for spec in tasks]
    model, tokenizer = loader.load_for_work(name, in_batches=True, **(loading or {}))
    reference, whole = loader.load_for_work(dense, **(loading or {})) if dense else (None, None)
    return measure(model, tokenizer, tests, options, reference, whole)


def measure(
    model: Any, tokenizer: Any, tests: Sequence[Test], options: Evaluation, reference: Any, whole: Any = None
) -> list[dict[str, Any]]:
    """A row per test. reference: the dense model, or None; whole: its tokenizer, where the vocabulary may be cut."""
    if reference is not None and reference.config.vocab_size != model.config.vocab_size:
        if whole is None or not is_cut_from(tokenizer, whole):
            raise UserError("--dense has another vocabulary than the model; name the model it was pruned from")
        pairs = [
            [prepare(test, *one, options, every_window=True) for one in ((model, tokenizer), (reference, whole))]
            for test in tests
        ]
        return [evaluate_beside(model, own, reference, its) for own, its in pairs]
    exams = [prepare(test, model, tokenizer, options) for test in tests]
    if reference is None:
        return [evaluate(model, exam) for exam in exams]
    like = Reference(reference, limit=0)  # each test comes once: nothing to keep
    return [
        beside(evaluate(model, exam, reference=like, details=True), evaluate(reference, exam, details=True))
        for exam in exams
    ]


def beside(row: dict[str, Any], dense: Mapping[str, Any]) -> dict[str, Any]:
    """A row with the dense model's figures on the same test, and what the loss has grown by, paired by windows."""
    sides = [found["details"]["windows"] for found in (row, dense)]
    gains = [(mine - its, count) for (mine, count), (its, _) in zip(*sides, strict=True)]
    added = ratio_of(gains)
    row = {name: value for name, value in row.items() if name != "details"}
    own = {
        name: value
        for name, value in dense.items()
        if name in row and name not in ("task", "window", "stride", "test_hash")
    }
    return row | {"added_loss": added.value, "added_loss_stderr": added.stderr, "dense": own}


def is_cut_from(tokenizer: Any, whole: Any) -> bool:
    """Whether one tokenizer has some of the other's tokens, and no others."""
    return bool(tokenizer.get_vocab().keys() <= whole.get_vocab().keys())


def run_harness(
    name: str,
    names: Sequence[str],
    *,
    data: Path | None,
    loading: Mapping[str, Any] | None = None,
    chat: bool = False,
    **limits: Any,
) -> list[dict[str, Any]]:
    """`seap eval --harness`: standard tasks by lm-evaluation-harness. chat: in the model's own template."""
    from seap.evaluation import harness

    harness.check(names, data, **limits)
    model, tokenizer = loader.load_for_work(name, in_batches=True, **(loading or {}))
    return harness.evaluate(model, tokenizer, names, data=data, chat=chat, **limits)
