"""What choices of a pruning may be, and which mean nothing beside each other. Imports no torch."""

import math
from typing import TYPE_CHECKING

from seap.errors import UserError, at_least, one_of, unknown
from seap.methods import (
    CHOICES,
    FIRST_ORDER,
    MEASURED,
    METHODS,
    RUNNING,
    AxisName,
    CurvesFrom,
    Drop,
    EffortName,
    Heads,
)
from seap.selection.targets import check_target

if TYPE_CHECKING:
    from seap.selection.options import Pruning

OF_MEANS = ("wifv", "wifv-flap", "wanda", "wanda-sp")  # scores of means and variances alone
BEFORE_SCORES = ("uniform", "one-width", "logistic")  # allocations that look at no score
LEAST = {
    "protect_first": 0,
    "protect_last": 0,
    "fisher_tokens": 2,
    "probe_tokens": 2,
    "search_evaluations": 1,
    "descents": 0,
    "steps": 1,
}


def check_choices(options: "Pruning") -> None:
    """Raise UserError for a value out of range, or choices that don't go together."""
    _check_values(options)
    check_target(options.cost, options.resolved())
    _check_goes_together(options)


def _check_values(options: "Pruning") -> None:
    if not 0 <= options.sparsity < 1:
        raise UserError(f"--sparsity {options.sparsity}: must be at least 0 and below 1, such as 0.5 for half")
    if options.method not in METHODS:
        raise unknown("method", options.method, METHODS)
    for kind, allowed in CHOICES.items():
        if getattr(options, kind) is not None:
            one_of(kind.replace("_", " "), getattr(options, kind), allowed)
    one_of("effort", options.effort, EffortName)
    if options.curves is not None:
        one_of("curves", options.curves, CurvesFrom)
    one_of("drop", options.drop, Drop)
    one_of("heads", options.heads, Heads)
    if isinstance(options.axes, str):
        raise UserError(f"axes {options.axes!r}: must be a tuple, such as ({options.axes!r},)")
    for axis in options.axes or ():
        one_of("axis", axis, AxisName)
    if isinstance(options.experts, int):
        at_least("experts", options.experts, 1)
        if "expert_channels" not in (options.axes or ("expert_channels",)):
            raise UserError(f"--experts {options.experts} cuts experts; add expert_channels to --axes")
    elif options.experts not in ("auto", "keep"):
        raise UserError(f"--experts {options.experts}: must be a number of experts, auto or keep")
    for name, least in (("min_kv_groups", 1), ("min_channels", 1), ("round_to", 0), ("context", 1), ("batch", 1)):
        at_least(name, getattr(options, name), least)
    for name, least in LEAST.items():
        if getattr(options, name) is not None:
            at_least(name, getattr(options, name), least)
    if options.mix != "auto" and not (isinstance(options.mix, float | int) and 0 <= options.mix < math.inf):
        raise UserError(f"--mix {options.mix}: must be auto, or a number from 0 up, such as 0.3")
    for name in ("logistic_k", "logistic_x0"):
        if not math.isfinite(getattr(options, name)):
            raise UserError(f"--{name.replace('_', '-')} {getattr(options, name)}: must be a finite number")
    for task, weight in (options.weights or {}).items():
        if not 0 <= weight < math.inf:
            raise UserError(f"--weights.{task} {weight}: a task's weight must be 0 or more, and finite")


def _check_goes_together(options: "Pruning") -> None:
    """Raise UserError for choices of stages that mean nothing beside each other."""
    method = options.resolved()
    if options.drop != "none" and method.allocate not in MEASURED:
        raise UserError(
            f"--drop {options.drop} weighs a whole sub-block's damage against that of units, which --allocate "
            f"{method.allocate} doesn't measure; choose --allocate damage or search"
        )
    if options.heads == "query" and method.allocate not in MEASURED:
        raise UserError(
            "--heads query weighs the damage of query heads against that of groups, which --allocate "
            f"{method.allocate} doesn't measure; choose --allocate damage or search"
        )
    if options.heads == "query" and method.score in RUNNING:
        raise UserError(
            f"--heads query ranks single query heads, which --score {method.score} doesn't; use --score obs-fisher, "
            "obs or wifv"
        )
    if method.allocate == "one-width" and any(options.protected(100)):
        raise UserError("--allocate one-width cuts every layer alike; leave out --protect-first and --protect-last")
    if method.allocate == "iterative" and method.score not in FIRST_ORDER:
        raise UserError(
            f"--allocate iterative measures gradients anew after each step, which --score {method.score} doesn't have; "
            f"use --score {', '.join(FIRST_ORDER)}, or --allocate global"
        )
    if method.score == "block-influence" and method.allocate != "whole-layers":
        raise UserError(
            f"--score block-influence is of whole layers and ranks no units for --allocate {method.allocate}; use "
            "--allocate whole-layers"
        )
    if method.behind and not (method.score in OF_MEANS and method.allocate in BEFORE_SCORES):
        raise UserError(
            f"--method {options.method} chooses layer after layer, by --score {', '.join(OF_MEANS)} and --allocate "
            f"{', '.join(BEFORE_SCORES)}; got {method.score} and {method.allocate}"
        )
    if method.allocate != "whole-layers":
        return
    if method.compensate != "none":
        raise UserError(
            f"--allocate whole-layers leaves no part of a layer that --compensate {method.compensate} could refit; "
            "leave it out"
        )
    if options.axes is not None:
        raise UserError("--allocate whole-layers cuts no axes; leave out --axes")
