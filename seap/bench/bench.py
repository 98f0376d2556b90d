"""`seap bench`: prefill and decode of really sliced models, interleaved, beside what the hardware allows.

Decode reads every weight and the KV cache once a step, so its ceiling is dense bytes over pruned bytes; that of prefill
is the ratio of the operations. The limit in tokens per second comes from this machine's copy bandwidth and matrix rate.
"""

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import psutil
import torch

from seap.bench.options import Bench
from seap.bench.profile import library
from seap.bench.speed import compare_speed
from seap.environment import clock, provenance
from seap.errors import UserError
from seap.models import loader
from seap.models.arch import Arch, describe
from seap.models.prepack import check_prepack, product_of
from seap.models.shapes import random_model
from seap.pruning.prune import prune
from seap.vocabulary.embedding import cut_embeddings_

Models = dict[str, Any]


def bench(names: Sequence[str], options: Bench, *, loading: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Measure the first model against each other one, or a random one against itself pruned. See `Bench`."""
    models = models_for(names, options, loading or {})
    return measure(models, options, options.random_weights or names[0])


def measure(models: Models, options: Bench, name: str) -> dict[str, Any]:
    """Measure models that are loaded, the first against each other one; `name` is what the result calls them."""
    started = time.perf_counter()
    if {"prepacked", "auto"} & set(options.mode):
        for model in models.values():
            check_prepack(model)
    device = next(next(iter(models.values())).parameters()).device
    limits = {"copy_bytes_per_s": copy_bandwidth(device), "matrix_flops_per_s": matrix_rate(models, device)}
    runs = list(itertools.product(options.mode, options.batch))
    rows = [row for mode, batch in runs for row in _rows(models, mode, batch, options, limits)]
    return {
        "kind": "bench",
        "model": name,
        "models": {name: _about(model) for name, model in models.items()},
        "rows": rows,
        "limits": limits,
        "peak_bytes": _peak(device),
        "options": vars(options),
        "seconds": time.perf_counter() - started,
        **provenance(),
    }


def models_for(names: Sequence[str], options: Bench, loading: Mapping[str, Any]) -> Models:
    """By name the models that are named, or a random one and itself pruned."""
    if options.random_weights:
        if names:
            raise UserError(f"--random-weights makes the model itself; leave out {names[0]}, or the option")
        device = loader.check_device(loading.get("device", "auto"))
        dense = random_model(options.random_weights, dtype=loading.get("dtype", "auto"), device=device)
        pruned = deepcopy(dense)
        prune(pruned, method="random", sparsity=options.sparsity, round_to=options.round_to, progress=False)
        if options.vocabulary is not None:
            cut_embeddings_(pruned, range(min(options.vocabulary, dense.config.vocab_size)))
        return {"dense": dense, "pruned": pruned}
    if len(names) < 2:
        raise UserError("name two or more models, the dense one first, or --random-weights FAMILY:SIZE --sparsity 0.5")
    return {name: loader.load_for_work(name, **loading)[0] for name in names}


def _rows(models: Models, mode: str, batch: int, options: Bench, limits: Mapping[str, float]) -> list[dict[str, Any]]:
    found = compare_speed(
        models,
        batch=batch,
        length=options.prompt_length,
        new_tokens=options.new_tokens,
        repeats=options.repeats,
        mode=mode,
        phases=options.phase,
    )
    (first, dense), *others = models.items()
    rows = []
    for phase, speeds in found.items():
        most = {name: limit(model, phase, batch, options, limits) for name, model in models.items()}
        for name, model in others:
            mine, base = speeds[name], speeds[first]
            rows.append(
                {
                    "phase": phase,
                    "mode": mode,
                    "batch": batch,
                    "library": library(model.device, model.dtype, mode),
                    "model": name,
                    "dense_tokens_per_s": base["tokens_per_s"],
                    "pruned_tokens_per_s": mine["tokens_per_s"],
                    "ratio": mine["ratio"],
                    "ratio_low": mine["ratio_low"],
                    "ratio_high": mine["ratio_high"],
                    "ceiling": work(dense, phase, batch, options) / work(model, phase, batch, options),
                    "dense_of_limit": base["tokens_per_s"] / most[first],
                    "pruned_of_limit": mine["tokens_per_s"] / most[name],
                }
            )
    return rows


def work(model: Any, phase: str, batch: int, options: Bench) -> float:
    """Bytes that a decode step reads, or operations that reading one token in the prompt takes (without lm_head)."""
    embedding = model.get_input_embeddings().weight
    head = model.get_output_embeddings().weight
    size, arch = embedding.element_size(), describe(model)
    linears = sum(p.numel() for p in model.parameters()) - embedding.numel() - (head is not embedding) * head.numel()
    linears -= idle_params(arch, 1 if phase == "prefill" else batch)
    if phase == "prefill":
        widths = sum(axis.num_inputs for axis in arch.axes if axis.name == "kv_groups")
        return 2.0 * (linears + widths * options.prompt_length)  # scores and their sums, half of them masked
    length = options.prompt_length + options.new_tokens / 2
    groups = sum(axis.units for axis in arch.axes if axis.name == "kv_groups") if arch.can_cut_heads else 0
    cache = 2 * groups * (arch.head_size if groups else 0) * length * batch
    return float((linears + head.numel() + cache) * size)


def idle_params(arch: Arch, tokens: int) -> float:
    """Parameters of the experts that none of so many tokens goes to, if every choice of experts is equally likely."""
    idle = 0.0
    for layer in range(len(arch.layers)):
        experts = arch.experts(layer)
        if experts is not None:
            params = experts.num_experts * experts.num_channels * experts.channel_params
            idle += params * (1 - experts.per_token / experts.num_experts) ** tokens
    return idle


def limit(model: Any, phase: str, batch: int, options: Bench, limits: Mapping[str, float]) -> float:
    """Tokens per second that this machine's bandwidth (decode) or matrix rate (prefill) allows at most."""
    if phase == "prefill":
        return limits["matrix_flops_per_s"] / work(model, phase, batch, options)
    return batch * limits["copy_bytes_per_s"] / work(model, phase, batch, options)


def copy_bandwidth(device: torch.device) -> float:
    """Bytes read and written per second by a copy, the best of some; enough that a launch takes nothing of it."""
    size = 1 << 28 if device.type == "cpu" else 1 << 30
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / _fastest(lambda: target.copy_(source), device)


def matrix_rate(models: Models, device: torch.device) -> float:
    """Operations per second of a square matrix product in the models' dtype, the best of some and of all libraries."""
    size = 2048 if device.type == "cpu" else 8192
    dtype = next(iter(models.values())).dtype
    one = torch.randn(size, size, device=device).to(dtype)
    products = [one.matmul, *filter(None, [product_of(one, None)])]
    return 2 * size**3 / min(_fastest(partial(product, one), device) for product in products)


def _fastest(run: Callable[[], Any], device: torch.device, repeats: int = 6) -> float:
    """Seconds of the fastest of some runs."""
    taken = []
    for _ in range(repeats):
        started = clock(device)
        run()
        taken.append(clock(device) - started)
    return min(taken)


def _about(model: Any) -> dict[str, Any]:
    dtype = str(model.dtype).removeprefix("torch.")
    return {
        "params": sum(p.numel() for p in model.parameters()),
        "bytes": loader.weight_bytes(model),
        "dtype": dtype,
    }


def _peak(device: torch.device) -> int:
    """Most memory in use so far: the device's, or this process's on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else psutil.Process().memory_info().rss
