"""The command that draws what every sparsity costs and gains: sweep."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.markup import escape

from seap.cli.app import (
    ColumnsOption,
    Json,
    Model,
    Overwrite,
    Plan,
    TaskOption,
    app,
    bars,
    check_one_amount,
    print_json,
    read_alike,
    results,
)
from seap.cli.panels import FlatDetails, FlatMachine, FlatVocabulary, FoldedTests, FoldedText
from seap.cli.plan import planned
from seap.evaluation.options import Measures
from seap.models.options import Loading
from seap.selection.options import Choices, Pruning
from seap.shares import shares, sizes_in_bytes
from seap.text.options import Calibration
from seap.vocabulary.options import Vocabulary


@app.command
def sweep(
    model: Model,
    /,
    *,
    task: TaskOption,
    columns: ColumnsOption = (),
    sparsity: Annotated[str, Parameter(help="One or more, as 0.2,0.5 or 20%,50%.")] = "0.1,0.2,0.3,0.4,0.5",
    target_size: Annotated[str | None, Parameter(help="Sizes of the saved weights instead, as 150MB,200MB.")] = None,
    method: Annotated[str, Parameter(help="Of `seap prune --method`.")] = Pruning.method,
    repeats: Annotated[int, Parameter(help="Times that speed is measured, after a warm-up.")] = 7,
    out: Annotated[Path, Parameter(help="Folder for sweep.json.")] = Path("sweep"),
    choices: Annotated[Choices, FlatDetails] = Choices(),  # noqa: B008
    calibration: Annotated[Calibration, FoldedText] = Calibration(),  # noqa: B008
    vocabulary: Annotated[Vocabulary, FlatVocabulary] = Vocabulary(),  # noqa: B008
    tests: Annotated[Measures, FoldedTests] = Measures(),  # noqa: B008
    loading: Annotated[Loading, FlatMachine] = Loading(),  # noqa: B008
    plan: Plan = False,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Draw the whole frontier: loss, accuracy, size and measured speed at every sparsity, from one calibration.

    Example: `seap sweep builtin --task arithmetic --sparsity 0.2,0.4 --out sweep`
    """
    from seap.evidence.cost import plan_sweep
    from seap.evidence.sweep import Sweep
    from seap.evidence.sweep import sweep as run
    from seap.page.terminal import show_sweep
    from seap.text.tasks import with_columns

    check_one_amount()
    task = with_columns(task, columns)
    wanted = Sweep(
        tasks=task,
        sparsities=shares("--sparsity", sparsity),
        sizes=() if target_size is None else sizes_in_bytes("--target-size", target_size),
        pruning=Pruning(method=method, **vars(choices)),
        calibration=calibration,
        vocabulary=vocabulary,
        evaluation=read_alike(tests, calibration),
        repeats=repeats,
        batch=choices.batch,
    )
    place = asdict(loading)
    if (ready := planned(plan_sweep, model, wanted, out, loading=place, plan=plan, json=json)) is None:
        return
    result = run(model, wanted, out, overwrite=overwrite, loading=place, progress=bars(json=json), ready=ready)
    if json:
        print_json(result)
        return
    show_sweep(result, results)
    path = escape(str(out / "sweep.json"))
    results.print(f"written to {path}; a page of it: seap report {path}")
