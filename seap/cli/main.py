"""The command line: options and defaults are those of each room; what is slow to import is imported when used."""

import sys
from collections.abc import Sequence

from cyclopts import CycloptsError
from rich.markup import escape

from seap import threads
from seap.allocation import keep_freed
from seap.cli import bench as bench  # the commands of these join the application
from seap.cli import corpus as corpus
from seap.cli import deploy as deploy
from seap.cli import evidence as evidence
from seap.cli import frontier as frontier
from seap.cli import inspecting as inspecting
from seap.cli import look as look
from seap.cli import prune as prune
from seap.cli import run as run_recipes  # noqa: F401
from seap.cli import serving as serving
from seap.cli import stages as stages
from seap.cli.app import app as app
from seap.cli.app import call, errors
from seap.cli.globals import Globals, save_recipe, stop_cleanly
from seap.cli.mistakes import told
from seap.cli.panels import Folded
from seap.errors import UserError


def run(asked: Globals) -> None:
    """Do what a command line asks for."""
    words, Folded.everything = asked.words, asked.everything
    if "--config" in asked.files:
        from seap.cli.recipes import settings_of

        words = settings_of(words, asked.files["--config"])
    if "--save-recipe" in asked.files:
        save_recipe(words, asked.files["--save-recipe"])
    if words and not words[0].startswith("-") and "--help" not in words and not asked.verbose:
        from seap.models.loader import quiet_transformers

        quiet_transformers()
    try:
        call(words)
    except (UserError, CycloptsError):
        if "--save-recipe" in asked.files:
            asked.files["--save-recipe"].unlink(missing_ok=True)  # of a command that was refused
        raise


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code is 0, or 1 for anything refused, whoever noticed it."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    stop_cleanly()
    threads.prepare()
    keep_freed()
    errors.quiet = False
    try:
        asked = Globals.of(arguments)
        errors.quiet = asked.quiet
        run(asked)
        return 0
    except (UserError, CycloptsError) as error:
        if "--debug" in arguments:
            raise
        errors.quiet = False
        errors.print(f"[bold red]error:[/bold red] {escape(told(error))}")
        return 1
    except KeyboardInterrupt:
        errors.print("stopped; nothing half written was left behind")
        return 130
    finally:
        errors.quiet = False


if __name__ == "__main__":
    sys.exit(main())
