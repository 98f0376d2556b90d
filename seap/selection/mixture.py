"""Several texts behind one network: a task with some general text beside it, or several tasks at once.

Moments add up, so a mixture costs no pass over text: each part counts as if its tokens had been seen more often.
The weights can be chosen on held-out text: the general text's so that the task loses least, several tasks' so that the
task that loses most loses least (multiplicative weights: Freund and Schapire, 1999). What is compared then is a quick
network of every candidate (the method's own score and compensation, logistic widths, nothing refitted), by KL from the
dense model on the held-out calibration rows, at the target sparsity.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from tqdm import tqdm

from seap.activations.stats import Statistics, merge
from seap.compensation.compensate import kept_inputs, repair_axes
from seap.errors import UserError
from seap.methods import RECONSTRUCTING, RUNNING, Method
from seap.models.arch import Arch, describe
from seap.models.axes import Axis, Masks
from seap.models.modes import evaluation
from seap.scoring.score import Scores, mix, score_inputs
from seap.selection.damage import Judge, probe_rows, simulated_all
from seap.selection.options import Pruning
from seap.text.options import Calibration

SHARES = (0.0, 0.1, 0.3, 1.0)  # of general text beside the task's, that `auto` chooses from
ROUNDS = 6  # of weights for several tasks; each makes one quick network

MakeMasks = Callable[[Mapping[str, Statistics], Pruning], Masks]


def check_mixture(options: Pruning, names: Sequence[str], *, general: bool = False) -> None:
    """Refuse tasks that the mask can't be made of, and weights that name none of them or leave nothing."""
    if options.resolved().mask == "task" and len(names) > 1:
        raise UserError(
            f"a task mask is of one task, got {', '.join(names)}; use --method seap-gen or --mask general "
            "for one mask that serves them all, or prune once per task"
        )
    weights = options.weights or {}
    if names and set(weights) - set(names):
        strange = ", ".join(sorted(set(weights) - set(names)))
        raise UserError(f"--weights names {strange}, the tasks are {', '.join(names)}")
    if weights and names and not any(weights.get(name, 1.0) for name in names):
        raise UserError("--weights are all 0, which leaves nothing to score by; give one task a weight above 0")
    if options.worst_task and len(names) == 1:
        raise UserError(f"--worst-task weighs several tasks, got {names[0]} alone; name more, or leave it out")
    if options.mix and len(names) > 1:
        raise UserError(f"--mix adds general text to one task's, got {', '.join(names)}; weigh tasks with --weights")
    if options.mix and names and not general:
        raise UserError(f"--mix {options.mix} needs general text: add --general NAME=PATH (or --general wikitext2)")


def add_general(task: Statistics, general: Statistics, share: float) -> Statistics:
    """The task's statistics with general text as `share` times as many tokens as the task has.

    The token rows and what is held out stay the task's own, so whatever is chosen or refitted is by the task's text.
    """
    if not share:
        return task
    mixed = {}
    for key, moments in task.items():
        other = general[key]
        mixed[key] = moments.copy()
        mixed[key].add_(replace(other, held=None).weighted(share * moments.count / max(other.count, 1)))
    return Statistics(mixed, task.rows, contrast=task.contrast)


def pool(statistics: Mapping[str, Statistics], options: Pruning) -> Statistics:
    """What several tasks' statistics come to: for a general mask each task counts equally, times its weight.

    Pooled text (and one task alone) is taken as it is, token by token.
    """
    parts = list(statistics.values())
    if len(parts) == 1:
        return parts[0]
    if options.resolved().mask not in ("general", "general-raw"):
        return merge(parts)
    counts = {name: _count(part) for name, part in statistics.items()}
    mean = sum(counts.values()) / len(counts)
    wanted = {name: (options.weights or {}).get(name, 1.0) * mean / max(counts[name], 1) for name in statistics}
    weighted = [
        Statistics(
            {key: moments.weighted(wanted[name]) for key, moments in part.items()}, part.rows, contrast=part.contrast
        )
        for name, part in statistics.items()
    ]
    return merge(weighted)


def _count(statistics: Statistics) -> int:
    return next(iter(statistics.values())).count


@dataclass(frozen=True)
class QuickNetworks:
    """Makes quick networks from statistics and measures them on each task's held-out rows."""

    arch: Arch
    options: Pruning
    make_masks: MakeMasks
    judges: dict[str, Judge]

    @classmethod
    def on(
        cls, model: Any, statistics: Mapping[str, Statistics], options: Pruning, make_masks: MakeMasks, seed: int
    ) -> "QuickNetworks":
        arch = describe(model)
        judges = {
            name: Judge.on(
                arch, probe_rows(part.rows, options.spent.probe_tokens, seed), batch_tokens=Calibration.batch_tokens
            )
            for name, part in statistics.items()
        }
        plain: dict[str, Any] = {"drop": "none", "heads": "groups", "cost": "params"}  # what logistic widths can be
        quick = replace(options, allocate="logistic", sequential=False, worst_task=False, mix=0.0, **plain)
        return cls(arch, quick, make_masks, judges)

    def divergences(self, statistics: Mapping[str, Statistics], **changes: Any) -> dict[str, float]:
        """Task → KL(dense ‖ network) per token on its held-out rows."""
        options = replace(self.options, **changes)
        masks = self.make_masks(statistics, options)
        repairs = repair_axes(self.arch, masks, pool(statistics, options), options.resolved().compensate)
        cut = {axis.key: kept_inputs(axis, masks[axis.key]) for axis in self.arch.axes if not masks[axis.key].all()}
        axes = [axis for axis in self.arch.axes if axis.key in cut]
        with evaluation(self.arch.model), simulated_all(self.arch, axes, cut, repairs):
            return {name: judge.divergence() for name, judge in self.judges.items()}


def choose_share(networks: QuickNetworks, task: str, own: Statistics, general: Statistics) -> tuple[float, str]:
    """The share of general text that leaves the task least KL on its held-out rows, and what was found."""
    found = {share: networks.divergences({task: add_general(own, general, share)})[task] for share in SHARES}
    best = min(found, key=lambda share: found[share])
    figures = ", ".join(f"{share:g}: {value:.4f}" for share, value in found.items())
    return best, f"--mix {best:g} was chosen by held-out KL ({figures})"


def choose_weights(
    networks: QuickNetworks, statistics: Mapping[str, Statistics], *, progress: bool = False
) -> tuple[dict[str, float], str]:
    """Weights with which the task that loses most loses least, and what was found.

    A task's weight grows with how far its KL lies above the tasks' mean: w ← w · exp(KL / mean KL − 1).
    """
    weights = dict.fromkeys(statistics, 1.0)
    tried: list[tuple[float, dict[str, float], dict[str, float]]] = []
    for _ in tqdm(range(ROUNDS), desc="weights", unit="network", disable=not progress, leave=False):
        found = networks.divergences(statistics, weights=weights)
        tried.append((max(found.values()), weights, found))
        mean = sum(found.values()) / len(found)
        raised = {name: weights[name] * math.exp(found[name] / max(mean, 1e-12) - 1) for name in weights}
        scale = sum(raised.values()) / len(raised)
        weights = {name: value / scale for name, value in raised.items()}
    _, best, found = min(tried, key=lambda one: one[0])
    figures = ", ".join(f"{name} {best[name]:.2f} (KL {found[name]:.4f})" for name in best)
    start = max(tried[0][2].values())
    return best, f"weights for the worst task: {figures}; with equal weights the worst KL was {start:.4f}"


def combine_scores(
    arch: Arch,
    method: Method,
    statistics: Mapping[str, Statistics],
    options: Pruning,
    seed: int,
    sensitivity: Mapping[str, Tensor] | None = None,
    axes: Sequence[Axis] | None = None,
    *,
    masks: Masks | None = None,
    progress: bool = False,
) -> Scores:
    """One score per input: of the one task, mixed over several, or of all text pooled. The rest: see `score_inputs`.

    Scores of reconstruction are of mixed moments, those for which the model runs of all texts' rows together; the
    others are mixed themselves (SEAP-gen).
    """
    given: dict[str, Any] = {"seed": seed, "sensitivity": sensitivity, "axes": axes, "masks": masks}
    given |= {"progress": progress, "by_head": options.heads == "query"}
    one_by_one = method.mask in ("general", "general-raw") and method.score not in (*RECONSTRUCTING, *RUNNING)
    if one_by_one and statistics:
        each = {task: score_inputs(arch, part, method.score, **given) for task, part in statistics.items()}
        return mix(each, options.weights, normalise=method.mask == "general")
    pooled = pool(statistics, options) if statistics else None
    return score_inputs(arch, pooled, method.score, **given)
