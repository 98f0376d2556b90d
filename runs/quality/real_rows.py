"""One row of `real_models.py`: a network made for a task, tested on it and, by loss alone, on the others."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from seap.evaluation.evaluate import Exam, evaluate
from seap.evaluation.metrics import Figure, log_likelihoods, mean_of, ratio_of
from seap.evidence.compare import pruned_network
from seap.evidence.plan import Network
from seap.evidence.workbench import Bench

Row = dict[str, Any]


def row_file(out: Path, model: str, task: str, network: Network | None = None) -> Path:
    """Of a network tested on a task, or of the dense model."""
    name = "dense"
    if network is not None:
        own = network.text in (task, "weights", "general") and network.control is None
        text = "" if own else f"-{network.text.replace(':', '-')}"
        name = f"{network.method}-{network.sparsity:g}{text}-seed{network.seed}"
    return out / "rows" / model / task / f"{name}.json"


@dataclass(frozen=True)
class Dense:
    """The dense model on a task: item by item, window by window."""

    row: Row

    @classmethod
    def read(cls, path: Path) -> "Dense":
        return cls(json.loads(path.read_text()))

    @cached_property
    def windows(self) -> list[tuple[float, float]]:
        return [(total, count) for total, count in self.row["details"]["windows"]]


def dense_row(model: Any, exam: Exam) -> Row:
    """The dense model's figures, with what guessing would get where there are choices."""
    started = time.perf_counter()
    found = evaluate(model, exam, details=True)
    items = exam.test.items
    guessed = sum(1 / max(len(item.choices), 1) for item in items) / len(items)
    chance = {"multiple-choice": guessed, "continuation": 0.25}
    params = sum(p.numel() for p in model.parameters())
    about = {"method": "dense", "made_for": None, "control": None, "seed": 0, "target_sparsity": 0.0}
    about |= {"realised_sparsity": 0.0, "params_after": params, "calibration_tokens": None}
    about |= {"chance": chance.get(exam.test.metric, 0.0), "kl": 0.0, "agreement": 1.0}
    return about | found | {"seconds": time.perf_counter() - started}


@dataclass
class Last:
    """The network that was made last, which the next row may be of too."""

    network: Network | None = None
    made: tuple[Any, Row] | None = None

    def of(self, bench: Bench, network: Network) -> tuple[Any, Row]:
        if self.made is None or self.network != network:
            self.made, started = None, time.perf_counter()
            pruned, about = pruned_network(bench, network)
            self.network, self.made = network, (pruned, about | {"pruning_seconds": time.perf_counter() - started})
        return self.made


def pruned_row(
    bench: Bench, made: tuple[Any, Row], task: str, dense: Dense, others: Mapping[str, Dense], *, off_windows: int
) -> Row:
    """A network's figures on a task, and their differences from the dense model's, paired item by item."""
    pruned, about = made
    started = time.perf_counter()
    found = evaluate(pruned, bench.tests[task], reference=bench.reference, details=True)
    row = about | found | paired(found["details"], dense.row["details"])
    row["off_task"] = {name: off_task(pruned, bench.tests[name], one, off_windows) for name, one in others.items()}
    return row | {"seconds": time.perf_counter() - started}


def paired(own: Mapping[str, Any], dense: Mapping[str, Any]) -> Row:
    """What was added to the loss and to every share, with the standard error of the difference."""
    row = named("added_loss", added(own["windows"], dense["windows"]))
    for name in own.keys() & dense.keys() - {"windows"}:
        difference = [a - b for a, b in zip(own[name], dense[name], strict=True)]
        row |= named(f"added_{name}", mean_of(difference))
    return row


def added(own: Any, dense: Any) -> Figure:
    """Loss per token beyond the dense model's, over the same windows."""
    return ratio_of([(a - b, count) for (a, count), (b, _) in zip(own, dense, strict=True)])


@torch.no_grad()
def off_task(model: Any, exam: Exam, dense: Dense, num_windows: int) -> Row:
    """The loss added on another task's first windows."""
    windows = exam.windows[:num_windows]
    own = [(-total, count) for total, count in log_likelihoods(model, windows)]
    return named("added_loss", added(own, dense.windows[: len(own)])) | {"n": len(own)}


def named(name: str, figure: Figure) -> Row:
    return {name: figure.value, f"{name}_stderr": figure.stderr}
