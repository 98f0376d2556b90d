"""What every command takes beside its own options, and how it ends."""

import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seap.cli.app import app, expanded, note
from seap.errors import UserError

GLOBALS = """Beside its own options every command takes: `--config FILE` (options from a YAML file),
`--save-recipe FILE` (write the command as a recipe of `seap run`, and run it), `-q`, `--quiet` (no notes and no
progress), `-v`, `--verbose` (what libraries say too), `--debug` (whole tracebacks), `--help-all` (`--help` with every
option explained).

Exit codes: 0 done, 1 refused or failed, with one line on standard error that says why, 130 interrupted, 143 terminated.
"""
app.help = f"{app.help}\n\n{GLOBALS}"
app.register_install_completion_command(help="Install completion for the shell that this runs in.")


@dataclass
class Globals:
    """What stands on a command line beside the command's own options."""

    words: list[str]
    debug: bool = False
    quiet: bool = False
    verbose: bool = False
    everything: bool = False  # in the help
    files: dict[str, Path] = field(default_factory=dict)  # by option

    @classmethod
    def of(cls, arguments: Sequence[str]) -> "Globals":
        """Take them out of the words. Raises UserError for one without its file."""
        found, rest = cls([]), list(arguments)
        flags = {"--debug": "debug", "-q": "quiet", "--quiet": "quiet", "-v": "verbose", "--verbose": "verbose"}
        flags["--help-all"] = "everything"
        while rest:
            word = rest.pop(0)
            name, equals, value = word.partition("=")
            if word in flags:
                setattr(found, flags[word], True)
            elif name in ("--config", "--save-recipe"):
                if not equals and not rest:
                    raise UserError(f"{name} needs a file, such as {name} recipe.yaml")
                found.files[name] = Path(expanded(value if equals else rest.pop(0)))
            else:
                found.words.append(word)
        if found.everything:
            found.words.append("--help")
        return found


def save_recipe(words: Sequence[str], path: Path) -> None:
    """Write a command line as a recipe; a file that is there stays."""
    from seap.cli.recipes import as_recipe

    text = as_recipe([expanded(word) for word in words])
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise UserError(f"--save-recipe {path} is there already; name another file") from error
    except OSError as error:
        raise UserError(f"--save-recipe {path}: {error.strerror or error}") from error
    note(f"written: {path}; run it with: seap run {path}")


def stop_cleanly() -> None:
    """Have SIGTERM and SIGHUP end the command as an interrupt does; a second one doesn't disturb the cleaning up."""
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    numbers = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]  # as under nohup

    def stop(number: int, _: Any) -> None:
        for other in numbers:
            signal.signal(other, signal.SIG_IGN)
        sys.exit(128 + number)

    for number in numbers:
        signal.signal(number, stop)
