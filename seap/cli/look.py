"""The commands that show what there is: explore, diff, tasks, methods, demo."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.markup import escape

from seap.cli.app import ColumnsOption, Json, Model, Overwrite, TaskOption, app, bars, print_json, results
from seap.cli.panels import FlatMachine, FoldedText
from seap.models.options import Loading, Streaming
from seap.text.options import Calibration


@app.command
def explore(
    model: Model,
    /,
    *,
    task: TaskOption,
    columns: ColumnsOption = (),
    out: Annotated[Path, Parameter(help="The page, one HTML file. Snippets of your texts are in it.")] = Path(
        "explore.html"
    ),
    num_units: Annotated[int, Parameter(help="Channels of a layer that are shown; heads and experts all are.")] = 48,
    num_kept: Annotated[int, Parameter(help="Texts that are shown of each head, channel and expert.")] = 5,
    calibration: Annotated[Calibration, FoldedText] = Calibration(),  # noqa: B008
    loading: Annotated[Loading, FlatMachine] = Loading(),  # noqa: B008
    streaming: Annotated[Streaming, FlatMachine] = Streaming(),  # noqa: B008
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Make a page of a model to click through: which heads and channels each task uses, and for which texts.

    Example: `seap explore builtin --task arithmetic --task calendar --out explore.html`
    """
    from seap.page.explorer import explore_to_page
    from seap.text.tasks import with_columns

    found = explore_to_page(
        model,
        with_columns(task, columns),
        out,
        calibration,
        num_units=num_units,
        num_kept=num_kept,
        overwrite=overwrite,
        loading=asdict(loading),
        streaming=streaming,
        progress=bars(json=json),
    )
    if json:
        print_json(found)
    else:
        results.print(f"written: {escape(str(out))} (for a browser; it needs no network)")


@app.command
def diff(
    first: Annotated[str, Parameter(help="A mask file, a network of `seap pack`, or a folder of `seap prune`.")],
    second: Annotated[str, Parameter(help="Another of the same model.")],
    /,
    *,
    json: Json = False,
) -> None:
    """Say what one network keeps that another doesn't: by layer, how far they overlap, and what chance would give.

    Example: `seap diff tasks/arithmetic.safetensors tasks/calendar.safetensors`
    """
    from seap.page.difference import difference, show_difference

    found = difference(first, second)
    if json:
        print_json(found)
    else:
        show_difference(found, results)


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
