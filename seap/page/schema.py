"""What a result file must say for its page: the types of every entry that a section reads."""

from typing import Annotated, Any

from msgspec import Meta, Struct

from seap.schema import Count, MaybeNumber, MaybeText, Number, Row

Matrix = list[list[Number]]
Positive = Annotated[float, Meta(gt=0, le=1e300)]


class Common(Struct, kw_only=True):
    model: MaybeText = None
    family: MaybeText = None
    prunable_params: MaybeNumber = None
    params: MaybeNumber = None
    machine: dict[str, Any] | None = None
    versions: dict[str, Any] | None = None
    options: dict[str, Any] | None = None
    seconds: MaybeNumber = None
    commit: MaybeText = None
    command: MaybeText = None


class Overlap(Struct, kw_only=True):
    """Of every two tasks' masks."""

    axis: str
    sparsity: Number
    method: MaybeText = None
    seed: MaybeNumber = None
    tasks: list[str] = []
    jaccard: Matrix = []
    expected: MaybeNumber = None
    per_layer: list[MaybeNumber] = []
    expected_per_layer: list[MaybeNumber] | None = None

    def __post_init__(self) -> None:
        square(self.jaccard, self.tasks, "jaccard")
        if self.expected_per_layer and len(self.expected_per_layer) != len(self.per_layer):
            raise ValueError("`expected_per_layer` and `per_layer` differ in length")


class ComparedRow(Row, kw_only=True):
    """With what the model wrote."""

    said: MaybeNumber = None
    said_stderr: MaybeNumber = None
    recall: MaybeNumber = None
    recall_stderr: MaybeNumber = None
    loops: MaybeNumber = None
    loops_stderr: MaybeNumber = None
    endless: MaybeNumber = None
    endless_stderr: MaybeNumber = None


class Compare(Common, kw_only=True):
    model: str
    rows: list[ComparedRow]
    overlap: list[Overlap] | None = None

    def __post_init__(self) -> None:
        depths = {len(row.layers) for row in self.rows if row.layers}
        if len(depths) > 1:
            raise ValueError(f"`rows` have {' and '.join(map(str, sorted(depths)))} `layers`; they are of one model")


class Point(Struct):
    x: Number
    y: Number
    task: str


class Map(Struct, kw_only=True):
    points: list[Point] | None = None
    method: str = "projection"
    layer: int | None = None


class Activation(Struct, kw_only=True):
    tasks: list[str]
    values: list[list[list[MaybeNumber]]]  # by task, layer and unit
    axis: str
    measure: MaybeText = None

    def __post_init__(self) -> None:
        uneven = len({len(layers) for layers in self.values}) > 1
        if len(self.values) != len(self.tasks) or uneven or len({len(row) for one in self.values for row in one}) > 1:
            raise ValueError("`values` isn't as many numbers for each of `tasks`")


class Stability(Struct, kw_only=True):
    task: str
    axis: str
    sparsity: Number
    num_texts: Count
    jaccard: Number
    same_fraction: MaybeNumber = None
    expected: MaybeNumber = None


class Enough(Struct, kw_only=True):
    task: str
    num_texts: Count
    jaccard: Number
    sparsity: MaybeNumber = None
    expected: MaybeNumber = None
    by_axis: dict[str, MaybeNumber] | None = None


class Analyze(Common, kw_only=True):
    model: str
    map: Map | None = None
    silhouette: list[MaybeNumber] | None = None
    activation: list[Activation] | Activation | None = None
    overlap: list[Overlap] | None = None
    stability: list[Stability] | None = None
    enough: list[Enough] | None = None


class Speed(Struct, kw_only=True):
    phase: str
    batch: Count
    ratio: Positive
    mode: str = "eager"
    model: MaybeText = None
    ceiling: Positive | None = None
    dense_tokens_per_s: MaybeNumber = None
    pruned_tokens_per_s: MaybeNumber = None
    ratio_low: MaybeNumber = None
    ratio_high: MaybeNumber = None


class Bench(Common, kw_only=True):
    rows: list[Speed]


class Ratio(Struct, kw_only=True):
    ratio: Positive
    ratio_low: MaybeNumber = None
    ratio_high: MaybeNumber = None
    dense_tokens_per_s: MaybeNumber = None


class SweepRow(Struct, kw_only=True):
    task: str
    realised_sparsity: Number
    added_loss: Number
    ppl: Number
    bytes: Number
    disagreement: MaybeNumber = None
    loss: MaybeNumber = None
    acc: MaybeNumber = None
    acc_stderr: MaybeNumber = None
    added_loss_stderr: MaybeNumber = None
    relative_loss: MaybeNumber = None
    relative_loss_upper: MaybeNumber = None
    speed: dict[str, Ratio] | None = None


class Sweep(Common, kw_only=True):
    model: str
    rows: list[SweepRow]


KINDS: dict[str, type[Struct]] = {"compare": Compare, "analyze": Analyze, "bench": Bench, "sweep": Sweep}


def square(matrix: Matrix, names: list[str], what: str) -> None:
    """Raise ValueError unless a matrix has a row and a column for each name, or isn't there."""
    if matrix and (len(matrix) != len(names) or any(len(row) != len(names) for row in matrix)):
        raise ValueError(f"`{what}` isn't of {len(names)} rows and columns, as `tasks` are")
