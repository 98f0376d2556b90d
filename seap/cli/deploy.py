"""The commands that take a checkpoint to where it runs: export, check and push."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.markup import escape
from rich.table import Table

from seap.cli.app import Json, Model, Overwrite, app, note, print_json, results
from seap.cli.panels import Flat
from seap.exports.options import Deployment, Export, Target


@app.command
def export(
    model: Model,
    /,
    *,
    to: Annotated[
        Target,
        Parameter(
            help="uniform: a stock class, for models pruned with --allocate one-width. padded: a stock class, zeros "
            "where layers are narrower. nemotron-nas: for vLLM, SGLang and mlx-lm. gguf: for llama.cpp. mlx: for "
            "mlx-lm. openvino: for openvino-genai and optimum-intel. onnx: for onnxruntime and onnxruntime-genai. "
            "compressed-tensors: 8- or 4-bit weights for vLLM and SGLang. torchao: 8-bit weights for transformers."
        ),
    ],
    out: Annotated[Path, Parameter(help="The folder to write; with gguf the file.")],
    export: Annotated[Export, Flat] = Export(),  # noqa: B008
    task: Annotated[
        tuple[str, ...],
        Parameter(
            help="NAME or NAME=PATH, on whose test text the loss is measured before and after rounding (gguf, torchao, "
            "compressed-tensors); may be repeated."
        ),
    ] = (),
    overwrite: Overwrite = False,
    trust_remote_code: Annotated[bool, Parameter(help="Run code that comes with the checkpoint.")] = False,
    json: Json = False,
) -> None:
    """Write a checkpoint for the engine that is to run it.

    Example: `seap export small --to gguf --out small.gguf`
    """
    from seap.exports.export import export as run

    told = run(
        model,
        out,
        to,
        export,
        task=task,
        overwrite=overwrite,
        trust_remote_code=trust_remote_code,
    )
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
    """Say whether a checkpoint is as it was written and an engine can run it; no weight is loaded. Exit code 1 if not.

    Example: `seap check small --engine vllm --tp 2`
    """
    from seap.exports.engines import check as run
    from seap.exports.engines import refuse

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
    elif not found["damaged"]:
        whole = f"; {found['digests']} weight files are as they were written" if found["digests"] else ""
        results.print(f"{escape(found['model'])} fits {found['engine']} with tp {found['tp']}{whole}")
    for text in found["advice"]:
        note(text)


@app.command
def push(
    folder: Annotated[
        Path, Parameter(help="A pruned checkpoint, also when trained since, or one that seap export made.")
    ],
    repo: Annotated[str, Parameter(help="Its name on the Hub, such as me/llama-gsm8k.")],
    /,
    *,
    eval_results: Annotated[
        Path | None, Parameter(name="--results", help="What `seap eval FOLDER --json` printed, for the card.")
    ] = None,
    also: Annotated[tuple[Path, ...], Parameter(help="Files to put beside it, such as its GGUF.")] = (),
    provenance: Annotated[
        Path | None, Parameter(help="The pruned folder that FOLDER was trained from, where it has no seap.json.")
    ] = None,
    private: Annotated[bool, Parameter(help="A new repository is private.")] = False,
    dry_run: Annotated[bool, Parameter(help="Show the card and the files, and send nothing.")] = False,
    json: Json = False,
) -> None:
    """Upload a checkpoint to the Hub, with a card of its numbers and a snippet for every engine.

    Example: `seap push small me/small --dry-run`
    """
    from seap.exports.push import push as run

    beside: dict[str, Any] = {"results": eval_results, "also": also, "provenance": provenance}
    told = run(folder, repo, **beside, private=private, dry_run=dry_run)
    if json:
        print_json(told)
        return
    for text in told["notes"]:
        note(text)
    if dry_run:
        sizes = "\n".join(f"{size / 1e6:10,.1f} MB  {name}" for name, size in told["files"].items())
        results.print(escape(f"{told['card']}\n{sizes}\nnothing was sent"))
    else:
        results.print(f"uploaded {len(told['files'])} files and the card to {told['url']}")
