"""Eval over files: what can be refused is refused before a model is loaded."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seap.errors import UserError
from seap.evaluation.evaluate import evaluate, evaluate_beside, load_test, prepare
from seap.evaluation.likeness import Reference
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
    """`seap eval`: one row per task, its tests read before the model is loaded."""
    if not tasks:
        raise UserError("nothing to measure: add --task NAME or --task NAME=PATH, or --harness TASKS")
    tests = [load_test(spec, options) for spec in tasks]
    model, tokenizer = loader.load_for_work(name, **(loading or {}))
    reference, whole = loader.load_for_work(dense, **(loading or {})) if dense else (None, None)
    if reference is not None and reference.config.vocab_size != model.config.vocab_size:
        if not is_cut_from(tokenizer, whole):
            raise UserError(f"--dense {dense} has another vocabulary than {name}; name the model it was pruned from")
        pairs = [
            [prepare(test, *one, options, every_window=True) for one in ((model, tokenizer), (reference, whole))]
            for test in tests
        ]
        return [evaluate_beside(model, own, reference, its) for own, its in pairs]
    exams = [prepare(test, model, tokenizer, options) for test in tests]
    like = None if reference is None else Reference(reference, limit=0)  # each test comes once: nothing to keep
    return [evaluate(model, exam, reference=like) for exam in exams]


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
    model, tokenizer = loader.load_for_work(name, **(loading or {}))
    return harness.evaluate(model, tokenizer, names, data=data, chat=chat, **limits)
