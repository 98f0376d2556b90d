"""The commands that measure: eval, compare, analyze, report."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

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
    note_without_effect,
    print_json,
    read_alike,
    results,
)
from seap.cli.panels import FlatDetails, FlatMachine, FlatTests, FlatText, FlatVocabulary, FoldedTests, FoldedText
from seap.cli.plan import planned
from seap.evaluation.options import Evaluation, Measures
from seap.models.options import Loading
from seap.selection.options import Choices, Pruning
from seap.shares import shares, sizes_in_bytes
from seap.text.options import Calibration
from seap.vocabulary.options import Vocabulary


@app.command(name="eval")
def evaluate(
    model: Model,
    /,
    *,
    task: TaskOption = (),
    columns: ColumnsOption = (),
    dense: Annotated[str | None, Parameter(help="The model it was pruned from, to measure the likeness to it.")] = None,
    harness: Annotated[
        str | None, Parameter(help="Tasks of lm-evaluation-harness, as arc_easy,piqa (seap[eval]).")
    ] = None,
    harness_data: Annotated[Path | None, Parameter(help="Folder of local Parquet copies of those tasks.")] = None,
    harness_limit: Annotated[int | None, Parameter(help="Items per harness task; all by default.")] = None,
    num_fewshot: Annotated[int | None, Parameter(help="Examples in prompts; by default its own number.")] = None,
    evaluation: Annotated[Evaluation, FlatTests] = Evaluation(),  # noqa: B008
    loading: Annotated[Loading, FlatMachine] = Loading(),  # noqa: B008
    json: Json = False,
) -> None:
    """Measure a model, pruned or dense: loss and accuracy on your tasks, or standard tasks by lm-evaluation-harness.

    Example: `seap eval small --task arithmetic --dense builtin`
    """
    from seap.evaluation.commands import evaluate_tasks, run_harness
    from seap.page.terminal import show_rows
    from seap.text.tasks import with_columns

    if not harness:
        note_without_effect(("harness_data", "harness_limit", "num_fewshot"), "without --harness")
    if not evaluation.say_items:
        note_without_effect(["say"], "without --say-items")
    if not evaluation.run_generated_code:
        note_without_effect(["program_seconds"], "without --run-generated-code")
    rows = []
    if task or not harness:
        rows += evaluate_tasks(model, with_columns(task, columns), evaluation, dense=dense, loading=asdict(loading))
    if harness:
        names = harness.split(",")
        limits: dict[str, Any] = {"limit": harness_limit, "num_fewshot": num_fewshot}
        limits["chat"] = evaluation.template == "chat"
        rows += run_harness(model, names, data=harness_data, loading=asdict(loading), **limits)
    if json:
        print_json({"model": model, "rows": rows})
    else:
        show_rows(rows, results)


@app.command
def compare(
    model: Model,
    /,
    *,
    tasks: Annotated[str, Parameter(help="A[=PATH],B[=PATH]…")],
    methods: Annotated[str, Parameter(help="Of `seap prune --method`; the first is the one to be judged.")] = (
        "seap,seap-paper,seap-gen,flap,wanda-sp,random"
    ),
    sparsity: Annotated[str, Parameter(help="One or more, as 0.2,0.5 or 20%,50%.")] = "0.2,0.5",
    target_size: Annotated[str | None, Parameter(help="Sizes of the saved weights instead, as 150MB,200MB.")] = None,
    seeds: Annotated[int, Parameter(help="Repeat with so many draws of the calibration text.")] = 1,
    controls: Annotated[
        bool, Parameter(help="Also general text, all tasks pooled, other tasks' masks, no answers.")
    ] = False,
    general: Annotated[
        str | None, Parameter(help="General text for --controls, and for --vocabulary: NAME or NAME=PATH.")
    ] = None,
    out: Annotated[Path, Parameter(help="Folder for statistics, masks, rows and compare.json; rerun to go on.")] = (
        Path("comparison")
    ),
    choices: Annotated[Choices, FlatDetails] = Choices(),  # noqa: B008
    calibration: Annotated[Calibration, FoldedText] = Calibration(),  # noqa: B008
    vocabulary: Annotated[Vocabulary, FlatVocabulary] = Vocabulary(),  # noqa: B008
    tests: Annotated[Measures, FoldedTests] = Measures(),  # noqa: B008
    loading: Annotated[Loading, FlatMachine] = Loading(),  # noqa: B008
    plan: Plan = False,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Compare methods at equal realised sparsity and equal calibration text; interrupted, it goes on where it stopped.

    The options in detail are of every method, in place of its own choice: --score obs ranks by it under all of them.

    Example: `seap compare builtin --tasks arithmetic,calendar --methods seap,flap --sparsity 0.5`
    """
    from seap.evidence.compare import compare as run
    from seap.evidence.cost import plan_compare
    from seap.evidence.plan import Comparison
    from seap.page.terminal import show_comparison
    from seap.text.tasks import specs_of

    check_one_amount()
    if not controls and not vocabulary.is_cut:
        note_without_effect(["general"], "without --controls or --vocabulary")
    wanted = Comparison(
        tasks=specs_of(tasks),
        methods=tuple(methods.split(",")),
        sparsities=shares("--sparsity", sparsity),
        sizes=() if target_size is None else sizes_in_bytes("--target-size", target_size),
        seeds=seeds,
        controls=controls,
        general=general,
        calibration=calibration,
        vocabulary=vocabulary,
        evaluation=read_alike(tests, calibration),
        pruning=Pruning(**vars(choices)),
    )
    place = asdict(loading)
    if (ready := planned(plan_compare, model, wanted, out, loading=place, plan=plan, json=json)) is None:
        return
    result = run(model, wanted, out, overwrite=overwrite, loading=place, progress=bars(json=json), ready=ready)
    if json:
        print_json(result)
        return
    show_comparison(result, results)
    results.print(
        f"written to {escape(str(out / 'compare.json'))}; a page of it: seap report {escape(str(out))}/compare.json"
    )


@app.command
def analyze(
    model: Model,
    /,
    *,
    tasks: Annotated[str, Parameter(help="A[=PATH],B[=PATH]…; two or more.")],
    sparsity: Annotated[str, Parameter(help="One or more, as 0.2,0.5 or 20%,50%.")] = "0.2,0.5",
    method: Annotated[str, Parameter(help="Whose masks; seap takes its time for each of the many.")] = "seap-paper",
    embedding: Annotated[Literal["t-SNE", "PCA"], Parameter(help="How hidden states are drawn.")] = "t-SNE",
    num_states: Annotated[int, Parameter(help="Texts per task whose hidden states are taken.")] = 64,
    out: Annotated[Path, Parameter(help="The result file.")] = Path("analyze.json"),
    calibration: Annotated[Calibration, FlatText] = Calibration(),  # noqa: B008
    loading: Annotated[Loading, FlatMachine] = Loading(),  # noqa: B008
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """See how tasks differ inside a model, how stable their masks are, and how many texts are enough (seap[eval]).

    Example: `seap analyze builtin --tasks arithmetic,calendar,facts --out analyze.json`
    """
    from seap.evidence.commands import analyze_tasks
    from seap.page.terminal import show_analysis
    from seap.text.tasks import specs_of

    result = analyze_tasks(
        model,
        specs_of(tasks),
        out,
        calibration,
        sparsities=shares("--sparsity", sparsity),
        method=method,
        embedding=embedding,
        num_states=num_states,
        overwrite=overwrite,
        loading=asdict(loading),
        progress=bars(json=json),
    )
    if json:
        print_json(result)
    else:
        show_analysis(result, results)
        results.print(f"written to {escape(str(out))}; a page of it: seap report {escape(str(out))}")


@app.command
def report(
    *files: Annotated[Path, Parameter(help="compare.json, analyze.json or bench.json, in any mix.")],
    out: Annotated[Path, Parameter(help="The page; its plots and data go into a folder beside it.")] = Path(
        "report.html"
    ),
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Make one page of results that opens offline, every plot also as PNG and CSV beside it (seap[report]).

    Example: `seap report comparison/compare.json analyze.json --out report.html`
    """
    from seap.page import document

    made = document.build(files, out, overwrite=overwrite)
    if json:
        print_json({"report": str(made)})
    else:
        results.print(f"written: {escape(str(made))}")
