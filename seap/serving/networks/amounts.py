"""How much of a model a task's network may do without, and what it can't be asked, as it shares the dense weights."""

from collections.abc import Mapping, Sequence
from typing import Any

from seap.errors import UserError
from seap.pruning.prune import split_options
from seap.pruning.targets import check_one_amount
from seap.pruning.vocabulary import NEEDS_TEXT
from seap.vocabulary.options import vocabulary_of


def check_words(options: Mapping[str, Any], tasks: Sequence[str]) -> None:
    """Raise UserError for amounts, and a vocabulary, that networks which share weights can't have."""
    words, others = vocabulary_of(options)
    if words.is_cut and not tasks:
        raise UserError(
            f"--vocabulary {words.vocabulary}: {NEEDS_TEXT}; sources have theirs already: add --task, or leave it out"
        )
    check_amount(others)


def check_amount(options: Mapping[str, Any]) -> None:
    """Raise UserError for amounts that are of a whole model."""
    check_one_amount(options)
    cost = split_options(options)[0].cost
    if cost in ("bytes", "memory"):
        raise UserError(
            f"--cost {cost} and --target-size are of a whole model; networks share the dense model's weights, and "
            "--share says how much each may own; give a --sparsity or a --target-speed"
        )
