"""What rounding costs: the loss on a task's test text before and after, of weights as an export has them."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from seap.evaluation import metrics
from seap.evaluation.evaluate import Exam, load_test, prepare
from seap.evaluation.metrics import Figure, ratio_of
from seap.evaluation.options import Evaluation


class Losses:
    """The losses of a model on the tests of tasks, its float weights first. Tests are read before any model is."""

    def __init__(self, tasks: Sequence[str]) -> None:
        self.options = Evaluation(metric="loss")
        self.tests = [load_test(spec, self.options) for spec in tasks]
        self.exams: list[Exam] = []
        self.before: list[Figure] = []

    def begin(self, model: Any, tokenizer: Any) -> None:
        """Measure the model as it is."""
        self.exams = [prepare(test, model, tokenizer, self.options) for test in self.tests]
        self.before = self._all(model)

    def rows(self, model: Any, values: Mapping[str, Tensor]) -> list[dict[str, Any]]:
        """A row per task: the loss with these values, by the names of parameters, and what it has grown by."""
        if not self.exams:
            return []
        with with_values(model, values):
            after = self._all(model)
        return [_row(exam, *pair) for exam, *pair in zip(self.exams, self.before, after, strict=True)]

    def _all(self, model: Any) -> list[Figure]:
        return [metrics.loss(model, exam.windows, batch_tokens=self.options.test_batch_tokens) for exam in self.exams]


def _row(exam: Exam, before: Figure, after: Figure) -> dict[str, Any]:
    gains = [(mine - its, int(count)) for (mine, count), (its, _) in zip(after.sums, before.sums, strict=True)]
    added = ratio_of(gains)
    return {
        "task": exam.test.name,
        "loss_before": before.value,
        "loss": after.value,
        "added_loss": added.value,
        "added_loss_stderr": added.stderr,
        "loss_n": after.n,
    }


@contextlib.contextmanager
def with_values(model: Any, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Other values of some parameters for a while; arithmetic is in the model's own dtype."""
    parameters, kept = dict(model.named_parameters()), {}
    with torch.no_grad():
        for name, value in values.items():
            kept[name] = parameters[name].detach().clone()
            parameters[name].copy_(value)
        try:
            yield
        finally:
            for name, value in kept.items():
                parameters[name].copy_(value)


def told(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The rows in words."""
    return [
        f"{row['task']}: the loss went from {row['loss_before']:.4f} to {row['loss']:.4f} nats per token by rounding "
        f"({row['added_loss']:+.4f} ± {row['added_loss_stderr']:.4f}, {row['loss_n']} windows)"
        for row in rows
    ]
