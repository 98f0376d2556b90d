"""The command line: options and defaults are those of each room; what is slow to import is imported when used."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import CycloptsError, Parameter
from rich.markup import escape

from seap import threads
from seap.allocation import keep_freed
from seap.cli import bench as bench  # the commands of these nine join the application
from seap.cli import corpus as corpus
from seap.cli import deploy as deploy
from seap.cli import evidence as evidence
from seap.cli import frontier as frontier
from seap.cli import inspecting as inspecting
from seap.cli import run as run_recipes  # noqa: F401
from seap.cli import serving as serving
from seap.cli import stages as stages
from seap.cli.app import (
    ColumnsOption,
    FlatDetails,
    FlatMachine,
    FlatPromise,
    FlatTests,
    FlatText,
    FlatVocabulary,
    Json,
    Model,
    Overwrite,
    Plan,
    TaskOption,
    app,
    bars,
    call,
    check_one_amount,
    errors,
    merged_options,
    note,
    print_json,
    read_alike,
    results,
)
from seap.cli.globals import Globals, save_recipe, stop_cleanly
from seap.cli.plan import planned
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
    pruning: Annotated[Pruning, FlatDetails] = Pruning(),  # noqa: B008
    promise: Annotated[Promise, FlatPromise] = Promise(),  # noqa: B008
    calibration: Annotated[Calibration, FlatText] = Calibration(),  # noqa: B008
    vocabulary: Annotated[Vocabulary, FlatVocabulary] = Vocabulary(),  # noqa: B008
    evaluation: Annotated[Evaluation, FlatTests] = Evaluation(),  # noqa: B008
    stats: Annotated[tuple[Path, ...], Parameter(help="Statistics of `seap calibrate`, in place of --task.")] = (),
    mask_file: Annotated[Path | None, Parameter(help="A mask of `seap mask`, in place of choosing one.")] = None,
    general: Annotated[str | None, Parameter(help="Text for --mix and --vocabulary, NAME or NAME=PATH.")] = None,
    loading: Annotated[Loading, FlatMachine] = Loading(),  # noqa: B008
    streaming: Annotated[Streaming, FlatMachine] = Streaming(),  # noqa: B008
    save_dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        Parameter(help="Of the weights on disk; by default --dtype, and with auto the checkpoint's own."),
    ] = None,
    overwrite: Overwrite = False,
    ray: Annotated[int | None, Parameter(help="Deal the text out to so many processes of Ray's (seap[ray]).")] = None,
    verify: Annotated[
        bool, Parameter(negative="--no-verify", help="Load and run what was written before it takes its name.")
    ] = True,
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
    from seap.pruning.estimate import plan_prune
    from seap.text.tasks import with_columns

    check_promise(promise, evaluation)
    task, place = with_columns(task, columns), asdict(loading)
    is_first = Ranks.here().is_first
    if plan and not is_first:
        return
    ready = planned(
        plan_prune,
        model,
        out,
        pruning=pruning,
        calibration=calibration,
        vocabulary=vocabulary,
        tasks=task,
        stats_files=stats,
        is_masked=mask_file is not None,
        num_sparsities=len(promise.sparsities) if promise.kind else 1,
        loading=place,
        save_dtype=save_dtype,
        streaming=streaming,
        plan=plan,
        json=json,
    )
    if ready is None:
        return
    settings: dict[str, Any] = dict(
        tasks=task,
        stats_files=stats,
        mask_file=mask_file,
        general=general,
        overwrite=overwrite,
        verify=verify,
        progress=bars(json=json),
        loading=place,
        save_dtype=save_dtype,
        streaming=streaming,
        ready=ready,
        **merged_options(pruning, calibration, vocabulary),
    )
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
    else:
        show_pruned(report.to_dict(), out)


def show_pruned(told: dict[str, Any], out: Path) -> None:
    """What was done, and what was promised."""
    from seap.page.describe import show_report
    from seap.page.terminal import show_promise

    show_report(told, results)
    if "promise" in told:
        show_promise(told["promise"], results)
    results.print(f"saved [bold]{escape(str(out))}[/bold]; look at it with: seap inspect {escape(str(out))}")


def check_promise(promise: Promise, evaluation: Evaluation) -> None:
    """A sparsity, a target and a promise don't go together; without a promise, what is said about one has no effect."""
    check_one_amount()
    if not promise.kind:
        changed = [f.name for part in (promise, evaluation) for f in fields(part) if getattr(part, f.name) != f.default]
        for name in changed:
            note(f"--{name.replace('_', '-')} has no effect without a promise such as --max-loss 1%")


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

    result = run(out, num_items=num_items, overwrite=overwrite, progress=bars(json=json))
    if json:
        print_json(result)
    else:
        show(result, results)


def run(asked: Globals) -> None:
    """Do what a command line asks for."""
    words = asked.words
    if "--config" in asked.files:
        from seap.cli.recipes import settings_of

        words = settings_of(words, asked.files["--config"])
    if "--save-recipe" in asked.files:
        save_recipe(words, asked.files["--save-recipe"])
    if words and not words[0].startswith("-") and "--help" not in words and not asked.verbose:
        from seap.models.loader import quiet_transformers

        quiet_transformers()
    call(words)


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
        errors.print(f"[bold red]error:[/bold red] {escape(' '.join(str(error).split()))}")
        return 1
    except KeyboardInterrupt:
        errors.print("stopped; nothing half written was left behind")
        return 130
    finally:
        errors.quiet = False


if __name__ == "__main__":
    sys.exit(main())
