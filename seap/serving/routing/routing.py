"""Makes a router and says how good it is: fitted on train prompts, calibrated on held-out ones, tested on test prompts.

The linear model is scikit-learn's logistic regression; its confidence is calibrated by one temperature (Guo et al.,
2017, arXiv 1706.04599) and its two limits (confidence and distance) are quantiles, all on held-out prompts.
"""

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seap.activations.calibration import identity
from seap.environment import versions
from seap.errors import UserError, missing_extra
from seap.files import digest
from seap.models.arch import describe
from seap.serving.options import USUAL_DEPTH, Routing
from seap.serving.routing.prompts import VARIANTS, prompt_of
from seap.serving.routing.router import Features, Router, read_features, squared_offsets
from seap.text.tasks import load_items, parse_spec

Texts = Mapping[str, Sequence[str]]  # task → prompts
MOST_DIRECTIONS = 64
TEMPERATURES = torch.logspace(0, 1.5, 31)  # never surer than the fit: few held-out prompts all right would say so
BINS = 10
ROUNDS = 5  # of a fit whose weights are its own last result


def load_prompts(specs: Sequence[str], split: str, options: Routing) -> dict[str, list[str]]:
    """Prompts of every task, without repetition, drawn by seed. Raises UserError for fewer than two tasks."""
    tasks = [parse_spec(spec) for spec in specs]
    if len({task.name for task in tasks}) < max(len(tasks), 2):
        raise UserError("a router chooses among two tasks or more, each with a name of its own: --tasks A,B=PATH")
    found = {}
    for task in tasks:
        prompts = list(dict.fromkeys(prompt_of(item) for item in load_items(task, split)))
        random.Random(options.router_seed).shuffle(prompts)
        found[task.name] = prompts[: options.num_prompts]
        if len(found[task.name]) < 5:
            raise UserError(f"task {task.name}: {len(found[task.name])} prompts to {split} a router on; give 5 or more")
    return found


class Sample:
    """Features and labels of prompts in every variant, read once."""

    def __init__(self, model: Any, tokenizer: Any, texts: Texts, depth: int, options: Routing) -> None:
        self.tasks, self.variants = tuple(texts), tuple(VARIANTS)
        self.features: dict[tuple[str, str], Features] = {}  # by task and variant
        for task, prompts in texts.items():
            for name, change in VARIANTS.items():
                changed = change(prompts, random.Random(f"{task}/{name}/{options.router_seed}"))
                self.features[task, name] = read_features(model, tokenizer, changed, depth, options.max_prompt_tokens)

    def groups(self, tasks: Sequence[str], variants: Sequence[str], *, held: bool | None = None) -> list[Features]:
        """Features of each task in each variant, task by task; held: every fifth prompt, the others, or (None) all."""
        found = [self.features[task, variant] for task in tasks for variant in variants]
        if held is None:
            return found
        return [part[(torch.arange(len(part)) % 5 == 4) == held] for part in found]

    def of(self, tasks: Sequence[str], variants: Sequence[str], *, held: bool | None = None) -> tuple[Features, Tensor]:
        """Those features in one, and labels (indices into `tasks`)."""
        groups = self.groups(tasks, variants, held=held)
        labels = [torch.full((len(part),), place // len(variants)) for place, part in enumerate(groups)]
        return Features.joined(groups), torch.cat(labels)


def fit(sample: Sample, tasks: Sequence[str], depth: int, options: Routing) -> Router:
    """A router among some of a sample's tasks, calibrated on its held-out prompts."""
    variants = ("as it is",) if options.plain else sample.variants
    features, labels = sample.of(tasks, variants, held=False)
    weight, bias = _logistic(features.values, labels)
    groups = sample.groups(tasks, variants, held=False)
    mean, directions, centres = _directions([group.values for group in groups])
    held, truth = sample.of(tasks, variants, held=True)
    scale = _temperature(held.values @ weight.t() + bias, truth)
    router = Router(
        tasks=tuple(tasks),
        weight=weight / scale,
        bias=bias / scale,
        mean=mean,
        directions=directions,
        centres=centres,
        scatter=_scatter(squared_offsets(features.values, mean, directions, centres), features.lengths),
        depth=depth,
        max_prompt_tokens=options.max_prompt_tokens,
    )
    return _with_limits(router, held, options.abstain)


def _with_limits(router: Router, held: Features, abstain: float) -> Router:
    """The limits that at most this share of held-out prompts fail, half of it by each."""
    confidence = router.probabilities(held).max(-1).values
    threshold = torch.quantile(confidence, abstain / 2, interpolation="lower")
    limit = torch.quantile(router.distances(held), 1 - abstain / 2, interpolation="higher")
    return replace(router, threshold=float(threshold), limit=float(limit))


def _logistic(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Weight (S, F) and bias (S,) over the features as they are; fitted on standardised ones."""
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise missing_extra("scikit-learn", "serve", "fitting a router") from error
    mean, spread = features.mean(0), features.std(0).clamp_min(1e-6)
    model = LogisticRegression(max_iter=5000).fit(((features - mean) / spread).double().numpy(), labels.numpy())
    weight, bias = torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_)
    if len(weight) == 1:  # two classes have one row
        weight, bias = torch.cat([-weight / 2, weight / 2]), torch.cat([-bias / 2, bias / 2])
    weight = weight / spread
    return weight.float(), (bias - weight @ mean.double()).float()


def _directions(groups: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """mean (F,), directions (F, R) in which features have unit variance around their group's centre, centres (·, R)."""
    from sklearn.covariance import LedoitWolf

    features = torch.cat([*groups]).double()
    mean = features.mean(0)
    num = min(MOST_DIRECTIONS, features.shape[1], len(features) - 1)
    _, _, axes = torch.linalg.svd(features - mean, full_matrices=False)
    placed = [(part.double() - mean) @ axes[:num].t() for part in groups]
    inside = torch.cat([part - part.mean(0) for part in placed])
    covariance = torch.from_numpy(LedoitWolf(assume_centered=True).fit(inside.numpy()).covariance_)
    values, vectors = torch.linalg.eigh(covariance)
    whiten = vectors * values.clamp_min(1e-12).rsqrt()
    centres = torch.stack([part.mean(0) for part in placed]) @ whiten
    return mean.float(), (axes[:num].t() @ whiten).float(), centres.float()


def _scatter(offsets: Tensor, lengths: Tensor) -> Tensor:
    """a and b ≥ 0 of offset² ≈ a + b / T by least squares of relative errors, reweighted; offsets and lengths (N,)."""
    from scipy.optimize import nnls

    columns = np.stack([np.ones(len(lengths)), 1 / lengths.double().numpy()], 1)
    target = offsets.double().numpy()
    expected = np.full(len(target), target.mean())
    floor = max(1e-6 * float(target.mean()), 1e-12)
    for _ in range(ROUNDS):
        weights = 1 / np.maximum(expected, floor)
        found, _residual = nnls(columns * weights[:, None], target * weights)
        expected = columns @ found
    return torch.from_numpy(found).float().clamp_min(1e-12)


def _temperature(logits: Tensor, truth: Tensor) -> float:
    losses = [torch.nn.functional.cross_entropy(logits / t, truth) for t in TEMPERATURES]
    return float(TEMPERATURES[int(torch.stack(losses).argmin())])


def test(router: Router, sample: Sample) -> dict[str, Any]:
    """Accuracy, confusion and calibration on prompts as they are, and accuracy and abstention on every variant."""
    features, truth = sample.of(router.tasks, ("as it is",))
    probabilities = router.probabilities(features)
    chosen = probabilities.argmax(-1)
    confusion = np.zeros((len(router.tasks),) * 2, dtype=int)
    np.add.at(confusion, (truth.numpy(), chosen.numpy()), 1)
    variants = {name: _outcome(router, *sample.of(router.tasks, (name,))) for name in sample.variants}
    return {
        "n": len(truth),
        "accuracy": float((chosen == truth).float().mean()),
        "confusion": {"rows": "true", "columns": "routed", "tasks": list(router.tasks), "counts": confusion.tolist()},
        "calibration": reliability(probabilities.max(-1).values, chosen == truth),
        "variants": variants,
    }


def _outcome(router: Router, features: Features, truth: Tensor) -> dict[str, float]:
    """accuracy: of the nearest task; abstained; wrong: sent to another task than its own."""
    routes = router.route(features)
    names = [router.tasks[label] for label in truth.tolist()]
    pairs = list(zip(routes, names, strict=True))
    return {
        "accuracy": sum(route.nearest == name for route, name in pairs) / len(pairs),
        "abstained": sum(route.task is None for route in routes) / len(pairs),
        "wrong": sum(route.task not in (None, name) for route, name in pairs) / len(pairs),
    }


def reliability(confidence: Tensor, right: Tensor) -> dict[str, Any]:
    """Expected calibration error (Σ share · |accuracy − confidence|) over ten equal bins, and the bins in use."""
    places = (confidence * BINS).long().clamp(max=BINS - 1)
    bins, error = [], 0.0
    for place in range(BINS):
        inside = places == place
        if not inside.any():
            continue
        sure, hit = float(confidence[inside].mean()), float(right[inside].float().mean())
        error += float(inside.float().mean()) * abs(hit - sure)
        bounds = {"from": place / BINS, "to": (place + 1) / BINS}
        bins.append(bounds | {"n": int(inside.sum()), "confidence": sure, "accuracy": hit})
    return {"expected_calibration_error": error, "bins": bins}


def unseen(known: Sample, tested: Sample, depth: int, options: Routing) -> dict[str, Any]:
    """Each task in turn left out of the fit: the share of its test prompts that then go to no task."""
    found = {}
    for task in known.tasks:
        others = [name for name in known.tasks if name != task]
        if len(others) < 2:
            return {}
        router = fit(known, others, depth, options)
        routes = router.route(tested.features[task, "as it is"])
        by_confidence = sum(route.confidence < router.threshold for route in routes) / len(routes)
        abstained = sum(route.task is None for route in routes) / len(routes)
        found[task] = {"abstained": abstained, "by_confidence_alone": by_confidence}
    return found


def seconds_per_prompt(router: Router, model: Any, tokenizer: Any, prompts: Sequence[str]) -> float:
    """Median over single prompts, tokenisation included, after a warm-up."""
    taken = []
    for prompt in [prompts[0], *prompts[:50]]:
        started = time.perf_counter()
        router.predict(model, tokenizer, [prompt])
        taken.append(time.perf_counter() - started)
    return median(taken[1:])


def make_router(model: Any, tokenizer: Any, specs: Sequence[str], options: Routing, *, free: int = 0) -> Router:
    """Fit a router on the tasks' train prompts; `about["report"]` says how it does on their test prompts.

    free: first layers that are the same in all networks.
    """
    train, held_out = (load_prompts(specs, split, options) for split in ("train", "test"))
    most = len(describe(model).layers) - 1
    depth = min(max(free, USUAL_DEPTH), most) if options.depth is None else options.depth
    known = Sample(model, tokenizer, train, depth, options)
    tested = Sample(model, tokenizer, held_out, depth, options)
    router = fit(known, known.tasks, depth, options)
    report = test(router, tested) | {"unseen": unseen(known, tested, depth, options)}
    about = identity(model) | {"options": asdict(options), "versions": versions(), "report": report}
    about["num_prompts"] = {task: len(prompts) for task, prompts in train.items()}
    seen, _ = tested.of(router.tasks, ("as it is",))
    about["held_distance"] = float(router.distances(seen).mean())
    about["key"] = digest([about["fingerprint"], asdict(options), depth, train])
    return replace(router, about=about)
