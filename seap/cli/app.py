"""What the command line's modules share: the application, its consoles, and the types of common options.

Results go to standard output, everything else to standard error; `--json` prints one JSON object and nothing else.
"""

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich.console import Console
from rich.markup import escape

import seap
from seap.disk.place import at_home
from seap.errors import UserError
from seap.evaluation.options import Evaluation, Measures
from seap.text.options import Calibration

errors = Console(stderr=True, soft_wrap=True, highlight=False)
results = Console(soft_wrap=True, highlight=False)

app = App(
    name="seap",
    help="Prune a large language model for the tasks you have: structured, training-free, and it really reloads.",
    version=seap.__version__,
    default_parameter=Parameter(negative=""),
    console=results,
    error_console=errors,
    help_format="markdown",
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)

given: set[str] = set()  # options that stand on the command line, as --out; set by `call`

Model = Annotated[
    str,
    Parameter(help="Model folder, GGUF file or Hub id (safetensors); `builtin` is the one that comes with seap."),
]
TaskOption = Annotated[
    tuple[str, ...],
    Parameter(
        name="--task",
        help="NAME, NAME=PATH or NAME=hub:OWNER/NAME[:CONFIG]; may be repeated. `seap tasks` lists names.",
    ),
]
ColumnsOption = Annotated[
    tuple[str, ...],
    Parameter(name="--columns", help="What your columns are, as question=goal,answer=sol1; of all --task NAME=…."),
]
Overwrite = Annotated[
    bool, Parameter(help="Replace what --out holds, as far as seap wrote it; nothing else is ever replaced.")
]
Json = Annotated[bool, Parameter(name="--json", help="Print one JSON object and nothing else.")]

Plan = Annotated[bool, Parameter(name="--plan", help="Print what would run and what it would cost; start nothing.")]


def call(words: Sequence[str]) -> None:
    """Run one command. Raises CycloptsError or UserError for what is refused."""
    words = [expanded(word) for word in words]
    given.clear()
    given.update(word.partition("=")[0] for word in words if word.startswith("--"))
    if words and not words[0].startswith("-") and "--help" not in words:
        check_alone(words[0])
    app(words, exit_on_error=False, print_error=False)


def expanded(argument: str) -> str:
    """`~/x` and `--out=~/x` with the home folder in place, which not every shell puts there; `~50 words` as it is."""
    option, equals, value = argument.rpartition("=") if argument.startswith("--") else ("", "", argument)
    return option + equals + (str(at_home(value)) if value == "~" or value.startswith("~/") else value)


def check_alone(command: str) -> None:
    """Raise UserError for a command that several processes would do several times over."""
    together = ("calibrate", "prune")
    if command not in together and "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            f"torchrun is for seap calibrate and seap prune; run seap {command} once, by itself, on what they wrote"
        )


AMOUNTS = ("--sparsity", "--target-size", "--target-speed", "--max-loss", "--max-acc-drop", "--min-agreement")


def check_one_amount() -> None:
    """Raise UserError where two options say how much to remove."""
    said = [name for name in AMOUNTS if name in given]
    if len(said) > 1:
        which, others = ("both", "one of them") if len(said) == 2 else ("all", "all but one of them")
        raise UserError(f"{' and '.join(said)} {which} say how much to remove; leave {others} out")


def note_without_effect(options: Iterable[str], why: str) -> None:
    """Say of those options that stand on the command line that they have no effect."""
    for name in options:
        if (option := f"--{name.replace('_', '-')}") in given:
            note(f"{option} has no effect {why}")


def bars(*, json: bool) -> bool:
    """Whether progress is shown."""
    return not json and not errors.quiet


def note(text: str) -> None:
    errors.print(f"[dim]note:[/dim] {escape(text)}")


def print_json(value: Any) -> None:
    from seap.files import to_json

    sys.stdout.write(to_json(value, indent=2) + "\n")


def read_alike(tests: Measures, calibration: Calibration) -> Evaluation:
    """Measures that read their text as calibration does: --template, --weigh and --images are of both."""
    return Evaluation(
        **asdict(tests), template=calibration.template, weigh=calibration.weigh, images=calibration.images
    )


def merged_options(*parts: Any) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for part in parts:
        options |= asdict(part)
    return options
