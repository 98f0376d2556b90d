"""What the task runtime costs: switching, memory per task, decode speed beside the packed pruned checkpoint.

    python runs/serving/bench_runtime.py --out results/serving/bench_runtime.json

The built-in model with the networks of its nine tasks (half removed): masks alone (seap-paper), the default method,
and that within a share of the dense parameters. And random Llamas wide enough for their weights to leave the caches,
with masks like those of two tasks that share three quarters. Speeds are ratios within one run, the models in turn.
"""

import argparse
import copy
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import seap
from seap.bench.speed import decode, prefill
from seap.environment import provenance
from seap.files import write_json
from seap.models.arch import describe
from seap.models.axes import Masks
from seap.pruning.prune import build_corpora
from seap.pruning.surgery import cut_
from seap.serving.networks.network import Network, network_between, weight_key
from seap.serving.networks.runtime import TaskRuntime
from seap.serving.networks.sharing import share_weights
from seap.text.builtin import TASKS
from seap.text.options import Calibration

SPARSITY, TOKENS, SHARE = 0.5, 2000, 0.025
ALWAYS, NEVER = 0, 1 << 40  # slices, however small or large
WIDE, WIDER = (
    LlamaConfig(
        hidden_size=64 * heads,
        intermediate_size=176 * heads,
        num_hidden_layers=4,
        num_attention_heads=heads,
        num_key_value_heads=8,
        vocab_size=4096,
        head_dim=64,
    )
    for heads in (16, 32)
)


def dense_bytes(model: Any) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


def networks_of(model: Any, tokenizer: Any, method: str) -> dict[str, dict[str, Network]]:
    """What is measured (the method, and it within SHARE where it reconstructs) → task → network."""
    found: dict[str, dict[str, Network]] = {}
    for task in TASKS:
        pruned = copy.deepcopy(model)
        options: dict[str, Any] = {"method": method, "sparsity": SPARSITY, "max_tokens": TOKENS, "progress": False}
        report = seap.prune(pruned, tokenizer, task=task, **options)
        network = network_between(model, pruned, report.masks)
        found.setdefault(method, {})[task] = network
        if network.weights:
            [corpus] = build_corpora(model, tokenizer, task, Calibration(max_tokens=TOKENS)).values()
            given: dict[str, Any] = {"batch_tokens": Calibration.batch_tokens, "progress": False}
            shared = share_weights(model, pruned, network, corpus.rows, share=SHARE, **given)
            found.setdefault(f"{method} --share {SHARE}", {})[task] = shared
    return found


def memory(model: Any, networks: Mapping[str, Network], min_slice_bytes: int) -> dict[str, Any]:
    """Bytes that each task adds, as a share of the dense model's, and the share of changed linears that are views."""
    runtime = TaskRuntime(copy.deepcopy(model), networks, min_slice_bytes=min_slice_bytes)
    pieces = [piece for own in runtime.pieces.values() for piece in own]
    shares = [size / dense_bytes(model) for size in runtime.bytes.values()]
    return {
        "tasks": len(networks),
        "min_slice_bytes": min_slice_bytes,
        "added_per_task": sum(shares) / len(shares),
        "most_added": max(shares),
        "linears_without_a_copy": sum(not piece.packed for piece in pieces) / len(pieces),
        "mean_slices": sum(len(piece.bounds) for piece in pieces) / len(pieces),
    }


def switching(runtime: TaskRuntime, repeats: int = 400) -> dict[str, float]:
    """Seconds that a switch takes: between resident networks, and where the network has to be packed first."""
    names = [*runtime.networks]
    first = [timed(lambda name=name: runtime.switch_(name)) for name in names]
    again = [timed(lambda i=i: runtime.switch_(names[i % len(names)])) for i in range(repeats)]
    runtime.switch_("dense")
    return {"resident_median_s": median(again), "resident_max_s": max(again), "first_median_s": median(first)}


def layouts() -> list[dict[str, Any]]:
    """Microseconds of one linear on half of a consumer's columns: held in one piece, as a column view, as held here."""
    found = []
    for outputs, inputs in ((192, 512), (1024, 2816), (4096, 11008)):
        weight, half = torch.randn(outputs, inputs), inputs // 2
        outermost = weight.t().contiguous()
        ways = {"packed": weight[:, :half].contiguous(), "columns": weight[:, :half], "held": outermost[:half].t()}
        for rows in (1, 8):
            x = torch.randn(rows, half)
            row: dict[str, Any] = {"outputs": outputs, "inputs": inputs, "rows": rows}
            for name, part in ways.items():
                times = [timed(lambda x=x, part=part: torch.nn.functional.linear(x, part)) for _ in range(200)]
                row[name] = 1e6 * median(times)
            found.append(row)
    return found


def timed(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def speeds(runtime: TaskRuntime, task: str, packed: Any, dense: Any, rows: int, repeats: int) -> dict[str, float]:
    """The packed checkpoint's time over the runtime's, and the dense model's: of the fastest repeat of each, in turn.

    The fastest, since whoever else uses the machine can only slow a run down.
    """
    found = {}
    for phase, run in {"decode": lambda m: decode(m, rows, 32, 24), "prefill": lambda m: prefill(m, rows, 128)}.items():
        times: list[list[float]] = []
        for _ in range(repeats + 1):
            with runtime.task(task) as model:
                own = run(model)
            times.append([own, run(packed), run(dense)])
        for name, place in (("packed", 1), ("dense", 2)):
            best = min(row[place] for row in times[1:]) / min(row[0] for row in times[1:])
            found[f"{phase}_speed_over_{name}"] = best
    return found


def like_two_tasks(model: Any) -> dict[str, Masks]:
    """Two random masks of half the units, which share three quarters of what they keep."""
    generator = torch.Generator().manual_seed(0)
    masks: dict[str, Masks] = {"a": {}, "b": {}}
    for axis in describe(model).axes:
        order, half = torch.randperm(axis.units, generator=generator), axis.units // 2
        for name, start in (("a", 0), ("b", half // 4)):
            keep = torch.zeros(axis.units, dtype=torch.bool)
            keep[order[start : start + half]] = True
            masks[name][axis.key] = keep
    return masks


def cut(model: Any, masks: Masks) -> Any:
    pruned = copy.deepcopy(model)
    cut_(pruned, masks)
    return pruned


def corrected(model: Any, masks: Masks) -> Network:
    """A network with random corrections of one rank in every linear, within SHARE."""
    arch, left, right = describe(model), {}, {}
    linears = [(axis, part) for axis in arch.axes for part in axis.slices]
    sizes = {}
    for axis, part in linears:
        shape = [*arch.weight(axis.layer, part.module).shape]
        shape[1 if part.consumer else 0] = len(part.indices(masks[axis.key]))
        sizes[weight_key(axis, part)] = shape
    rank = int(SHARE * sum(p.numel() for p in model.parameters()) / sum(map(sum, sizes.values())))
    for key, (outputs, inputs) in sizes.items():
        left[key], right[key] = 0.01 * torch.randn(outputs, rank), 0.01 * torch.randn(rank, inputs)
    return Network(masks, left=left, right=right)


def measure_speed(model: Any, label: str, *, repeats: int, sliced_only: bool) -> list[dict[str, Any]]:
    """Each way, for the network that is the most slices."""
    masks, rows = like_two_tasks(model), []
    low = corrected(model, masks["a"])
    ways: dict[str, tuple[Mapping[str, Any], int]] = {
        "views": (masks, ALWAYS),
        "slices": (four_tasks(masks), ALWAYS),
        "slices of 256 kB": (four_tasks(masks), 256 << 10),
        "packed copies": (four_tasks(masks), NEVER),
        f"views, corrections within {SHARE}": (masks | {"a": low}, ALWAYS),
    }
    if sliced_only:
        ways = {name: way for name, way in ways.items() if len(way[0]) > len(masks)}
    for name, (networks, least) in ways.items():
        runtime = TaskRuntime(copy.deepcopy(model), networks, min_slice_bytes=least)
        slices = {task: sum(len(p.bounds) for p in own) / len(own) for task, own in runtime.pieces.items()}
        task = max(slices, key=lambda task: slices[task])
        packed = cut(model, runtime.masks(task))
        row: dict[str, Any] = {"model": label, "how": name, "mean_slices": slices[task]}
        row |= switching(runtime)
        row |= {"added_per_task": max(runtime.bytes.values()) / dense_bytes(model)}
        for batch in (1, 8):
            row |= {f"batch_{batch}": speeds(runtime, task, packed, model, batch, repeats)}
        rows.append(row)
    return rows


def four_tasks(masks: dict[str, Masks]) -> dict[str, Masks]:
    """With more tasks, so that one or another is several slices in every order of units."""
    generator = torch.Generator().manual_seed(1)
    more: dict[str, Masks] = {}
    for place in range(2):
        more[f"more{place}"] = {k: m[torch.randperm(len(m), generator=generator)] for k, m in masks["b"].items()}
    return masks | more


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/serving/bench_runtime.json"))
    parser.add_argument("--speed-only", action="store_true", help="leave memory and switching of the tasks out")
    parser.add_argument(
        "--sliced-only", action="store_true", help="nothing but networks of several slices, wide models"
    )
    parser.add_argument("--repeats", type=int, default=15, help="of every speed")
    arguments = parser.parse_args()
    how: dict[str, Any] = {"repeats": arguments.repeats, "sliced_only": arguments.sliced_only}
    model, tokenizer = seap.load("builtin", dtype="float32", device="cpu")
    found: dict[str, Any] = {"sparsity": SPARSITY, "memory": [], "switching": [], "layouts": layouts()}
    for method in () if arguments.speed_only or arguments.sliced_only else ("seap-paper", "seap"):
        for what, networks in networks_of(model, tokenizer, method).items():
            for num in (2, 3, 9):
                some = dict([*networks.items()][:num])
                for least in (ALWAYS, 256 << 10, NEVER):
                    found["memory"].append({"method": what} | memory(model, some, least))
            runtime = TaskRuntime(copy.deepcopy(model), networks)
            found["switching"].append({"model": "builtin", "method": what, **switching(runtime)})
    found["speed"] = [] if arguments.sliced_only else measure_speed(model, "builtin", **how)
    for config in (WIDE, WIDER):
        torch.manual_seed(0)
        label = f"llama of width {config.hidden_size}"
        found["speed"] += measure_speed(LlamaForCausalLM(config).eval(), label, **how)
    found |= provenance()
    write_json(arguments.out, found | {"threads": torch.get_num_threads()})


if __name__ == "__main__":
    main()
