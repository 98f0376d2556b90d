"""The commands that take a checkpoint to where it runs: export, check and push."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.markup import escape
from rich.table import Table

from seap.cli_base import Flat, Json, Model, app, note, print_json, results
from seap.config_deploy import Deployment, Export, Target


@app.command
def export(
    model: Model,
    /,
    *,
    to: Annotated[
        Target,
        Parameter(
            help="uniform: a stock class, for models pruned with --allocate one-width. padded: a stock class, zeros "
            "where layers are narrower. gguf: for llama.cpp. openvino: for openvino-genai and optimum-intel."
        ),
    ],
    out: Annotated[Path, Parameter(help="The folder to write; with gguf the file.")],
    export: Annotated[Export, Flat] = Export(),  # noqa: B008
    overwrite: Annotated[bool, Parameter(help="Replace what --out holds.")] = False,
    trust_remote_code: Annotated[bool, Parameter(help="Run code that comes with the checkpoint.")] = False,
    json: Json = False,
) -> None:
    """Write a checkpoint for the engine that is to run it.

    Example: `seap export small --to gguf --out small.gguf`
    """
    from seap.export import export as run

    told = run(model, out, to, export, overwrite=overwrite, trust_remote_code=trust_remote_code)
    if json:
        print_json(told)
        return
    for text in told["notes"]:
        note(text)
    results.print(f"written [bold]{escape(str(out))}[/bold], {told['bytes'] / 1e6:,.1f} MB")


@app.command
def check(
    model: Model,
    /,
    *,
    deployment: Annotated[Deployment, Flat] = Deployment(),  # noqa: B008
    trust_remote_code: Annotated[bool, Parameter(help="Run code that comes with the checkpoint.")] = False,
    json: Json = False,
) -> None:
    """Say, from a checkpoint's config alone, whether an engine can run it. The exit code is 1 if it can't.

    Example: `seap check small --engine vllm --tp 2`
    """
    from seap.engines import check as run
    from seap.engines import refuse

    found = run(model, deployment, trust_remote_code=trust_remote_code)
    if json:
        print_json(found)
    else:
        show_check(found)
    refuse(found)


def show_check(found: dict[str, Any]) -> None:
    """The layers that don't fit, and what would make it faster."""
    if found["problems"]:
        table = Table("layer", "axis", "units", box=None, header_style="bold")
        for problem in found["problems"]:
            table.add_row(str(problem["layer"]), problem["axis"].replace("_", " "), str(problem["units"]))
        results.print(table)
    else:
        results.print(f"{escape(found['model'])} fits {found['engine']} with tp {found['tp']}")
    for text in found["advice"]:
        note(text)
