"""What a model is tested on, and how. Imports no torch.

Field docstrings become the help texts of the command line.
"""

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from cyclopts import Parameter

from seap.errors import UserError, at_least, one_of
from seap.text.options import Reading

Metric = Literal["auto", "multiple-choice", "exact-match", "pass@1", "continuation", "loss"]
Say = Literal["open", "listed"]


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What a model is tested on, and how."""

    metric: Metric = "auto"
    """auto: multiple choice, generated exact match, pass@1 or true continuation among four, as the columns allow; of
    texts too short for that the loss alone."""
    num_items: int = 200
    """Most test items or texts per task."""
    num_windows: int | None = None
    """Most windows that the loss is measured on; by default as many as --num-items."""
    say_items: int = 0
    """So many items of multiple choice are also answered in words: what is said, whether it ends, whether it loops."""
    say: Say = "open"
    """How these are asked: open, without their choices (recall); listed, with them."""
    window: int = 512
    """Length in tokens of the windows that loss and perplexity are measured on. Clipped to what the model can read."""
    stride: int | None = None
    """Tokens that each window scores; the ones before are context. By default the whole window."""
    context: Annotated[int, Parameter(name="--continuation-context")] = 64
    """Tokens of context in the choice of the true continuation among four."""
    continuation: int = 32
    """Tokens of each continuation."""
    max_new_tokens: int = 256
    """Longest generated answer."""
    run_generated_code: bool = False
    """Run the programs that the model writes for tasks of code (pass@1), each in a process of its own with limits on
    time, memory, files and network. That holds against what models write, not against attackers: docs/security.md."""
    program_seconds: int = 10
    """That one such program may take, with its checks."""
    extract: str | None = None
    """Regular expression whose first group (or whole match) is the answer, in what is generated and in gold."""
    ragged_choices: bool = False
    """Accept items whose numbers of choices differ, so that chance differs from item to item."""
    test_batch_tokens: int | None = None
    """Most tokens in one forward pass of a test; by default what fits in memory."""
    test_seed: int = 0
    """Draws the test items and the distractors."""

    def __post_init__(self) -> None:
        one_of("metric", self.metric, Metric)
        one_of("say", self.say, Say)
        at_least("continuation_context", self.context, 1)
        least = {"num_items": 2, "window": 2, "continuation": 1, "max_new_tokens": 1}
        least |= {"program_seconds": 1}
        for name, value in least.items():
            at_least(name, getattr(self, name), value)
        if self.num_windows is not None:
            at_least("num_windows", self.num_windows, 2)
        if self.say_items:
            at_least("say_items", self.say_items, 2)
        if self.stride is not None and not 1 <= self.stride <= self.window:
            raise UserError(f"--stride {self.stride}: must be from 1 to --window {self.window}")
        if self.test_batch_tokens is not None:
            at_least("test_batch_tokens", self.test_batch_tokens, 1)
        if self.extract is not None:
            _compiled(self.extract)


@dataclass(frozen=True, kw_only=True)
class Evaluation(Measures, Reading):
    """What a model is tested on, and how the text of it becomes tokens."""

    def __post_init__(self) -> None:
        Reading.__post_init__(self)
        Measures.__post_init__(self)


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UserError(f"--extract {pattern!r} is no regular expression: {error}") from error
