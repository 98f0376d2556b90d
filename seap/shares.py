"""Shares as people write them, 0.5 or 50%, and the panels that options stand in. Imports no torch."""

from collections.abc import Sequence
from typing import Annotated, Any

from cyclopts import Group, Parameter

from seap.errors import UserError

EXPECTED = "expected a number from 0 to 1, such as 0.5, or a percentage, such as 50%"


def share(option: str, value: float | str) -> float:
    """`0.5`, `50%` or `50 %` → 0.5. Raises UserError for what is none."""
    text = str(value).strip()
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise UserError(f"{option} {value}: {EXPECTED}") from None


def shares(option: str, text: str) -> tuple[float, ...]:
    """`0.2,50%` → (0.2, 0.5). Raises UserError for what isn't all shares."""
    try:
        return tuple(share(option, part) for part in text.split(","))
    except UserError:
        raise UserError(f"{option} {text}: expected numbers with commas, such as 0.2,0.5, or percentages") from None


def _converted(_: Any, tokens: Sequence[Any]) -> float:
    try:
        return share("", tokens[0].value)
    except UserError:
        raise ValueError(f"got {tokens[0].value!r}, {EXPECTED}") from None  # cyclopts names the option


Share = Annotated[float, Parameter(converter=_converted)]

# of options that nearly everybody needs, in whichever dataclass they are
FIRST = Parameter(group=Group("What is removed", sort_key=1))
