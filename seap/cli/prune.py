"""The command that cuts a model down: prune."""

from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any

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
    given,
    merged_options,
    note,
    print_json,
    read_alike,
    results,
)
from seap.cli.panels import (
    FlatDetails,
    FlatFiles,
    FlatMachine,
    FlatPromise,
    FlatVocabulary,
    FoldedTests,
    FoldedText,
)
from seap.cli.plan import planned
from seap.errors import UserError
from seap.evaluation.options import Evaluation, Measures
from seap.evidence.options import Promise
from seap.models.options import Loading, Streaming
from seap.pruning.options import Given, Saving
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
    calibration: Annotated[Calibration, FoldedText] = Calibration(),  # noqa: B008
    vocabulary: Annotated[Vocabulary, FlatVocabulary] = Vocabulary(),  # noqa: B008
    tests: Annotated[Measures, FoldedTests] = Measures(),  # noqa: B008
    inputs: Annotated[Given, FlatFiles] = Given(),  # noqa: B008
    saving: Annotated[Saving, FlatFiles] = Saving(),  # noqa: B008
    loading: Annotated[Loading, FlatMachine] = Loading(),  # noqa: B008
    streaming: Annotated[Streaming, FlatMachine] = Streaming(),  # noqa: B008
    ray: Annotated[int | None, Parameter(help="Deal the text out to so many processes of Ray's (seap[ray]).")] = None,
    overwrite: Overwrite = False,
    plan: Plan = False,
    json: Json = False,
) -> None:
    """Cut a model down for a task and save it as a checkpoint that reloads.

    In place of --sparsity a promise can be given, such as --max-loss 1%: the largest sparsity is found that keeps it on
    the task's held-out text. The options of a test (--num-items, --window …) are about that text.

    Example: `seap prune builtin --task arithmetic --sparsity 0.5 --out small`
    """
    from seap.activations.ranks import Ranks
    from seap.pruning.estimate import plan_prune
    from seap.text.tasks import with_columns

    check_promise(promise, tests)
    is_first = Ranks.here().is_first
    if plan and not is_first:
        return
    task = with_columns(task, columns)
    shared: dict[str, Any] = {"tasks": task, "stats_files": inputs.stats, "loading": asdict(loading)}
    shared |= {"save_dtype": saving.save_dtype, "streaming": streaming}
    parts = {"pruning": pruning, "calibration": calibration, "vocabulary": vocabulary}
    tried = {
        "num_sparsities": len(promise.sparsities) if promise.kind else 1,
        "is_masked": inputs.mask_file is not None,
    }
    if (ready := planned(plan_prune, model, out, **parts, **shared, **tried, plan=plan, json=json)) is None:
        return
    settings = shared | {"mask_file": inputs.mask_file, "general": inputs.general, "verify": saving.verify}
    settings |= {"overwrite": overwrite, "progress": bars(json=json), "ready": ready}
    settings |= {"said": {name.removeprefix("--").replace("-", "_") for name in given}}
    settings |= merged_options(*parts.values())
    report = pruned(model, out, promise, read_alike(tests, calibration), ray, settings)
    if is_first:
        tell(report, out, json=json)


def pruned(
    model: str, out: Path, promise: Promise, tests: Evaluation, ray: int | None, settings: dict[str, Any]
) -> Any:
    """The report of a pruning: to a sparsity by this process or by Ray's, or to a promise."""
    from seap.evidence.commands import promise_to_folder
    from seap.pruning.commands import prune_to_folder

    if ray is None:
        if promise.kind:
            return promise_to_folder(model, out, promise, tests, **settings)
        return prune_to_folder(model, out, **settings)
    from seap.pruning.together import prune_on_ray

    if promise.kind:
        raise UserError("a promise is kept by one process; give a --sparsity with --ray")
    return prune_on_ray(model, out, ray, **settings)


def tell(report: Any, out: Path, *, json: bool) -> None:
    """What was done, and what was promised."""
    from seap.page.describe import show_report
    from seap.page.terminal import show_promise

    told = report.to_dict()
    for text in report.notes:
        note(text)
    if json:
        print_json(told | {"out": str(out)})
        return
    show_report(told, results)
    if "promise" in told:
        show_promise(told["promise"], results)
    results.print(f"saved [bold]{escape(str(out))}[/bold]; look at it with: seap inspect {escape(str(out))}")


def check_promise(promise: Promise, tests: Measures) -> None:
    """A sparsity, a target and a promise don't go together; without a promise, what is said about one has no effect."""
    check_one_amount()
    if not promise.kind:
        changed = [f.name for part in (promise, tests) for f in fields(part) if getattr(part, f.name) != f.default]
        for name in changed:
            note(f"--{name.replace('_', '-')} has no effect without a promise such as --max-loss 1%")
