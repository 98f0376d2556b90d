"""What `seap prune --plan` says against what the run takes, and what models of 0.1 to 70 B are computed to cost.

    python runs/speed/cost.py MODEL --task NAME=PATH [--sparsity 0.5] [--more="--effort quick"] --out FILE
    python runs/speed/cost.py --computed [--shapes NAME …] [--measured FILE] --out FILE
    python runs/speed/cost.py --streamed [--shapes NAME …] --out FILE

The first plans and runs one pruning, each in a process of its own: seconds of the clock and of the processor, peak
memory, and their ratios to the plan. The second computes, for public shapes and 16,384 tokens, what each stage takes at
the rates measured on this machine, and at rates assumed for a GPU (`ASSUMED`); nothing is run but the measuring, and
with --measured not even that: what was measured is kept as it stands in that file, and the rest computed anew. The
third computes `--stream --moments block:1024` of 16-bit weights, by one process and by several (`streamed`), at assumed
rates alone.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from seap.activations.calibration import num_blocks
from seap.environment import provenance
from seap.files import write_json
from seap.models import shelf
from seap.models.configs import on_meta
from seap.models.options import Streaming
from seap.models.shapes import shape_config
from seap.pruning import memory, streamed_cost
from seap.pruning.cost import Shape, pruning_stages, shape_of
from seap.pruning.rates import Rates, Taken, measure_rates
from seap.pruning.work import Done, Text, merged
from seap.selection.options import Pruning
from seap.text.options import Calibration

TEXT = Text(16384, 4, 64)
COMPUTED = ("llama:0.1b", "llama:0.5b", "llama-3.2-1b", "llama-2-7b", "llama-3-8b", "llama-2-13b", "llama-3-70b")
METHODS = ("seap", "flap")
DISK = 2e9  # bytes per second that are read or written: an NVMe disk; assumed
RANKS = 8
DEALT = {"scores": 1.0, "damage": 1.0, "refit": 0.6}  # of the solves of a stage; of five dampings' two are waited for
# An 80 GB GPU at about half of its rates: 16-bit and 32-bit products, bytes of its memory and over its bus. In float64
# an A100 promises 19.5e12 (an H100 67e12): half of it for products, and Cholesky factors and triangular systems, as
# which all of a solve is counted, at 0.4 of that.
ASSUMED = {"products": 300e12, "moments": 30e12, "bytes": 1.5e12, "call": 1e-3, "bus": 8e9}
ASSUMED["solves"] = 0.4 * 0.5 * 19.5e12


def arguments_of(options: argparse.Namespace, place: str) -> list[str]:
    words = [sys.executable, "-m", "seap", "prune", options.model, "--task", options.task, "--out", f"{place}/out"]
    words += ["--sparsity", str(options.sparsity), "--max-tokens", "16384", "--num-texts", "400", "--seq-len", "256"]
    words += ["--device", options.device, "--dtype", "float32" if options.device == "cpu" else "auto"]
    return [*words, "--json", *(options.more or "").split()]


def measured(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        words = arguments_of(options, place)
        plan = json.loads(subprocess.run([*words, "--plan"], check=True, capture_output=True, text=True).stdout)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        started = time.perf_counter()
        report = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
        seconds, used = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    truth = {"seconds": seconds, "cpu_seconds": cpu, "peak_bytes": used.ru_maxrss * 1024}
    ratios = {
        "seconds": plan["seconds"] / seconds,
        "cpu_seconds": plan["cpu_seconds"] / cpu,
        "memory": plan["memory_bytes"] / truth["peak_bytes"],
    }
    return {"model": options.model, "plan": plan, "run": truth, "plan_over_run": ratios, "tokens": report["num_tokens"]}


def on_a_gpu(shape: Shape) -> Rates:
    """What one unit of each kind of work takes at the assumed rates."""

    def taken(seconds: float) -> Taken:
        return Taken(seconds, seconds)

    forward, head = 2 * shape.active / ASSUMED["products"], 2 * shape.vocabulary * shape.hidden / ASSUMED["products"]
    words = 6 * 4 * shape.vocabulary / ASSUMED["bytes"]
    return Rates(
        forward=taken(forward),
        backward=taken(forward),
        positions=taken(head + words),
        backward_positions=taken(2 * head + words),
        passes=taken(ASSUMED["call"]),
        moments=taken(1 / ASSUMED["moments"]),
        solves=taken(1 / ASSUMED["solves"]),
    )


def brought(shape: Shape, options: Pruning, count: int, moments: str = "full") -> Taken:
    """Bringing second moments to a GPU: of each axis in float32, and of its held-out rows, for each of its solves."""
    if not options.needs_second_moments:
        return Taken(0.0, 0.0)
    whole = sum(8 * axis.num_inputs**2 / num_blocks(axis, moments) for axis in shape.axes)
    trials = options.spent.search_evaluations if options.resolved().allocate == "search" else 0
    each = 1 + options.spent.descents + 1 + 2 * trials / max(len(shape.axes), 1)  # slopes, the search and the repair
    seconds = whole * (2 + count * each) / ASSUMED["bus"]  # scores and damage once
    return Taken(seconds, seconds)


def kept(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Shape and method → what was measured."""
    return {(row["shape"], row["method"]): row["cpu"] for row in json.loads(path.read_text())["rows"]}


def computed(name: str, measured: Mapping[tuple[str, str], dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each method, all by one measuring of the rates, unless it was measured."""
    model, rows, here = on_meta(shape_config(name)), [], None
    for method in METHODS:
        pruning = Pruning(method=method)
        shape = shape_of(model, pruning, torch.float32.itemsize)
        row: dict[str, Any] = {"shape": name, "method": method, "params": shape.params, "tokens": TEXT.tokens}
        if (name, method) in measured:
            row["cpu"] = measured[name, method]
        else:
            here = here or measure_rates(shape, device="cpu", dtype=torch.float32, length=256, batch_tokens=4096)
            row["cpu"] = _figures(*(_seconds(shape, pruning, here, count) for count in (1, 2)))
        gpu = on_a_gpu(shape)
        one, two = (_seconds(shape, pruning, gpu, count) + brought(shape, pruning, count) for count in (1, 2))
        row["gpu_assumed"] = _figures(one, two)
        with mock.patch.object(shelf, "has_room", return_value=True):  # the disk that is told of, not this one
            needs = memory.of(shape, pruning, {"text": TEXT}, Calibration())
        rows.append(row | {"memory_bytes": needs.memory, "disk_bytes": sum(part for _, part, _ in needs.disk)})
    return rows


def _figures(one: Taken, two: Taken) -> dict[str, float]:
    """Of one sparsity, and what the second adds."""
    more = {"second_sparsity": two.wall - one.wall, "second_cpu_seconds": two.cpu - one.cpu}
    return {"seconds": one.wall, "cpu_seconds": one.cpu} | more


def streamed(name: str) -> list[dict[str, Any]]:
    """A row for each effort of the default layer by layer from the files: memory, disk, bytes read, seconds on a GPU.

    By `RANKS` processes, each with a GPU and the files on a disk of its own, what is dealt out takes so much less.
    """
    model, rows, calibration = on_meta(shape_config(name)), [], Calibration(moments="block:1024")
    for effort in ("quick", "standard"):
        pruning = Pruning(effort=effort)  # type: ignore[arg-type]
        shape = shape_of(model, pruning, torch.bfloat16.itemsize)
        needs = streamed_cost.needs(shape, pruning, {"text": TEXT}, calibration, Streaming(stream=True))
        read = streamed_cost.reading(shape, pruning, torch.bfloat16.itemsize, [0.5], 1, Done())
        stages = pruning_stages(shape, pruning, {"text": TEXT}, sparsities=[0.5], moments=calibration.moments)
        rates = replace(on_a_gpu(shape), **{kind: taken_at(DISK) for kind in ("read", "written")})
        seconds = {stage.name: rates.of(stage).wall for stage in merged([*stages, *read])}
        seconds["bringing moments to the GPU"] = brought(shape, pruning, 1, calibration.moments).wall
        disk_seconds = sum(rates.of(stage).wall for stage in read)
        one = sum(rates.of(replace(stage, solves=stage.solves * DEALT.get(stage.name, 0.0))).wall for stage in stages)
        rows.append(
            {
                "shape": name,
                "effort": effort,
                "params": shape.params,
                "tokens": TEXT.tokens,
                "memory_bytes": needs.memory,
                "disk_bytes": {what: size for what, size, _ in needs.disk},
                "read_bytes": sum(stage.read for stage in read),
                "seconds": sum(seconds.values()),
                "disk_seconds": disk_seconds,
                f"seconds_of_{RANKS}": sum(seconds.values()) - one * (1 - 1 / RANKS),
                "seconds_by_stage": seconds,
            }
        )
    return rows


def taken_at(bytes_per_s: float) -> Taken:
    return Taken(1 / bytes_per_s, 0.3 / bytes_per_s)


def _seconds(shape: Shape, pruning: Pruning, rates: Rates, count: int) -> Taken:
    total = Taken(0.0, 0.0)
    for stage in pruning_stages(shape, pruning, {"text": TEXT}, sparsities=[0.5] * count):
        total += rates.of(stage)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--task")
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--more", help="further options of seap prune, in one string")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--computed", action="store_true")
    parser.add_argument("--streamed", action="store_true")
    parser.add_argument("--measured", type=Path, help="a file of --computed, whose measured columns are kept")
    parser.add_argument("--shapes", nargs="+", default=COMPUTED)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    found: dict[str, Any] = {"kind": "cost"}
    if options.streamed:
        found |= {"rows": [row for name in options.shapes for row in streamed(name)], "disk_bytes_per_s": DISK}
        found["assumed"] = ASSUMED
    elif options.computed:
        known = kept(options.measured) if options.measured else {}
        found["rows"] = [row for name in options.shapes for row in computed(name, known)]
        found["assumed"] = ASSUMED
    else:
        found |= measured(options)
    made = provenance()
    if options.measured:  # the machine and the commit are those of what was measured
        before = json.loads(options.measured.read_text())
        made |= {name: before[name] for name in ("machine", "commit")} | {"assumed_commit": made["commit"]}
    write_json(options.out, found | made)
    print(json.dumps(found.get("rows") or found["plan_over_run"], indent=1))


if __name__ == "__main__":
    main()
