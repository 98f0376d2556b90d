"""The command that draws what every sparsity costs and gains: sweep."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.markup import escape

from seap.cli.app import (
    ColumnsOption,
    Flat,
    Json,
    Model,
    Overwrite,
    Plan,
    TaskOption,
    app,
    note,
    print_json,
    read_alike,
    results,
)
from seap.cli.plan import print_plan
from seap.evaluation.options import Evaluation
from seap.methods import EffortName
from seap.models.options import Loading
from seap.selection.options import Pruning
from seap.text.options import Calibration


@app.command
def sweep(
    model: Model,
    /,
    *,
    task: TaskOption,
    columns: ColumnsOption = (),
    sparsity: Annotated[str, Parameter(help="One or more, as 0.2,0.5.")] = "0.1,0.2,0.3,0.4,0.5",
    method: Annotated[str, Parameter(help="Of `seap prune --method`.")] = Pruning.method,
    effort: Annotated[EffortName, Parameter(help="As in `seap prune`.")] = Pruning.effort,
    min_channels: Annotated[int, Parameter(help="MLP channels that every layer keeps.")] = Pruning.min_channels,
    round_to: Annotated[int, Parameter(help="Keep a multiple of so many MLP channels.")] = Pruning.round_to,
    batch: Annotated[int, Parameter(help="Sequences at a time when speed is measured.")] = 1,
    repeats: Annotated[int, Parameter(help="Times that speed is measured, after a warm-up.")] = 7,
    out: Annotated[Path, Parameter(help="Folder for sweep.json.")] = Path("sweep"),
    calibration: Annotated[Calibration, Flat] = Calibration(),  # noqa: B008
    evaluation: Annotated[Evaluation, Flat] = Evaluation(),  # noqa: B008
    loading: Annotated[Loading, Flat] = Loading(),  # noqa: B008
    plan: Plan = False,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Draw the whole frontier: loss, accuracy, size and measured speed at every sparsity, from one calibration.

    Example: `seap sweep builtin --task arithmetic --sparsity 0.2,0.4 --out sweep`
    """
    from seap.evidence.cost import plan_sweep
    from seap.evidence.plan import numbers
    from seap.evidence.sweep import Sweep
    from seap.evidence.sweep import sweep as run
    from seap.page.terminal import show_sweep
    from seap.pruning.estimate import begin
    from seap.text.tasks import with_columns

    task = with_columns(task, columns)
    wanted = Sweep(
        tasks=task,
        sparsities=numbers("--sparsity", sparsity),
        pruning=Pruning(method=method, effort=effort, min_channels=min_channels, round_to=round_to),
        calibration=calibration,
        evaluation=read_alike(evaluation, calibration),
        repeats=repeats,
        batch=batch,
    )
    place = asdict(loading)
    if plan:
        print_plan(plan_sweep(model, wanted, out, loading=place), json=json)
        return

    def ready() -> None:
        begin(plan_sweep(model, wanted, out, loading=place), None if json else note)

    result = run(model, wanted, out, overwrite=overwrite, loading=place, progress=not json, ready=ready)
    if json:
        print_json(result)
        return
    show_sweep(result, results)
    path = escape(str(out / "sweep.json"))
    results.print(f"written to {path}; a page of it: seap report {path}")
