"""Where a step's time goes: kernels by their own time, and what each linear's weight is read at.

Shapes: N rows, C inputs and O outputs of a linear.
"""

from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from torch.nn.functional import linear
from torch.profiler import ProfilerActivity, profile

from seap.bench.speed import Runner
from seap.environment import clock
from seap.models.arch import describe

STEPS = 4  # decoded while the profiler looks
COPIES = 1 << 28  # bytes of weights that are read in turn on a GPU, more than its cache holds
KERNELS = 15  # that are told


def profile_phase(model: Any, phase: str, *, batch: int, length: int, mode: str = "eager") -> dict[str, Any]:
    """A prefill, or decode steps: the clock's time, the kernels' own time, and the kernels that take most of it.

    idle is the share of the time in which the device ran no kernel: launches, Python. Milliseconds a run (or a step).
    """
    runner = Runner.of(model, mode, length + STEPS)
    on_gpu = model.device.type == "cuda"

    def run() -> float:
        return runner.prefill(batch, length) if phase == "prefill" else runner.decode(batch, length, STEPS)

    run()
    seconds = median(run() for _ in range(3))
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=kinds) as seen:
        run()
    own = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    # On a GPU operators have the time of the kernels that they start, which have rows of their own.
    events = [event for event in seen.key_averages() if event.device_type.name == ("CUDA" if on_gpu else "CPU")]
    rows = sorted(events, key=lambda event: -getattr(event, own))
    kernels = sum(getattr(event, own) for event in rows) / 1e6
    steps = 1 if phase == "prefill" else STEPS
    return {
        "phase": phase,
        "batch": batch,
        "mode": mode,
        "milliseconds": 1e3 * seconds / steps,
        "idle": max(1 - kernels / seconds, 0.0) if on_gpu else None,
        "kernels": [
            {"name": event.key[:120], "calls": event.count, "share": getattr(event, own) / 1e6 / max(kernels, 1e-12)}
            for event in rows[:KERNELS]
            if getattr(event, own)
        ],
    }


@torch.no_grad()
def linear_rates(model: Any, *, batch: int, repeats: int = 20) -> list[dict[str, Any]]:
    """Bytes a second at which each shape of linear in the middle layer reads its weight for N = batch rows."""
    arch = describe(model)
    found: dict[tuple[int, ...], dict[str, Any]] = {}
    layer = arch.layers[len(arch.layers) // 2]
    for name, module in layer.named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, torch.Tensor) or weight.dim() != 2 or tuple(weight.shape) in found:
            continue
        rows = torch.randn(batch, weight.shape[1], device=weight.device, dtype=weight.dtype)
        if weight.is_cuda:
            seconds = _seconds_on_gpu(rows, weight, repeats)
        else:
            seconds = _seconds(partial(linear, rows, weight), weight.device, repeats)
        about = {"linear": name, "outputs": weight.shape[0], "inputs": weight.shape[1], "batch": batch}
        found[tuple(weight.shape)] = about | {"bytes_per_s": weight.nbytes / seconds, "microseconds": 1e6 * seconds}
    return list(found.values())


def _seconds(run: Callable[[], Any], device: torch.device, repeats: int) -> float:
    taken = []
    for _ in range(repeats):
        started = clock(device)
        run()
        taken.append(clock(device) - started)
    return median(taken[repeats // 4 :])


def _seconds_on_gpu(rows: torch.Tensor, weight: torch.Tensor, repeats: int) -> float:
    """Of a product alone: of copies that don't fit into the cache, in a graph, so that no launch is waited for."""
    copies = [weight.clone() for _ in range(max(4, COPIES // weight.nbytes))]
    aside = torch.cuda.Stream(weight.device)
    aside.wait_stream(torch.cuda.current_stream(weight.device))
    with torch.cuda.stream(aside):
        linear(rows, weight)
    torch.cuda.current_stream(weight.device).wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for copy in copies:
            linear(rows, copy)
    return _seconds(graph.replay, weight.device, repeats) / len(copies)


def library(device: torch.device, dtype: torch.dtype, mode: str) -> str:
    """Whose products a model's linears run on, in a mode of `seap bench`."""
    if device.type == "cuda":
        return "cuBLAS or Triton, by torch.compile" if mode == "compile" else "cuBLAS"
    if device.type != "cpu":
        return device.type
    if mode == "prepacked":
        return "oneDNN, weights prepacked"
    if mode == "auto":
        return f"the faster of oneDNN with prepacked weights and {library(device, dtype, 'eager')}, by shape"
    if mode == "compile":
        return "oneDNN or MKL, by torch.compile"
    if dtype in (torch.bfloat16, torch.float16) and torch.backends.mkldnn.is_available():
        return "oneDNN"
    return "MKL" if torch.backends.mkl.is_available() else "the BLAS that PyTorch was built with"
