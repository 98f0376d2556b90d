"""One part of `runs/speed/gpu.sh`: a measurement that ends within three minutes on a large GPU, and its file.

    python runs/speed/gpu.py --list
    python runs/speed/gpu.py PART [--out results/speed] [--device cuda] [--shape llama:0.002b] [--quick]

--shape takes the place of every part's own; --quick measures once and little, to see that a part runs. Where decode
reaches less than 95% of its ceiling, or prefill less than 90%, kernels are profiled, dense and pruned.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from random_folder import make_model

from seap.activations.calibration import calibrate
from seap.bench.bench import measure, models_for
from seap.bench.calibration import bench_calibration, random_corpus
from seap.bench.options import Bench
from seap.bench.profile import linear_rates, profile_phase
from seap.environment import clock, provenance
from seap.files import write_json
from seap.models.shapes import random_model
from seap.models.solving import seconds_of
from seap.pruning.prune import prune
from seap.text.options import Calibration

REACHED = {"decode": 0.95, "prefill": 0.90}


@dataclass(frozen=True, kw_only=True)
class Part:
    """What is measured: speed of a shape, what calibration or pruning costs, or processes that add up over nccl."""

    shape: str
    sparsity: float = 0.5
    mode: tuple[str, ...] = ("eager", "graphs")  # the latter on a GPU
    batch: tuple[int, ...] = (1, 8)
    phase: tuple[str, ...] = ("prefill", "decode")
    kind: str = "speed"
    layers: int | None = None  # of the shape's, from the first; all of them
    vocabulary: int | None = None  # that the pruned one keeps; all of it


PARTS: dict[str, Part] = {  # the most telling first
    "7b_50": Part(shape="llama-2-7b"),
    "8b_50": Part(shape="llama-3-8b"),
    "7b_20": Part(shape="llama-2-7b", sparsity=0.2),
    "8b_20": Part(shape="llama-3-8b", sparsity=0.2),
    "1b_50_vocabulary": Part(shape="llama-3.2-1b", vocabulary=32_000, phase=("decode",)),
    "7b_pruning": Part(shape="llama-2-7b", kind="pruning"),
    "1b_pruning": Part(shape="llama-3.2-1b", kind="pruning"),
    "7b_pruning_8_layers": Part(shape="llama-2-7b", kind="pruning", layers=8),
    "7b_calibration": Part(shape="llama-2-7b", kind="calibration"),
    "8b_calibration": Part(shape="llama-3-8b", kind="calibration"),
    "13b_50": Part(shape="llama-2-13b"),
    "13b_20": Part(shape="llama-2-13b", sparsity=0.2),
    "nccl": Part(shape="llama-3.2-1b", kind="nccl"),
}


def speed(part: Part, device: str, quick: bool) -> Iterator[dict[str, Any]]:
    """`seap bench` of the part; then the same with the rates of the linears, and with profiles where it falls short."""
    size: dict[str, Any] = {"prompt_length": 128, "new_tokens": 32, "repeats": 5}
    if quick:
        size = {"prompt_length": 8, "new_tokens": 2, "repeats": 1}
    modes = tuple(mode for mode in part.mode if device.startswith("cuda") or mode != "graphs")
    about: dict[str, Any] = {"mode": modes, "batch": part.batch, "phase": part.phase, "round_to": 64}
    options = Bench(random_weights=part.shape, sparsity=part.sparsity, vocabulary=part.vocabulary, **about, **size)
    loading = {"device": device, "dtype": "bfloat16"}
    models = models_for((), options, loading)
    found = measure(models, options, part.shape)
    yield found
    found["linears"] = [
        {"model": name} | rate
        for batch in part.batch
        for name, model in models.items()
        for rate in linear_rates(model, batch=batch)
    ]
    yield found
    rows = {(row["phase"], row["batch"]): row for row in found["rows"]}.values()  # of the last mode
    short = [row for row in rows if row["ratio"] < REACHED[row["phase"]] * row["ceiling"]]
    found["profiles"] = [
        {"model": name}
        | profile_phase(model, row["phase"], batch=row["batch"], length=options.prompt_length, mode="eager")
        for row in short
        for name, model in models.items()
    ]
    yield found


def calibration(part: Part, device: str, quick: bool) -> Iterator[dict[str, Any]]:
    model = random_model(part.shape, dtype="bfloat16", device=device)
    found = bench_calibration(model, tokens=256 if quick else 16384, length=64 if quick else 256, repeats=1)
    yield found
    yield found | {"solves": solves(device, (64,) if quick else (1024, 4096))}


def pruning(part: Part, device: str, quick: bool) -> Iterator[dict[str, Any]]:
    """The default, from calibration to the cut, of a model in memory: seconds of both, and the most memory."""
    model = random_model(part.shape, dtype="bfloat16", device=device)
    if part.layers is not None:
        model.model.layers = model.model.layers[: part.layers]
        model.config.num_hidden_layers = len(model.model.layers)
    corpus = random_corpus(model, *((512, 32) if quick else (16384, 256)))
    started = clock(model.device)
    statistics = calibrate(model, corpus, Calibration(second_moments=True), progress=False)
    calibrated = clock(model.device)
    report = prune(model, statistics={"random": statistics}, sparsity=part.sparsity, progress=False)
    ended = clock(model.device)
    on_gpu = torch.cuda.max_memory_allocated() if model.device.type == "cuda" else None
    row = {"layers": len(model.model.layers), "params": report.params_before, "tokens": corpus.num_tokens}
    row |= {"seconds": ended - started, "calibration_seconds": calibrated - started}
    row |= {"gpu_bytes": on_gpu, "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    yield {"kind": "pruning", "rows": [row | {"realised_sparsity": report.realised_sparsity}]}


def solves(device: str, sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    """Seconds of a factor, a solution and two products in float64, n by n: what a pruning solves with, and where."""
    places = dict.fromkeys((device, "cpu"))
    return [{"device": p, "inputs": n, "seconds": seconds_of(torch.device(p), n)} for n in sizes for p in places]


def nccl(part: Part, device: str, quick: bool) -> Iterator[dict[str, Any]]:
    """Calibration by as many processes as there are GPUs (two on a CPU, over gloo), beside one alone."""
    count = torch.cuda.device_count() if device == "cuda" else 2
    tokens, rows = "512" if quick else "65536", []
    with tempfile.TemporaryDirectory() as place:
        make_model(part.shape, Path(place) / "model", num_texts=int(tokens) // 64)
        for workers in sorted({1, count}):
            launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(workers), "-m", "seap"]
            words = ["calibrate", f"{place}/model", "--task", f"words={place}/model/words.txt", "--num-texts", "100000"]
            words += ["--max-tokens", tokens, "--seq-len", "256", "--pack", "--device", device]
            words += ["--out", f"{place}/{workers}"]
            environment = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
            started = time.perf_counter()
            subprocess.run([sys.executable, *launcher, *words], check=True, capture_output=True, env=environment)
            rows.append({"workers": workers, "seconds": time.perf_counter() - started})
    yield {"kind": "workers", "backend": "nccl" if device == "cuda" else "gloo", "tokens": int(tokens), "rows": rows}


KINDS = {"speed": speed, "calibration": calibration, "pruning": pruning, "nccl": nccl}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=PARTS)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("results/speed"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.list or options.part is None:
        print("\n".join(PARTS))
        return
    part = replace(PARTS[options.part], **({"shape": options.shape} if options.shape else {}))
    about = {"part": options.part, "shape": part.shape, "device": options.device, "quick": options.quick}
    found: dict[str, Any] = {}
    for found in KINDS[part.kind](part, options.device, options.quick):  # what comes first is kept if time runs out
        write_json(options.out / f"gpu_{options.part}.json", found | about | provenance())
    rows = found.get("rows") or [{name: found[name] for name in ("calibration_cost", "second_moments_cost")}]
    print(options.part, json.dumps([*rows, *found.get("solves", [])]))


if __name__ == "__main__":
    main()
