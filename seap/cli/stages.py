"""The stages of a pruning as commands of their own: calibrate, mask, merge."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.markup import escape

from seap.cli.app import (
    ColumnsOption,
    Json,
    Model,
    Overwrite,
    TaskOption,
    app,
    bars,
    check_one_amount,
    print_json,
    results,
)
from seap.cli.panels import FlatDetails, FlatMachine, FlatText
from seap.models.options import Loading, Streaming
from seap.selection.options import Pruning
from seap.text.options import Calibration


@app.command
def calibrate(
    model: Model,
    /,
    *,
    task: TaskOption,
    columns: ColumnsOption = (),
    out: Annotated[Path, Parameter(help="Folder for TASK.safetensors.")] = Path("stats"),
    calibration: Annotated[Calibration, FlatText] = Calibration(),  # noqa: B008
    loading: Annotated[Loading, FlatMachine] = Loading(),  # noqa: B008
    streaming: Annotated[Streaming, FlatMachine] = Streaming(),  # noqa: B008
    shard: Annotated[str | None, Parameter(help="Only part I of N of the rows, as 0/4; merge them later.")] = None,
    ray: Annotated[int | None, Parameter(help="Spread the rows over so many actors of Ray's (seap[ray]).")] = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Measure which parts of a model each task uses: one statistics file per task, made once and used many times.

    Example: `seap calibrate builtin --task arithmetic --task calendar --out stats`
    """
    from seap.activations.ranks import Ranks
    from seap.pruning.stages import calibrate_to_files
    from seap.text.tasks import with_columns

    made = calibrate_to_files(
        model,
        with_columns(task, columns),
        out,
        calibration,
        shard=Ranks.of(shard) if shard else None,
        num_actors=ray,
        loading=asdict(loading),
        streaming=streaming,
        overwrite=overwrite,
        progress=bars(json=json),
    )
    if Ranks.here().rank:
        return
    if json:
        print_json({"files": made})
        return
    for entry in made:
        made_now = f"{entry['num_tokens']:,} tokens in {entry['num_rows']} rows"
        state = "was there already" if entry["skipped"] else made_now
        results.print(f"{escape(entry['path'])}: {state}")


@app.command
def mask(
    model: Model,
    /,
    *stats: Annotated[Path, Parameter(help="Statistics of `seap calibrate`.")],
    out: Annotated[Path, Parameter(help="The mask file, such as masks/gsm8k.safetensors.")],
    pruning: Annotated[Pruning, FlatDetails] = Pruning(),  # noqa: B008
    general: Annotated[Path | None, Parameter(help="Statistics of text to mix in with --mix.")] = None,
    seed: Annotated[int, Parameter(help="Seeds the random score.")] = Calibration.seed,
    loading: Annotated[Loading, FlatMachine] = Loading(),  # noqa: B008
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Choose what stays, from statistics that are there already.

    Example: `seap mask builtin stats/arithmetic.safetensors --sparsity 0.5 --out masks/arithmetic.safetensors`
    """
    from seap.pruning.stages import mask_to_file

    check_one_amount()
    place: dict[str, Any] = {"overwrite": overwrite, "loading": asdict(loading)}
    about = mask_to_file(model, stats, out, pruning, general=general, seed=seed, **place)
    if json:
        print_json(about)
        return
    state = "was there already" if about["skipped"] else f"realised sparsity {about['realised_sparsity']:.4f}"
    results.print(f"{escape(str(out))}: {state}")


@app.command
def merge(
    *stats: Annotated[Path, Parameter(help="Statistics files of one model.")],
    out: Annotated[Path, Parameter(help="The merged statistics file.")],
    task: Annotated[str | None, Parameter(help="Its task's name, where the parts' names differ.")] = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Add up statistics: shards of one task (exactly as if made in one go), or several tasks pooled.

    Example: `seap merge shard0/gsm8k.safetensors shard1/gsm8k.safetensors --out stats/gsm8k.safetensors`
    """
    from seap.pruning.stages import merge_files

    about = merge_files(stats, out, task=task, overwrite=overwrite)
    if json:
        print_json(about | {"path": str(out)})
        return
    tokens = f"{about['num_tokens']:,} tokens of {len(about['parts'])} parts"
    results.print(f"{escape(str(out))}: task {about['task']}, {tokens}")
