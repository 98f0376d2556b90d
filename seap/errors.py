"""Errors that a user can act on."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, get_args


class UserError(ValueError):
    """A mistake of the user's: the message says what was wrong, what was got, what is allowed and what to do."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """`unknown task 'gms8k'; did you mean 'gsm8k'? known: …`"""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f" did you mean {close[0]!r}?" if close else ""
    return UserError(f"unknown {kind} {name!r};{hint} known: {', '.join(names)}")


def first_line(error: BaseException) -> str:
    """Of an error's message, or its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def missing_extra(package: str, extra: str, purpose: str) -> UserError:
    """What to install when an optional dependency isn't there."""
    return UserError(f'{purpose} needs {package}, which is not installed: pip install "seap[{extra}]"')


def refuse(target: str, reasons: Mapping[str, bool], instead: str) -> None:
    """Raise UserError with the first reason that applies. reasons: what stands against it → whether it does."""
    for reason, applies in reasons.items():
        if applies:
            raise UserError(f"{target}: {reason}; {instead}")


def one_of(kind: str, value: str, allowed: Any) -> None:
    """Raise UserError unless the value is one of a Literal's."""
    names = get_args(allowed)
    if value not in names:
        raise unknown(kind, value, names)


def at_least(name: str, value: int, least: int) -> None:
    """Raise UserError for a number below the least that an option allows."""
    if value < least:
        raise UserError(f"--{name.replace('_', '-')} {value}: must be at least {least}")
