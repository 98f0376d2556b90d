"""Shares, sizes and speeds as people write them: 50%, 200MB, 1.8x; and panels of options. Imports no torch."""

import math
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


BYTES = {"kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2**10, "mib": 2**20, "gib": 2**30, "b": 1.0}


def size_in_bytes(option: str, value: float | str) -> float:
    """`200MB` → 2e8, `1.5 GiB` → 1.5 · 2³⁰; a bare number is bytes. Raises UserError for what is none."""
    text = str(value).strip().lower()
    unit = next((unit for unit in sorted(BYTES, key=len, reverse=True) if text.endswith(unit)), "")
    found = _positive(text.removesuffix(unit))
    if found is None:
        raise UserError(f"{option} {value}: expected a size, such as 200MB, 1.5GB or 800MiB")
    return found * BYTES.get(unit, 1.0)


def sizes_in_bytes(option: str, text: str) -> tuple[float, ...]:
    """`150MB,200MB` → (1.5e8, 2e8)."""
    return tuple(size_in_bytes(option, part) for part in text.split(","))


def speed_up(option: str, value: float | str) -> float:
    """`1.8x` or 1.8 → 1.8. Raises UserError for what isn't above 1."""
    text = str(value).strip().lower()
    found = _positive(text.removesuffix("x").removesuffix("×").removeprefix("×"))
    if found is None or found <= 1:
        raise UserError(f"{option} {value}: expected how many times as fast, above 1, such as 1.8x")
    return found


def _positive(text: str) -> float | None:
    try:
        found = float(text)
    except ValueError:
        return None
    return found if 0 < found < math.inf else None


def written_size(num_bytes: float) -> str:
    """`199.9 MB`"""
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.4g} {unit}"
    return f"{num_bytes:.0f} bytes"


def _converted(_: Any, tokens: Sequence[Any]) -> float:
    try:
        return share("", tokens[0].value)
    except UserError:
        raise ValueError(f"got {tokens[0].value!r}, {EXPECTED}") from None  # cyclopts names the option


Share = Annotated[float, Parameter(converter=_converted)]

# of options that nearly everybody needs, in whichever dataclass they are
FIRST = Parameter(group=Group("What is removed", sort_key=1))
