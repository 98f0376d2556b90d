"""Options of the commands that route, pack and serve. Imports no torch.

Field docstrings become the help texts of the command line.
"""

from dataclasses import dataclass
from typing import Literal

from seap.config import at_least
from seap.errors import UserError

Fallback = Literal["dense", "general"]


@dataclass(frozen=True, kw_only=True)
class Routing:
    """How a router is made."""

    num_prompts: int = 256
    """Most prompts per task to learn from; as many others are held out to test it."""
    depth: int | None = None
    """First layers whose output is a feature too; by default those that no network of --masks changes, or none."""
    max_prompt_tokens: int = 256
    """Tokens of a prompt that the router reads, from its beginning."""
    abstain: float = 0.02
    """Share of held-out prompts of the known tasks that may be given up; what is less sure than those is no task's."""
    plain: bool = False
    """Learn from the prompts as they are alone, not also wrapped in a chat, without template, shortened and altered."""
    router_seed: int = 0
    """Draws the prompts and the words that altered ones lose."""

    def __post_init__(self) -> None:
        at_least("num_prompts", self.num_prompts, 10)
        at_least("max_prompt_tokens", self.max_prompt_tokens, 1)
        if self.depth is not None:
            at_least("depth", self.depth, 0)
        if not 0 <= self.abstain < 0.5:
            raise UserError(f"--abstain {self.abstain}: must be at least 0 and below 0.5, such as 0.02")
