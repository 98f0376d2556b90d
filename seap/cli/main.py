"""The command line: options and defaults are those of each room; what is slow to import is imported when used."""

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from rich.markup import escape

from seap import threads
from seap.cli import bench as bench  # the commands of these seven join the application
from seap.cli import corpus as corpus
from seap.cli import deploy as deploy
from seap.cli import evidence as evidence
from seap.cli import frontier as frontier
from seap.cli import serving as serving
from seap.cli import stages as stages
from seap.cli.app import (
    ColumnsOption,
    Flat,
    Json,
    Model,
    Overwrite,
    Plan,
    TaskOption,
    app,
    errors,
    given,
    merged_options,
    note,
    print_json,
    read_alike,
    results,
)
from seap.cli.plan import print_plan
from seap.errors import UserError
from seap.evaluation.options import Evaluation
from seap.evidence.options import Promise
from seap.models.options import Loading, Streaming
from seap.selection.options import Pruning
from seap.text.options import Calibration
from seap.vocabulary.options import Vocabulary


@app.command
def prune(
    model: Model,
    /,
    *,
    out: Annotated[Path, Parameter(help="Folder of the pruned checkpoint; must not exist or be empty.")],
    task: TaskOption = (),
    columns: ColumnsOption = (),
    pruning: Annotated[Pruning, Flat] = Pruning(),  # noqa: B008
    promise: Annotated[Promise, Flat] = Promise(),  # noqa: B008
    calibration: Annotated[Calibration, Flat] = Calibration(),  # noqa: B008
    vocabulary: Annotated[Vocabulary, Flat] = Vocabulary(),  # noqa: B008
    evaluation: Annotated[Evaluation, Flat] = Evaluation(),  # noqa: B008
    stats: Annotated[tuple[Path, ...], Parameter(help="Statistics of `seap calibrate`, in place of --task.")] = (),
    mask_file: Annotated[Path | None, Parameter(help="A mask of `seap mask`, in place of choosing one.")] = None,
    general: Annotated[str | None, Parameter(help="Text for --mix and --vocabulary, NAME or NAME=PATH.")] = None,
    loading: Annotated[Loading, Flat] = Loading(),  # noqa: B008
    streaming: Annotated[Streaming, Flat] = Streaming(),  # noqa: B008
    save_dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        Parameter(help="Of the weights on disk; by default --dtype, and with auto the checkpoint's own."),
    ] = None,
    overwrite: Overwrite = False,
    ray: Annotated[int | None, Parameter(help="Deal the text out to so many processes of Ray's (seap[ray]).")] = None,
    verify: Annotated[bool, Parameter(help="Load and run what was written before it takes its name.")] = True,
    plan: Plan = False,
    json: Json = False,
) -> None:
    """Cut a model down for a task and save it as a checkpoint that reloads.

    In place of --sparsity a promise can be given, such as --max-loss 1%: the largest sparsity is found that keeps it on
    the task's held-out text. The options of a test (--num-items, --window …) are about that text.

    Example: `seap prune builtin --task arithmetic --sparsity 0.5 --out small`
    """
    from seap.activations.ranks import Ranks
    from seap.evidence.commands import promise_to_folder
    from seap.pruning.commands import prune_to_folder
    from seap.pruning.estimate import Estimate, begin, plan_prune
    from seap.text.tasks import with_columns

    check_promise(promise, evaluation)
    task = with_columns(task, columns)
    settings: dict[str, Any] = dict(
        tasks=task,
        stats_files=stats,
        mask_file=mask_file,
        general=general,
        overwrite=overwrite,
        verify=verify,
        progress=not json,
        loading=asdict(loading),
        save_dtype=save_dtype,
        streaming=streaming,
        **merged_options(pruning, calibration, vocabulary),
    )

    def estimate() -> Estimate:
        return plan_prune(
            model,
            out,
            pruning=pruning,
            calibration=calibration,
            vocabulary=vocabulary,
            tasks=task,
            stats_files=stats,
            is_masked=mask_file is not None,
            num_sparsities=len(promise.sparsities) if promise.kind else 1,
            loading=asdict(loading),
            save_dtype=save_dtype,
            streaming=streaming,
        )

    is_first = Ranks.here().is_first
    if plan:
        if is_first:
            print_plan(estimate(), json=json)
        return
    settings["ready"] = lambda: begin(estimate(), None if json else note)
    if ray is not None:
        from seap.pruning.together import prune_on_ray

        if promise.kind:
            raise UserError("a promise is kept by one process; give a --sparsity with --ray")
        report = prune_on_ray(model, out, ray, **settings)
    elif promise.kind:
        report = promise_to_folder(model, out, promise, read_alike(evaluation, calibration), **settings)
    else:
        report = prune_to_folder(model, out, **settings)
    if not is_first:
        return
    for text in report.notes:
        note(text)
    if json:
        print_json(report.to_dict() | {"out": str(out)})
        return
    from seap.page.describe import show_report

    show_report(report.to_dict(), results)
    if promise.kind:
        from seap.page.terminal import show_promise

        show_promise(report.to_dict()["promise"], results)
    results.print(f"saved [bold]{escape(str(out))}[/bold]; look at it with: seap inspect {escape(str(out))}")


def check_promise(promise: Promise, evaluation: Evaluation) -> None:
    """A sparsity and a promise don't go together; without a promise, what is said about one has no effect."""
    if promise.kind and "--sparsity" in given:
        raise UserError(
            f"--sparsity and --{promise.kind.replace('_', '-')} both say how much to remove; leave one of them out"
        )
    if not promise.kind:
        changed = [f.name for part in (promise, evaluation) for f in fields(part) if getattr(part, f.name) != f.default]
        for name in changed:
            note(f"--{name.replace('_', '-')} has no effect without a promise such as --max-loss 1%")


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
    from seap.page.describe import describe, show

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
    from seap.text import builtin, hub

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
def methods(*, json: Json = False) -> None:
    """List the methods of `--method`, with what each chooses at every stage and the paper that it is of.

    Example: `seap methods`
    """
    from rich.table import Table

    from seap.methods import METHODS

    if json:
        print_json({name: asdict(method) for name, method in METHODS.items()})
        return
    table = Table(box=None, show_header=False)
    for name, method in METHODS.items():
        told = f"{method.about} ({method.paper})" if method.paper else method.about
        chosen = ", ".join((method.score, method.allocate, method.mask, method.compensate))
        table.add_row(f"[bold]{name}[/bold]", f"{told}\n[dim]{chosen}[/dim]")
    results.print("Each with its score, layer sparsity, mask and compensation, which options set one by one:")
    results.print(table)


@app.command
def demo(
    *,
    out: Annotated[Path, Parameter(help="For the demo's checkpoint, results and page.")] = Path("demo-out"),
    num_items: Annotated[int, Parameter(help="Test items per task.")] = 100,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Prune the built-in model for its own tasks by five methods and compare them: three minutes or so, offline.

    Example: `seap demo`
    """
    from seap.cli.demo import run, show

    result = run(out, num_items=num_items, overwrite=overwrite, progress=not json)
    if json:
        print_json(result)
    else:
        show(result, results)


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


def check_alone(command: str) -> None:
    """Raise UserError for a command that several processes would do several times over."""
    together = ("calibrate", "prune")
    if command not in together and "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            f"torchrun is for seap calibrate and seap prune; run seap {command} once, by itself, on what they wrote"
        )


def expanded(argument: str) -> str:
    """`~/x` and `--out=~/x` with the home folder in place, which not every shell puts there."""
    option, equals, value = argument.rpartition("=") if argument.startswith("--") else ("", "", argument)
    return option + equals + (str(Path(value).expanduser()) if value.startswith("~") else value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code is 0, 1 for anything refused, 2 for a wrong command line."""
    debug = "--debug" in (arguments := list(sys.argv[1:] if arguments is None else arguments))
    arguments = [expanded(argument) for argument in arguments if argument != "--debug"]
    given.clear()
    given.update(argument.partition("=")[0] for argument in arguments if argument.startswith("--"))
    stop_cleanly()
    threads.prepare()
    try:
        if arguments and not arguments[0].startswith("-") and "--help" not in arguments:
            check_alone(arguments[0])
            from seap.models.loader import quiet_transformers

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
