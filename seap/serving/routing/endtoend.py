"""What routing costs in the end: each task's test answered on the network that the router chose, on its own, and dense.

Accuracy where the test has any (generated answers, multiple choice), else the mean loss per token of its texts.
"""

from collections.abc import Callable, Sequence
from typing import Any

from seap.evaluation.answers import exact_match
from seap.evaluation.choices import choice_rows, multiple_choice
from seap.evaluation.evaluate import Test
from seap.evaluation.metrics import Row, log_likelihoods
from seap.evaluation.options import Evaluation
from seap.serving.networks.runtime import DENSE, TaskRuntime
from seap.serving.routing.prompts import prompt_of
from seap.serving.routing.router import Router
from seap.text.encode import encode
from seap.text.items import Item

MEASURED = ("routed", "true_task", "dense", "routed_right", "abstained", "weights")
Scorer = Callable[[Any, Sequence[Item]], Sequence[float]]


def end_to_end(
    runtime: TaskRuntime, tokenizer: Any, router: Router, tests: Sequence[Test], options: Evaluation, *, fallback: str
) -> dict[str, Any]:
    """One row a task: its score on the routed networks, on its own (`true_task`) and on the dense model; and means.

    A prompt that the router gives up, or to a task without a network, runs on the fallback. `weights` is the mean share
    of the prunable parameters that the routed networks used.
    """
    rows: list[dict[str, Any]] = []
    for test in tests:
        score = _scorer(runtime, tokenizer, test, options)
        routes = router.predict(runtime.model, tokenizer, [prompt_of(item) for item in test.items])
        places = [route.task if route.task in runtime.tasks else fallback for route in routes]
        rows.append(
            {
                "task": test.name,
                "measure": "loss" if test.metric in ("loss", "continuation") else test.metric,
                "n": len(test.items),
                "routed": _mean(score_by_network(runtime, score, test.items, [str(place) for place in places])),
                "true_task": _mean(score_by_network(runtime, score, test.items, [test.name] * len(test.items))),
                "dense": _mean(score_by_network(runtime, score, test.items, [DENSE] * len(test.items))),
                "routed_right": sum(place == test.name for place in places) / len(places),
                "abstained": sum(route.task is None for route in routes) / len(routes),
                "weights": _mean([runtime.weights_at_work(str(place)) for place in places]),
            }
        )
    means = {name: _mean([row[name] for row in rows]) for name in MEASURED}
    return {"fallback": fallback, "rows": rows, "mean": means}


def score_by_network(runtime: TaskRuntime, score: Scorer, items: Sequence[Item], places: Sequence[str]) -> list[float]:
    """The score of each item on the network of its place."""
    found = [0.0] * len(items)
    for network in dict.fromkeys(places):
        chosen = [i for i, place in enumerate(places) if place == network]
        with runtime.task(network) as model:
            for i, value in zip(chosen, score(model, [items[i] for i in chosen]), strict=True):
                found[i] = value
    return found


def _scorer(runtime: TaskRuntime, tokenizer: Any, test: Test, options: Evaluation) -> Scorer:
    longest = getattr(runtime.model.config, "max_position_embeddings", None)

    def choices(model: Any, items: Sequence[Item]) -> Sequence[float]:
        return multiple_choice(model, choice_rows(tokenizer, items, options, longest=longest), items)[0].values

    def losses(model: Any, items: Sequence[Item]) -> Sequence[float]:
        texts = [encode(tokenizer, item, options).row[: min(options.window, longest or 2**31)] for item in items]
        return [-total / max(count, 1) for total, count in log_likelihoods(model, [Row(text) for text in texts])]

    if test.metric == "multiple-choice":
        return choices
    if test.metric == "exact-match":
        return lambda model, items: exact_match(model, tokenizer, items, options).values
    return losses


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
