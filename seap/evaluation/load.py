"""A task's test as its data are: the items that are used, and which metric their columns allow."""

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from seap.errors import UserError
from seap.evaluation import answers
from seap.evaluation.options import Evaluation, Metric
from seap.files import digest
from seap.text.hub import TASKS as HUB_TASKS
from seap.text.items import Item
from seap.text.tasks import load_items, parse_spec

log = logging.getLogger(__name__)

NEEDS = {
    "multiple-choice": "columns question, choices and answer",
    "exact-match": "columns prompt and answer",
    "pass@1": "columns prompt, answer and checks (asserts in Python), as humaneval and mbpp have",
    "continuation": "texts",
    "loss": "texts",
}


@dataclass(frozen=True)
class Test:
    """The items of a task's test part that are used, and the metric beside the loss."""

    name: str
    items: tuple[Item, ...]
    metric: Metric

    @cached_property
    def data_hash(self) -> str:
        told = [(item.text, item.prompt, item.answer, item.choices, item.label) for item in self.items]
        checks = [item.checks for item in self.items]
        return digest([told, checks] if any(checks) else told)


def natural_metric(items: Sequence[Item]) -> Metric:
    """What the items' columns are made for. Answers of conversations have no one wording, so that their loss is."""
    if all(item.checks for item in items):
        return "pass@1"
    if any(item.is_free for item in items):
        return "loss"
    if all(item.choices for item in items):
        return "multiple-choice"
    return "exact-match" if _have_answers(items) else "continuation"


def load_test(spec: str, options: Evaluation) -> Test:
    """Read a task's test part and draw `num_items` of it.

    Raises UserError, before any model is needed, for fewer than two items, a metric that the columns can't support,
    or choices of unequal number (known benchmarks such as ARC, which have a few, are accepted).
    """
    parsed = parse_spec(spec)
    items = load_items(parsed, "test")
    if len(items) < 2:
        raise UserError(f"task {parsed.name}: its test part has one item; a mean and its error need two at least")
    natural = natural_metric(items)
    metric = natural if options.metric == "auto" else options.metric
    if metric == "pass@1" and not options.run_generated_code:
        metric = _unrun(parsed.name, options)
    possible = ["loss", "continuation", natural, *(["exact-match"] if _have_answers(items) else [])]
    if metric not in possible:
        raise UserError(f"--metric {metric}: task {parsed.name} lacks {NEEDS[metric]}; what it has is for {natural}")
    if metric == "multiple-choice" and parsed.name not in HUB_TASKS and not options.ragged_choices:
        _check_equal_choices(parsed.name, items)
    if metric == "exact-match":
        _check_extraction(parsed.name, items, options)
    drawn = random.Random(options.test_seed).sample(items, len(items))
    return Test(parsed.name, tuple(drawn[: options.num_items] if metric != "continuation" else drawn), metric)


def _unrun(name: str, options: Evaluation) -> Metric:
    """What is measured of programs that mayn't be run. Raises UserError where it is just that which was asked for."""
    asked = f"task {name}: pass@1 runs the programs that the model writes, which needs --run-generated-code"
    if options.metric != "auto":
        raise UserError(f"{asked}; read docs/security.md first")
    log.warning("%s; without it the loss alone is measured", asked)
    return "loss"


def _have_answers(items: Sequence[Item]) -> bool:
    return all(item.prompt is not None and item.answer for item in items)


def _check_equal_choices(name: str, items: Sequence[Item]) -> None:
    numbers = sorted({len(item.choices) for item in items})
    if len(numbers) > 1:
        raise UserError(
            f"task {name}: items have {', '.join(map(str, numbers))} choices, so chance differs from item to item; "
            "make them equal or add --ragged-choices"
        )


def _check_extraction(name: str, items: Sequence[Item], options: Evaluation) -> None:
    bad = [i for i in items if not answers.extract_answer(i.answer or "", options.extract, i.answer or "")]
    if bad:
        raise UserError(
            f"task {name}: in {len(bad)} of {len(items)} gold answers --extract {options.extract!r} finds nothing, "
            f"such as {bad[0].answer!r}"
        )
