"""The commands around one model with many tasks: route fit, predict and eval, pack, serve."""

from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich.markup import escape
from rich.table import Table

from seap.cli.app import (
    Json,
    Model,
    Overwrite,
    Plan,
    TaskOption,
    app,
    bars,
    check_one_amount,
    merged_options,
    note,
    note_without_effect,
    print_json,
    results,
)
from seap.cli.panels import (
    Flat,
    FlatConnections,
    FlatDetails,
    FlatLimits,
    FlatMachine,
    FlatTests,
    FlatVocabulary,
    FoldedText,
)
from seap.cli.plan import planned
from seap.evaluation.options import Evaluation
from seap.models.options import Loading
from seap.selection.options import Pruning
from seap.serving.options import Access, Connections, Limits, Packing, Routing, Serving
from seap.text.options import Calibration
from seap.vocabulary.options import Vocabulary

route = App(name="route", help="Tell which task a prompt is of.")
app.command(route)

Masks = Annotated[Path, Parameter(help="Folder of the tasks' networks (`seap pack`) or masks (`seap mask`).")]
RouterFile = Annotated[Path, Parameter(help="A router of `seap route fit`.")]


@route.command
def fit(
    model: Model,
    /,
    *,
    tasks: Annotated[str, Parameter(help="A[=PATH],B[=PATH]…; two or more.")],
    out: Annotated[Path, Parameter(help="The router file, such as router.safetensors.")],
    masks: Masks | None = None,
    routing: Annotated[Routing, Flat] = Routing(),  # noqa: B008
    loading: Annotated[Loading, FlatMachine] = Loading(),  # noqa: B008
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Make a router from the tasks' train prompts and test it on their test prompts (seap[serve]).

    Example: `seap route fit builtin --tasks arithmetic,calendar,facts --out router.safetensors`
    """
    from seap.serving.commands import fit_router
    from seap.text.tasks import specs_of

    report = fit_router(model, specs_of(tasks), out, routing, masks=masks, overwrite=overwrite, loading=asdict(loading))
    if json:
        print_json(report | {"out": str(out)})
        return
    show_router(report)
    results.print(f"written to {escape(str(out))}; try it: seap route predict {escape(model)} TEXT --router {out}")


@route.command
def predict(
    model: Model,
    /,
    *prompts: Annotated[str, Parameter(help="One or more prompts.")],
    router: RouterFile,
    loading: Annotated[Loading, FlatMachine] = Loading(),  # noqa: B008
    json: Json = False,
) -> None:
    """Say which task prompts are of, and how sure that is.

    Example: `seap route predict builtin "12 + 30 =" --router router.safetensors`
    """
    from seap.serving.commands import predict_routes

    routes = predict_routes(model, prompts, router, loading=asdict(loading))
    if json:
        print_json({"routes": routes})
        return
    for prompt, found in zip(prompts, routes, strict=True):
        task = found["task"] or f"no task (nearest: {found['nearest']})"
        results.print(f"{escape(prompt[:60])}: [bold]{task}[/bold], confidence {found['confidence']:.2f}")


@route.command(name="eval")
def evaluate(
    model: Model,
    /,
    *,
    tasks: Annotated[str, Parameter(help="A[=PATH],B[=PATH]…, each with a network.")],
    router: RouterFile,
    masks: Masks,
    fallback: Annotated[str, Parameter(help="Network of prompts that the router gives to no task.")] = "dense",
    out: Annotated[Path | None, Parameter(help="A JSON file for the result.")] = None,
    evaluation: Annotated[Evaluation, FlatTests] = Evaluation(),  # noqa: B008
    loading: Annotated[Loading, FlatMachine] = Loading(),  # noqa: B008
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Measure the tasks' tests on the networks that the router chooses, beside the true task's and the dense model.

    Example: `seap route eval builtin --tasks arithmetic,calendar --router router.safetensors --masks tasks`
    """
    from seap.serving.commands import evaluate_routing
    from seap.text.tasks import specs_of

    options: dict[str, Any] = {"fallback": fallback, "out": out, "overwrite": overwrite, "loading": asdict(loading)}
    found = evaluate_routing(model, specs_of(tasks), router, masks, evaluation, **options)
    if json:
        print_json(found)
    else:
        show_end_to_end(found)


@app.command
def pack(
    model: Model,
    /,
    *sources: Annotated[str, Parameter(help="Pruned folders or mask files, as PATH or NAME=PATH.")],
    task: TaskOption = (),
    out: Annotated[Path, Parameter(help="Folder for NAME.safetensors.")] = Path("tasks"),
    stats: Annotated[tuple[Path, ...], Parameter(help="Statistics that masks with reconstruction need.")] = (),
    pruning: Annotated[Pruning, FlatDetails] = Pruning(),  # noqa: B008
    calibration: Annotated[Calibration, FoldedText] = Calibration(),  # noqa: B008
    vocabulary: Annotated[Vocabulary, FlatVocabulary] = Vocabulary(),  # noqa: B008
    packing: Annotated[Packing, Flat] = Packing(),  # noqa: B008
    loading: Annotated[Loading, FlatMachine] = Loading(),  # noqa: B008
    plan: Plan = False,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Write each task's network, small files beside the dense model, for `seap serve` and `seap.TaskRuntime`.

    Example: `seap pack builtin --task arithmetic --task calendar --out tasks`
    """
    from seap.serving.networks.packing import pack_to_files, plan_pack

    check_one_amount()
    if not task:
        settled = [one.name for part in (pruning, calibration) for one in fields(part)]
        note_without_effect(settled, "without --task: what is packed was pruned already")
    words = asdict(vocabulary) if vocabulary.is_cut or task else {}
    options, place = (merged_options(pruning, calibration) if task else {}) | words, asdict(loading)
    parts: dict[str, Any] = {"pruning": pruning, "calibration": calibration, "loading": place}
    if (ready := planned(plan_pack, model, out, sources=sources, tasks=task, **parts, plan=plan, json=json)) is None:
        return
    made = pack_to_files(
        model,
        out,
        sources=sources,
        tasks=task,
        stats_files=stats,
        share=packing.share,
        overwrite=overwrite,
        loading=place,
        progress=bars(json=json),
        ready=ready,
        **options,
    )
    if json:
        print_json({"files": made})
        return
    for about in made:
        results.print(
            f"{escape(about['path'])}: {1 - about['realised_sparsity']:.1%} of the weights at work, "
            f"{about['own_share']:.1%} of the dense model's size its own"
        )
    results.print(f"serve them: seap serve {escape(model)} --masks {escape(str(out))}")


@app.command
def serve(
    model: Annotated[str, Parameter(help="Model folder or Hub id; with --demo the built-in one.")] = "builtin",
    /,
    *,
    masks: Masks | None = None,
    router: RouterFile | None = None,
    serving: Annotated[Serving, Flat] = Serving(),  # noqa: B008
    limits: Annotated[Limits, FlatLimits] = Limits(),  # noqa: B008
    access: Annotated[Access, Flat] = Access(),  # noqa: B008
    connections: Annotated[Connections, FlatConnections] = Connections(),  # noqa: B008
    loading: Annotated[Loading, FlatMachine] = Loading(),  # noqa: B008
) -> None:
    """Serve one model with all its tasks' networks to OpenAI's clients (seap[serve]).

    Example: `seap serve builtin --masks tasks --router router.safetensors`
    """
    from seap.serving.server.run import check, serve

    check(model, serving, masks, router)
    options = serving, limits, access, connections
    serve(model, *options, masks=masks, router=router, loading=asdict(loading), tell=note)


def show_router(report: dict[str, Any]) -> None:
    """What the router gets right, and where it abstains."""
    table = Table("test prompts", title_justify="left", header_style="bold")
    for name in ("right, %", "no task, %", "wrong task, %"):
        table.add_column(name, justify="right")
    for name, found in report["variants"].items():
        table.add_row(name, *[f"{100 * found[key]:.1f}" for key in ("accuracy", "abstained", "wrong")])
    for task, found in report["unseen"].items():
        wrong = 1 - found["abstained"]
        table.add_row(f"{task}, never seen", "–", f"{100 * found['abstained']:.1f}", f"{100 * wrong:.1f}")
    results.print(table)
    error = report["calibration"]["expected_calibration_error"]
    results.print(
        f"{report['n']} test prompts; 'right' is of the nearest task, before the router abstains. Expected calibration "
        f"error {error:.3f}, {1000 * report['seconds_per_prompt']:.1f} ms a prompt."
    )


def show_end_to_end(found: dict[str, Any]) -> None:
    """Each task's score on the networks that prompts were routed to, on its own network, and on the dense model."""
    columns = ("routed", "true_task", "dense", "routed_right", "abstained", "weights")
    table = Table("task", "measure", header_style="bold")
    for name in columns:
        table.add_column(name.replace("_", " "), justify="right")
    for row in [*found["rows"], {"task": "mean", "measure": "", **found["mean"]}]:
        table.add_row(row["task"], row["measure"], *[f"{row[name]:.3f}" for name in columns])
    results.print(table)
