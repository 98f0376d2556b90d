"""What the command line's modules share: the application, its consoles, and the types of common options.

Results go to standard output, everything else to standard error; `--json` prints one JSON object and nothing else.
"""

import sys
from dataclasses import asdict, replace
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich.console import Console
from rich.markup import escape

import seap
from seap.evaluation.options import Evaluation
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

given: set[str] = set()  # options that stand on the command line, as --out; set by `cli.main`

Flat = Parameter(name="*")
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


def note(text: str) -> None:
    errors.print(f"[dim]note:[/dim] {escape(text)}")


def print_json(value: Any) -> None:
    from seap.files import to_json

    sys.stdout.write(to_json(value, indent=2) + "\n")


def read_alike(evaluation: Evaluation, calibration: Calibration) -> Evaluation:
    """A test that reads its text as calibration does: --template and --weigh are of both."""
    return replace(evaluation, template=calibration.template, weigh=calibration.weigh)


def merged_options(*parts: Any) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for part in parts:
        options |= asdict(part)
    return options
