"""A test as a model's tokenizer reads it: what is scored, and one model's figures on it."""

import logging
import math
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from seap.errors import UserError
from seap.evaluation import answers, choices, code, metrics
from seap.evaluation.generations import conduct
from seap.evaluation.likeness import Reference, loss_and_likeness
from seap.evaluation.load import Test as Test
from seap.evaluation.load import load_test as load_test
from seap.evaluation.metrics import Figure, Row
from seap.evaluation.options import Evaluation
from seap.evaluation.programs import Limits
from seap.text.corpus import separator
from seap.text.encode import encode, in_template
from seap.text.items import Item
from seap.text.rows import counted_of, num_counted, places_of
from seap.text.seeing import sees
from seap.text.tokens import byte_counter, check_ids

log = logging.getLogger(__name__)

ACC_NAMES = {
    "multiple-choice": "multiple choice",
    "exact-match": "exact match",
    "pass@1": "pass@1",
    "continuation": "continuation among four",
}


@dataclass(frozen=True)
class Exam:
    """A test as a model's tokenizer reads it: made once, taken by every model of a comparison."""

    test: Test
    options: Evaluation
    tokenizer: Any
    windows: tuple[Row, ...]  # that the loss is measured on
    asked: tuple[Row, ...]  # the choices of every item; none where answers are generated or only the loss counts
    owners: tuple[int, ...]  # the place of each window's text
    questions: tuple[Item, ...] = ()  # the test's items as they are asked by choice, where that isn't their own wording

    @cached_property
    def scored(self) -> tuple[int, int]:
        """The tokens that the loss is measured on, and the bytes that they stand for."""
        num_bytes, tokens, size = byte_counter(self.tokenizer), 0, 0
        for row in self.windows:
            counts, images = counted_of(row.ids), places_of(row.ids)
            said = [i for i in range(row.start, len(row.ids)) if counts is None or counts[i - 1]]
            own = [row.ids[i] for i in said if images is None or not images[i]]
            tokens, size = tokens + len(own), size + num_bytes(own)
        return tokens, max(size, 1)


def prepare(
    test: Test,
    model: Any,
    tokenizer: Any,
    options: Evaluation,
    *,
    every_window: bool = False,
    questions: Sequence[Item] = (),
) -> Exam:
    """Tokenise a test for a model (which isn't run). Raises UserError for texts that are too short.

    every_window: measure the loss on all windows of the texts, as many as they are. questions: the same items of
    multiple choice in another wording, such as `harness.as_items` gives.
    """
    longest = getattr(model.config, "max_position_embeddings", None)
    test = _by_loss(test, tokenizer, options)
    asked: list[Row] = []
    if test.metric == "multiple-choice":
        asked = choices.choice_rows(tokenizer, questions or test.items, options, longest=longest)
    elif test.metric == "continuation":
        test, asked = _continued(test, tokenizer, options)
    drawing = replace(options, num_windows=sys.maxsize) if every_window else options
    owners, windows = zip(*loss_rows(tokenizer, test, drawing, longest=longest), strict=True)
    check_ids([row.ids for row in (*windows, *asked)], model, tokenizer, f"the test of task {test.name}")
    return Exam(test, options, tokenizer, windows, tuple(asked), owners, tuple(questions))


def _by_loss(test: Test, tokenizer: Any, options: Evaluation) -> Test:
    """With the loss alone where items have images that the model sees: what it says of them isn't asked for."""
    if test.metric == "loss" or not any(sees(tokenizer, item, options) for item in test.items):
        return test
    if options.metric != "auto":
        raise UserError(
            f"task {test.name}: --metric {test.metric} reads text alone, and these items have images; use --metric "
            "loss, or --images none"
        )
    log.warning("task %s: of items with images the loss alone is measured", test.name)
    return replace(test, metric="loss")


def _continued(test: Test, tokenizer: Any, options: Evaluation) -> tuple[Test, list[Row]]:
    """The choice of the true continuation; where the texts are too short, and it wasn't asked for, the loss alone."""
    texts = [encode(tokenizer, item, options).ids for item in test.items]
    try:
        return test, choices.continuation_rows(texts, options)
    except UserError as error:
        if options.metric != "auto":
            raise
        log.warning("task %s: %s. The loss alone is measured", test.name, error)
        return replace(test, metric="loss"), []


def loss_rows(tokenizer: Any, test: Test, options: Evaluation, *, longest: int | None = None) -> list[tuple[int, Row]]:
    """Windows over the test's texts, `num_windows` of them drawn by seed, none over `longest` tokens.

    Each comes with the place of its text. Of a text read as --weigh says, windows without a token that counts are left
    out. A plain text is preceded by the end-of-text token where the tokenizer marks no beginning itself.
    """
    length = min(options.window, longest or options.window)
    stride = min(options.stride or length, length)
    start = separator(tokenizer)
    texts = [encode(tokenizer, item, options).after(start).row for item in test.items]
    rows = [(i, row) for i, text in enumerate(texts) for row in metrics.windows(text, length=length, stride=stride)]
    rows = [(i, row) for i, row in rows if len(row.ids) > row.start and num_counted(row.ids)]
    if len(rows) < 2:
        more = "" if options.weigh == "all" else f" that --weigh {options.weigh} counts"
        raise UserError(f"task {test.name}: its test texts have fewer than two windows with a token to predict{more}")
    return random.Random(options.test_seed).sample(rows, min(options.num_windows or options.num_items, len(rows)))


def evaluate(model: Any, exam: Exam, *, reference: Reference | None = None, details: bool = False) -> dict[str, Any]:
    """One model's figures on one test, for a result row: loss, perplexity, accuracy, and likeness to `reference`.

    Where answers are generated, also how many loop or don't end; with --say-items what is said in free form. details:
    under this name the figures of each item and window, for differences of two models.
    """
    options, limit = exam.options, exam.options.test_batch_tokens
    like: dict[str, Figure] = {}
    if reference is None:
        figure = metrics.loss(model, exam.windows, batch_tokens=limit)
    else:
        figure, *both = loss_and_likeness(model, reference, exam.windows, batch_tokens=limit)
        like = dict(zip(("kl", "agreement"), both, strict=True))
    found = {
        "task": exam.test.name,
        "loss": figure.value,
        "loss_stderr": figure.stderr,
        **per_byte(figure, exam),
        "loss_n": figure.n,
        "ppl": math.exp(min(figure.value, 700)),
        "window": options.window,
        "stride": options.stride or options.window,
        "test_seed": options.test_seed,
        "test_hash": exam.test.data_hash,
    }
    if options.weigh != "all":
        found["weigh"] = options.weigh
    if any(in_template(exam.tokenizer, item, options) for item in exam.test.items):
        found["template"] = "chat"
    right = _right(model, exam)
    found |= _accuracy(exam, right)
    for name, part in (like | _said(model, exam, right)).items():
        found |= _named(name, part)
    if details:
        each = {name: list(part.values) for name, part in right.items() if part is not None}
        found["details"] = {"windows": [list(pair) for pair in figure.sums], **each}
    return found


def per_byte(figure: Figure, exam: Exam) -> dict[str, float]:
    """A loss per token as nats per byte of the text, by which models of different vocabularies compare."""
    tokens, size = exam.scored
    return {"nats_per_byte": figure.value * tokens / size, "nats_per_byte_stderr": figure.stderr * tokens / size}


def evaluate_beside(model: Any, exam: Exam, dense: Any, its_exam: Exam) -> dict[str, Any]:
    """One model's figures, and what its text loses per byte against a model that reads it in other tokens.

    There is no likeness to a model whose tokens are others.
    """
    found = evaluate(model, exam)
    figure = metrics.loss(dense, its_exam.windows, batch_tokens=its_exam.options.test_batch_tokens)
    whole = per_byte(figure, its_exam)["nats_per_byte"]
    return found | {"dense_nats_per_byte": whole, "added_nats_per_byte": found["nats_per_byte"] - whole}


def accuracy(model: Any, exam: Exam) -> tuple[Figure | None, Figure | None]:
    """Share of right answers, and normalised by length where they are choices; None where there is none."""
    right = _right(model, exam)
    return right.get("acc"), right.get("acc_norm")


def _right(model: Any, exam: Exam) -> dict[str, Figure | None]:
    """acc and acc_norm, and loops and endless where answers are generated."""
    test, limit = exam.test, exam.options.test_batch_tokens
    if test.metric == "multiple-choice":
        items = exam.questions or test.items
        plain, normalised = choices.multiple_choice(model, exam.asked, items, batch_tokens=limit)
        return {"acc": plain, "acc_norm": normalised}
    if test.metric == "exact-match":
        written = answers.written_answers(model, exam.tokenizer, test.items, exam.options)
        return {"acc": answers.matches(written, test.items, exam.options), "acc_norm": None, **conduct(written)}
    if test.metric == "pass@1":
        return _programs(model, exam)
    if test.metric == "continuation":
        four = choices.continuation_among_four(model, exam.asked, batch_tokens=limit)
        return {"acc": four, "acc_norm": None}
    return {}


def _programs(model: Any, exam: Exam) -> dict[str, Figure | None]:
    items, options = exam.test.items, exam.options
    assert options.run_generated_code
    written = answers.written_answers(model, exam.tokenizer, items, options)
    led = [item.lead if in_template(exam.tokenizer, item, options) else "" for item in items]
    whole = [replace(one, text=lead + one.text) for lead, one in zip(led, written, strict=True)]
    found = code.verdicts(whole, items, Limits(seconds=options.program_seconds))
    return {"acc": code.pass_at_1(found), "acc_norm": None, **conduct(written)}


def _accuracy(exam: Exam, right: Mapping[str, Figure | None]) -> dict[str, Any]:
    plain = right.get("acc")
    if plain is None:
        return dict.fromkeys(("acc", "acc_stderr", "acc_metric", "acc_norm", "acc_norm_stderr", "n"))
    found = {"acc_metric": ACC_NAMES[exam.test.metric], "n": plain.n}
    for name, figure in right.items():
        found |= _named(name, figure)
    return found


def _said(model: Any, exam: Exam, right: Mapping[str, Figure | None]) -> dict[str, Figure | None]:
    """Multiple choice asked in free form, for so many of its items as --say-items."""
    options, chosen = exam.options, right.get("acc")
    if exam.test.metric != "multiple-choice" or not options.say_items or chosen is None:
        return {}
    items = exam.test.items[: options.say_items]
    written = answers.written_answers(model, exam.tokenizer, items, options)
    return answers.recalled(written, items, chosen.values[: len(items)]) | conduct(written)


def _named(name: str, figure: Figure | None) -> dict[str, Any]:
    if figure is None:
        return {name: None, f"{name}_stderr": None}
    more = {f"{name}_n": figure.n} if name in ("said", "recall") else {}
    return {name: figure.value, f"{name}_stderr": figure.stderr, **more}
