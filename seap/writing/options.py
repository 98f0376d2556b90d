"""Options of `seap corpus write`. Imports no torch, so that --help is quick."""

import math
from dataclasses import dataclass

from seap.errors import UserError, at_least, one_of
from seap.text.options import Template


@dataclass(frozen=True, kw_only=True)
class Writing:
    """How a model writes calibration text, and which of it is kept."""

    num: int = 200
    """How many texts are wanted."""
    max_new_tokens: int = 256
    """Longest text in tokens; one that isn't at its end by then is cut. Clipped to half of what the model can read."""
    min_tokens: int = 4
    """Shorter texts are dropped."""
    temperature: float = 1.0
    """Of sampling; 1 is the model's own distribution."""
    top_p: float = 0.95
    """Sample from the likeliest tokens that together have this probability."""
    shots: int = 4
    """Most examples shown before each text; they are drawn anew for each."""
    start_tokens: int = 4
    """Most tokens of another example that a text begins with, for models that look at nothing before a separator."""
    context_tokens: int = 1024
    """Longest prompt made of examples. From one that is longer, a stretch is shown and continued."""
    separator: str | None = None
    """What stands between examples and ends a text, as '\\n###\\n'; by default the tokenizer's end-of-text token."""
    slack: float = 1.5
    """How far outside of the examples' own perplexities (as a factor) a text's may lie."""
    attempts: int = 5
    """Give up after so many texts per one wanted."""
    batch_size: int = 32
    """Texts written at a time. It also decides, with the seed, what is sampled."""
    seed: int = 0
    """Draws the examples and samples the texts."""

    def __post_init__(self) -> None:
        for name in ("num", "shots", "attempts", "batch_size"):
            at_least(name, getattr(self, name), 1)
        at_least("min_tokens", self.min_tokens, 2)
        at_least("start_tokens", self.start_tokens, 0)
        at_least("max_new_tokens", self.max_new_tokens, self.min_tokens)
        at_least("context_tokens", self.context_tokens, 2)
        for name, low, high in (("temperature", 0, math.inf), ("top_p", 0, 1)):
            value = getattr(self, name)
            if not (low < value <= high and math.isfinite(value)):
                above = f" and at most {high}" if high < math.inf else ""
                raise UserError(f"--{name.replace('_', '-')} {value}: must be above {low}{above}")
        if not self.slack >= 1:
            raise UserError(f"--slack {self.slack}: must be at least 1, which allows the examples' own range")
        self._check_separator()

    def _check_separator(self) -> None:
        if self.separator is not None and not self.separator.strip():
            raise UserError("--separator is blank; texts have blank lines in them, so give a mark such as '\\n###\\n'")


@dataclass(frozen=True, kw_only=True)
class OneAnswer(Writing):
    """How one answer is written, which a line break may end."""

    def _check_separator(self) -> None:
        if self.separator == "":
            raise UserError("--separator is empty; leave it out, or give what ends an answer, such as '\\n\\n'")


@dataclass(frozen=True, kw_only=True)
class Answering:
    """How a model answers a task's prompts, and which of its answers are kept."""

    num: int | None = None
    """How many prompts to answer, drawn by seed; all of them by default."""
    template: Template = "auto"
    """auto: in the model's own chat template where it has one; chat; none."""
    max_new_tokens: int = 512
    """Longest answer in tokens; one that isn't at its end by then is dropped. Clipped to half of what can be read."""
    temperature: float = 0.7
    """Of sampling; 1 is the model's own distribution."""
    top_p: float = 0.95
    """Sample from the likeliest tokens that together have this probability."""
    attempts: int = 2
    """How often a prompt is tried until an answer is kept."""
    separator: str | None = None
    """Where an answer ends, beside the tokenizer's end of text: for models that go on with another example."""
    batch_size: int = 16
    """Answers written at a time. It also decides, with the seed, what is sampled."""
    seed: int = 0
    """Draws the prompts and samples the answers."""

    def __post_init__(self) -> None:
        one_of("template", self.template, Template)
        for name in ("attempts", "batch_size"):
            at_least(name, getattr(self, name), 1)
        if self.num is not None:
            at_least("num", self.num, 1)
        self.writing()

    def writing(self) -> Writing:
        """The same for an author, whose limits are checked there."""
        return OneAnswer(
            max_new_tokens=self.max_new_tokens,
            min_tokens=2,
            temperature=self.temperature,
            top_p=self.top_p,
            separator=self.separator,
            batch_size=self.batch_size,
            seed=self.seed,
        )
