"""What text a model is measured on. Imports no torch.

Field docstrings become the help texts of the command line.
"""

import re
from dataclasses import dataclass
from typing import Literal

from seap.errors import UserError, at_least, one_of

Template = Literal["auto", "chat", "none"]
Weigh = Literal["all", "answer", "generated"]
Images = Literal["count", "context", "none"]
Wording = Literal["plain", "asked", "listed", "both"]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a task's examples become tokens, and which of those count."""

    template: Template = "auto"
    """auto: turns, and prompts with answers, in the model's own chat template where it has one; chat; none."""
    weigh: Weigh = "all"
    """Whose tokens count (and each calibration row's first): all; those of answers; those of answers that the model
    itself wrote (`corpus answer`)."""
    images: Images = "count"
    """Of data with images, for models that see: count as text does; context: seen, but only text counts; none."""

    def __post_init__(self) -> None:
        one_of("template", self.template, Template)
        one_of("weigh", self.weigh, Weigh)
        one_of("images", self.images, Images)


@dataclass(frozen=True, kw_only=True)
class Calibration(Reading):
    """What text the activations are measured on."""

    num_texts: int = 256
    """How many texts of the task's training part to draw (all of them when it has fewer)."""
    seq_len: int = 2048
    """Longest sequence in tokens; longer texts are cut. Clipped to what the model can read."""
    pack: bool = False
    """Join texts into full sequences of --seq-len tokens instead of one text per row."""
    max_tokens: int | None = None
    """Stop after so many tokens, so that methods and tasks can be compared at equal cost."""
    batch_tokens: int = 4096
    """Most tokens in one forward pass, padding included."""
    second_moments: bool = False
    """Also collect the matrices of second moments (C² float64 numbers per axis)."""
    moments: str = "full"
    """full, or block:N for second moments within blocks of at most N inputs: less memory and time, somewhat worse."""
    wording: Wording = "both"
    """Of multiple choice: plain, a question and its right choice; asked, the same as `Question: ... Answer: ...`;
    listed, asked with the choices, a line each, in the chat template where there is one; both, asked and listed by
    turns, for a model that is to choose and to say."""
    seed: int = 0
    """Draws the texts and seeds the random score. Single files are split the same way whatever it is."""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("wording", self.wording, Wording)
        at_least("num_texts", self.num_texts, 1)
        at_least("seq_len", self.seq_len, 2)
        at_least("batch_tokens", self.batch_tokens, 1)
        if self.max_tokens is not None:
            at_least("max_tokens", self.max_tokens, 2)
        if not re.fullmatch(r"full|block:[1-9]\d*", self.moments):
            raise UserError(f"--moments {self.moments}: must be full, or block:N such as block:1024")
