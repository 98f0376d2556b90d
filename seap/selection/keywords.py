"""The options of `options.py` as keyword arguments, for editors and type checkers; a test holds the two together."""

from typing import Literal, TypedDict

from seap.methods import Allocate, AxisName, Compensate, Convention, CurvesFrom, Drop, EffortName, Heads, MaskOf, Score
from seap.selection.targets import Cost
from seap.text.keywords import CalibrationKeywords


class ChoicesKeywords(TypedDict, total=False):
    """As the fields of `Choices`."""

    score: Score | None
    allocate: Allocate | None
    mask: MaskOf | None
    compensate: Compensate | None
    sequential: bool | None
    sparsity_convention: Convention | None
    weights: dict[str, float] | None
    axes: tuple[AxisName, ...] | None
    experts: int | Literal["auto", "keep"]
    worst_task: bool
    mix: float | Literal["auto"]
    logistic_k: float
    logistic_x0: float
    protect_first: int | None
    protect_last: int | None
    min_kv_groups: int
    min_channels: int
    drop: Drop
    heads: Heads
    effort: EffortName
    curves: CurvesFrom | None
    cost: Cost
    context: int
    batch: int
    fisher_tokens: int | None
    probe_tokens: int | None
    search_evaluations: int | None
    solve_device: str
    steps: int | None
    descents: int | None
    round_to: int


class PruningKeywords(ChoicesKeywords, total=False):
    """As the fields of `Pruning`."""

    sparsity: float | str
    target_size: float | str | None
    target_speed: float | str | None
    method: str


class ComparedKeywords(ChoicesKeywords, CalibrationKeywords, total=False):
    """What `seap.compare` takes of both."""


class VocabularyKeywords(TypedDict, total=False):
    """As the fields of `Vocabulary`."""

    vocabulary: int | Literal["keep", "auto"]
    vocabulary_tolerance: float


class PruneKeywords(PruningKeywords, CalibrationKeywords, VocabularyKeywords, total=False):
    """What `seap.prune` takes beside the model and its tasks."""
