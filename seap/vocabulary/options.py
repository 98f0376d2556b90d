"""How much of the vocabulary stays. Imports no torch, so that --help is quick.

Field docstrings become the help texts of the command line.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from seap.errors import UserError, at_least


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """How much of the vocabulary stays."""

    vocabulary: int | Literal["keep", "auto"] = "keep"
    """Tokens that stay, those that the task uses first: a number; auto, the fewest that cost at most
    --vocabulary-tolerance on held-out text of the task or, where a whole model's size or speed is asked (--target-size,
    --target-speed, --cost), as many as leave least damage together with the layers; keep leaves all. Any text can still
    be read and written, rare words in smaller pieces."""
    vocabulary_tolerance: float = 0.002
    """With --vocabulary auto alone: most that held-out text may lose, in nats per byte, with 95% confidence."""

    def __post_init__(self) -> None:
        if isinstance(self.vocabulary, int) and not isinstance(self.vocabulary, bool):
            at_least("vocabulary", self.vocabulary, 1)
        elif self.vocabulary not in ("keep", "auto"):
            raise UserError(f"--vocabulary {self.vocabulary}: must be keep, auto or a number of tokens, such as 8192")
        if not (isinstance(self.vocabulary_tolerance, int | float) and 0 <= self.vocabulary_tolerance < math.inf):
            raise UserError(
                f"--vocabulary-tolerance {self.vocabulary_tolerance}: must be nats per byte from 0 up, such as 0.002"
            )

    @property
    def is_cut(self) -> bool:
        return self.vocabulary != "keep"

    def unused(self) -> list[str]:
        """Options set away from their default that have no effect on this run."""
        changed = self.vocabulary_tolerance != type(self).vocabulary_tolerance
        return ["--vocabulary-tolerance"] if changed and self.vocabulary != "auto" else []


NAMES = tuple(field.name for field in fields(Vocabulary))


def vocabulary_of(options: Mapping[str, Any]) -> tuple[Vocabulary, dict[str, Any]]:
    """Keyword arguments → what they say of the vocabulary, and the others."""
    own = {name: options[name] for name in NAMES if name in options}
    return Vocabulary(**own), {name: value for name, value in options.items() if name not in NAMES}
