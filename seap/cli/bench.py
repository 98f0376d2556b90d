"""The command that measures speed: bench."""

from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.markup import escape

from seap.bench.options import Bench
from seap.cli.app import Json, Overwrite, app, print_json, results
from seap.cli.panels import Flat, FlatMachine
from seap.errors import UserError
from seap.models.options import Loading


@app.command
def bench(
    *models: Annotated[str, Parameter(help="Model folders, the dense one first.")],
    bench: Annotated[Bench, Flat] = Bench(),  # noqa: B008
    calibration: Annotated[
        str | None, Parameter(help="Measure calibration of this model or random shape against a bare forward pass.")
    ] = None,
    tokens: Annotated[int, Parameter(help="Tokens that calibration is measured on.")] = 8192,
    out: Annotated[Path | None, Parameter(help="Also write the result file, which `seap report` reads.")] = None,
    loading: Annotated[Loading, FlatMachine] = Loading(),  # noqa: B008
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Measure prefill and decode of pruned against dense models, interleaved, beside the machine's own limits.

    Example: `seap bench --random-weights llama:0.5b --sparsity 0.5`
    """
    from seap.bench.bench import bench as run
    from seap.bench.calibration import bench_calibration, model_or_shape
    from seap.disk.claim import claimed
    from seap.files import write_json
    from seap.page.terminal import show_bench

    if calibration and (models or bench.random_weights):
        raise UserError("--calibration measures one model's calibration; leave out the other models")
    reads = {f"the model {name}": Path(name) for name in (*models, *([calibration] if calibration else []))}
    kind = "bench-calibration" if calibration else "bench"
    with claimed(out, kind, overwrite=overwrite, inputs=reads) if out is not None else nullcontext():
        if calibration:
            found = bench_calibration(model_or_shape(calibration, asdict(loading)), tokens=tokens)
        else:
            found = run(models, bench, loading=asdict(loading))
        if out is not None:
            write_json(out, found)
    if json:
        print_json(found)
        return
    show_bench(found, results)
    if out is not None:
        results.print(f"written to {escape(str(out))}; a page of it: seap report {escape(str(out))}")
