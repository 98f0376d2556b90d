"""What the task runtime costs: switching, memory per task, decode speed beside the packed pruned checkpoint.

    python runs/bench_runtime.py --out results/bench_runtime.json

The built-in model with the masks of its nine tasks (half removed, method seap-paper, so no reconstruction), and a
random Llama wide enough for its weights to leave the caches, with masks like those of two tasks that share three
quarters. Speeds are ratios within one run, the models in turn (seap/speed.py).
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
from seap.arch import describe
from seap.builtin import TASKS
from seap.environment import provenance
from seap.files import write_json
from seap.mask import Masks
from seap.network import Network, network_between
from seap.runtime import TaskRuntime
from seap.speed import decode, prefill
from seap.surgery import cut_

SPARSITY, TOKENS, REPEATS = 0.5, 2000, 15
WIDE = LlamaConfig(
    hidden_size=1024,
    intermediate_size=2816,
    num_hidden_layers=4,
    num_attention_heads=16,
    num_key_value_heads=8,
    vocab_size=4096,
    head_dim=64,
)


def dense_bytes(model: Any) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


def networks_of(model: Any, tokenizer: Any, method: str) -> dict[str, Network]:
    found = {}
    for task in TASKS:
        pruned = copy.deepcopy(model)
        options: dict[str, Any] = {"method": method, "sparsity": SPARSITY, "max_tokens": TOKENS, "progress": False}
        report = seap.prune(pruned, tokenizer, task=task, **options)
        found[task] = network_between(model, pruned, report.masks)
    return found


def memory(model: Any, networks: Mapping[str, Network], max_slices: int) -> dict[str, Any]:
    """Bytes that each task adds, as a share of the dense model's, and the share of changed linears that are views."""
    runtime = TaskRuntime(copy.deepcopy(model), networks, max_slices=max_slices)
    pieces = [piece for own in runtime.pieces.values() for piece in own]
    shares = [size / dense_bytes(model) for size in runtime.bytes.values()]
    return {
        "tasks": len(networks),
        "max_slices": max_slices,
        "added_per_task": sum(shares) / len(shares),
        "most_added": max(shares),
        "linears_without_a_copy": sum(not piece.is_packed(max_slices) for piece in pieces) / len(pieces),
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


def speeds(runtime: TaskRuntime, task: str, packed: Any, dense: Any, rows: int) -> dict[str, float]:
    """The packed checkpoint's time over the runtime's, and the dense model's: of the fastest repeat of each, in turn.

    The fastest, since whoever else uses the machine can only slow a run down.
    """
    found = {}
    for phase, run in {"decode": lambda m: decode(m, rows, 32, 24), "prefill": lambda m: prefill(m, rows, 128)}.items():
        times: list[list[float]] = []
        for _ in range(REPEATS + 1):
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


def wide() -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(WIDE).eval()


def measure_speed(model: Any, label: str) -> list[dict[str, Any]]:
    masks = like_two_tasks(model)
    packed, rows = cut(model, masks["a"]), []
    ways = (("views", masks, 1), ("slices", four_tasks(masks), 4), ("packed copies", four_tasks(masks), 1))
    for name, networks, slices in ways:
        runtime = TaskRuntime(copy.deepcopy(model), networks, max_slices=slices)
        bounds = [len(piece.bounds) for piece in runtime.pieces["a"]]
        row: dict[str, Any] = {"model": label, "how": name, "mean_slices": sum(bounds) / len(bounds)}
        row |= switching(runtime)
        row |= {"added_per_task": max(runtime.bytes.values()) / dense_bytes(model)}
        for batch in (1, 8):
            found = speeds(runtime, "a", packed, model, batch)
            row |= {f"batch_{batch}": found}
        rows.append(row)
    return rows


def four_tasks(masks: dict[str, Masks]) -> dict[str, Masks]:
    """With more tasks, so that the first is several slices in every order of units."""
    generator = torch.Generator().manual_seed(1)
    more: dict[str, Masks] = {}
    for place in range(2):
        more[f"more{place}"] = {k: m[torch.randperm(len(m), generator=generator)] for k, m in masks["b"].items()}
    return masks | more


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/bench_runtime.json"))
    parser.add_argument("--speed-only", action="store_true", help="leave memory and switching of the tasks out")
    arguments = parser.parse_args()
    model, tokenizer = seap.load("builtin", dtype="float32", device="cpu")
    found: dict[str, Any] = {"sparsity": SPARSITY, "memory": [], "switching": [], "layouts": layouts()}
    for method in () if arguments.speed_only else ("seap-paper", "seap"):
        networks = networks_of(model, tokenizer, method)
        for num in (2, 3, 9):
            some = dict([*networks.items()][:num])
            for slices in (1, 4, 16, 64):
                found["memory"].append({"method": method} | memory(model, some, slices))
        runtime = TaskRuntime(copy.deepcopy(model), networks)
        found["switching"].append({"model": "builtin", "method": method, **switching(runtime)})
    found["speed"] = measure_speed(model, "builtin") + measure_speed(wide(), "wide")
    found |= provenance()
    write_json(arguments.out, found | {"threads": torch.get_num_threads()})


if __name__ == "__main__":
    main()
