"""The options of `options.py` as keyword arguments, for editors and type checkers; a test holds the two together."""

from seap.evaluation.options import Metric, Say
from seap.text.keywords import ReadingKeywords


class EvaluationKeywords(ReadingKeywords, total=False):
    """As the fields of `Evaluation`."""

    metric: Metric
    num_items: int
    num_windows: int | None
    say_items: int
    say: Say
    window: int
    stride: int | None
    context: int
    continuation: int
    max_new_tokens: int
    run_generated_code: bool
    program_seconds: int
    extract: str | None
    ragged_choices: bool
    test_batch_tokens: int | None
    test_seed: int
