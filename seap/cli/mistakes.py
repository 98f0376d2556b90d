"""What a command line that can't be understood is told: in the words of seap's other errors."""

from collections.abc import Sequence

from cyclopts import MissingArgumentError
from cyclopts.exceptions import UnknownCommandError, UnknownOptionError


def told(error: Exception) -> str:
    """One line. error: a UserError, or what the parser raised."""
    if isinstance(error, MissingArgumentError) and error.argument is not None:
        return missing(error, error.argument.name)
    text = " ".join(str(error).split())
    if isinstance(error, UnknownCommandError):
        return f"{text.partition(' Available commands:')[0]} seap --help lists them"
    if isinstance(error, UnknownOptionError) and error.command_chain and not text.endswith("?"):
        return f"{text.removesuffix('.')}; {asked(error.command_chain)} --help lists its options"
    return text


def missing(error: MissingArgumentError, name: str) -> str:
    """That an argument, or an option's value, isn't there."""
    command = asked(error.command_chain or ())
    if error.keyword is not None or (error.argument is not None and error.argument.tokens):
        return f"{error.keyword or name} needs a value; {command} --help says which"
    mistyped = [word for word in error.unused_tokens or () if word.startswith("--")]
    beside = f" (and has no option {', '.join(mistyped)})" if mistyped else ""
    return f"{command} needs {name}{beside}; {command} --help says what it is"


def asked(chain: Sequence[str]) -> str:
    return " ".join(["seap", *chain])
