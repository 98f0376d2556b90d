"""The command line. Options and defaults are those of seap.config; what takes long to import is imported when used.

Results go to standard output, everything else to standard error; `--json` prints one JSON object and nothing else.
"""

import json as json_format
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich.console import Console
from rich.markup import escape

import seap
from seap.config import Calibration, Dtype, Pruning
from seap.errors import UserError

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
)

Flat = Parameter(name="*")
Model = Annotated[
    str, Parameter(help="Model folder or Hub id (safetensors); `builtin` is the one that comes with seap.")
]
TaskOption = Annotated[
    tuple[str, ...],
    Parameter(name="--task", help="NAME or NAME=PATH; may be repeated. See `seap tasks` for the names."),
]
Json = Annotated[bool, Parameter(name="--json", help="Print one JSON object and nothing else.")]
DtypeOption = Annotated[Dtype, Parameter(help="Arithmetic and weights; auto is the checkpoint's own.")]
Device = Annotated[str, Parameter(help="cpu, cuda, cuda:1 …; auto takes a GPU if there is one.")]
Trust = Annotated[bool, Parameter(help="Run code that comes with the checkpoint. Only for sources that you trust.")]


def note(text: str) -> None:
    errors.print(f"[dim]note:[/dim] {escape(text)}")


def print_json(value: Any) -> None:
    sys.stdout.write(json_format.dumps(value, indent=2) + "\n")


def merged_options(*parts: Any) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for part in parts:
        options |= asdict(part)
    return options


@app.command
def prune(
    model: Model,
    /,
    *,
    out: Annotated[Path, Parameter(help="Folder of the pruned checkpoint; must not exist or be empty.")],
    task: TaskOption = (),
    pruning: Annotated[Pruning, Flat] = Pruning(),  # noqa: B008
    calibration: Annotated[Calibration, Flat] = Calibration(),  # noqa: B008
    stats: Annotated[tuple[Path, ...], Parameter(help="Statistics of `seap calibrate`, in place of --task.")] = (),
    mask_file: Annotated[Path | None, Parameter(help="A mask of `seap mask`, in place of choosing one.")] = None,
    dtype: DtypeOption = "auto",
    device: Device = "auto",
    overwrite: Annotated[bool, Parameter(help="Replace what --out holds.")] = False,
    trust_remote_code: Trust = False,
    json: Json = False,
) -> None:
    """Cut a model down for a task and save it as a checkpoint that reloads.

    Example: `seap prune builtin --task arithmetic --sparsity 0.5 --out small`
    """
    from seap.commands import prune_to_folder

    report = prune_to_folder(
        model,
        out,
        tasks=task,
        stats_files=stats,
        mask_file=mask_file,
        overwrite=overwrite,
        progress=not json,
        loading={"dtype": dtype, "device": device, "trust_remote_code": trust_remote_code},
        **merged_options(pruning, calibration),
    )
    for text in report.notes:
        note(text)
    if json:
        print_json(report.to_dict() | {"out": str(out)})
        return
    from seap.describe import show_report

    show_report(report.to_dict(), results)
    results.print(f"saved [bold]{escape(str(out))}[/bold]; look at it with: seap inspect {escape(str(out))}")


@app.command
def calibrate(
    model: Model,
    /,
    *,
    task: TaskOption,
    out: Annotated[Path, Parameter(help="Folder for TASK.safetensors.")] = Path("stats"),
    calibration: Annotated[Calibration, Flat] = Calibration(),  # noqa: B008
    dtype: DtypeOption = "auto",
    device: Device = "auto",
    trust_remote_code: Trust = False,
    json: Json = False,
) -> None:
    """Measure which parts of a model each task uses: one statistics file per task, made once and used many times.

    Example: `seap calibrate builtin --task arithmetic --task calendar --out stats`
    """
    from seap.commands import calibrate_to_files

    loading = {"dtype": dtype, "device": device, "trust_remote_code": trust_remote_code}
    made = calibrate_to_files(model, task, out, calibration, loading=loading, progress=not json)
    if json:
        print_json({"files": made})
        return
    for entry in made:
        state = (
            "was there already" if entry["skipped"] else f"{entry['num_tokens']:,} tokens of {entry['num_texts']} texts"
        )
        results.print(f"{escape(entry['path'])}: {state}")


@app.command
def mask(
    model: Model,
    /,
    *stats: Annotated[Path, Parameter(help="Statistics of `seap calibrate`.")],
    out: Annotated[Path, Parameter(help="The mask file, such as masks/gsm8k.safetensors.")],
    pruning: Annotated[Pruning, Flat] = Pruning(),  # noqa: B008
    seed: Annotated[int, Parameter(help="Seeds the random score.")] = 0,
    dtype: DtypeOption = "auto",
    trust_remote_code: Trust = False,
    json: Json = False,
) -> None:
    """Choose what stays, from statistics that are there already; reads the model's weights but runs nothing.

    Example: `seap mask builtin stats/arithmetic.safetensors --sparsity 0.5 --out masks/arithmetic.safetensors`
    """
    from seap.commands import mask_to_file

    loading = {"dtype": dtype, "device": "cpu", "trust_remote_code": trust_remote_code}
    about = mask_to_file(model, stats, out, pruning, seed=seed, loading=loading)
    if json:
        print_json(about)
        return
    state = "was there already" if about["skipped"] else f"realised sparsity {about['realised_sparsity']:.4f}"
    results.print(f"{escape(str(out))}: {state}")


@app.command
def merge(
    *stats: Annotated[Path, Parameter(help="Statistics files of one model.")],
    out: Annotated[Path, Parameter(help="The merged statistics file.")],
    task: Annotated[str | None, Parameter(help="Its task's name, where the parts' names differ.")] = None,
    json: Json = False,
) -> None:
    """Add up statistics: shards of one task (exactly as if made in one go), or several tasks pooled.

    Example: `seap merge shard0/gsm8k.safetensors shard1/gsm8k.safetensors --out stats/gsm8k.safetensors`
    """
    from seap.commands import merge_files

    about = merge_files(stats, out, task=task)
    if json:
        print_json(about | {"path": str(out)})
        return
    results.print(f"{escape(str(out))}: task {about['task']}, {about['num_tokens']:,} tokens of {about['parts']} parts")


@app.command
def inspect(
    path: Annotated[str, Parameter(help="A model folder, pruned or dense, or a statistics or mask file.")],
    /,
    *,
    json: Json = False,
) -> None:
    """Explain any artefact: what it is, what made it, and what is in it.

    Example: `seap inspect small`
    """
    from seap.describe import describe, show

    found = describe(path)
    if json:
        print_json(found)
    else:
        show(found, results)


@app.command
def tasks(*, json: Json = False) -> None:
    """List the tasks that have a name; any other is given as NAME=PATH.

    Example: `seap tasks`
    """
    from seap import builtin, hub

    named = {"builtin": sorted(builtin.TASKS), "hub": sorted(hub.TASKS)}
    if json:
        print_json(named)
        return
    results.print("[bold]of the built-in model[/bold]: " + ", ".join(named["builtin"]))
    results.print("[bold]from the Hub[/bold] (needs seap\\[hub]): " + ", ".join(named["hub"]))
    results.print(
        "[bold]your own[/bold]: NAME=PATH, a JSONL, CSV, Parquet or text file, or a folder with train.* and test.*"
    )


@app.command
def demo(
    *,
    out: Annotated[Path, Parameter(help="Where the demo's checkpoint and table are written.")] = Path("demo-out"),
    num_items: Annotated[int, Parameter(help="Test items per task.")] = 40,
    json: Json = False,
) -> None:
    """Prune the built-in model for its own tasks by five methods and compare them: two or three minutes, offline.

    Example: `seap demo`
    """
    from seap.demo import run

    run(out, num_items=num_items, json=json, console=results)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code is 0, 1 for anything refused, 2 for a wrong command line."""
    debug = "--debug" in (arguments := list(sys.argv[1:] if arguments is None else arguments))
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        if arguments and not arguments[0].startswith("-") and "--help" not in arguments:
            from seap.checkpoint import quiet_transformers

            quiet_transformers()
        app(arguments)
        return 0
    except UserError as error:
        if debug:
            raise
        errors.print(f"[bold red]error:[/bold red] {escape(str(error))}")
        return 1
    except KeyboardInterrupt:
        errors.print("stopped; nothing half written was left behind")
        return 130


if __name__ == "__main__":
    sys.exit(main())
