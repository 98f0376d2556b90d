"""Example result dicts for the report page: numbers that look like real ones and are not. `python tests/page_example.py
FOLDER` writes them as JSON."""

import json
import math
import random
import sys
from pathlib import Path
from typing import Any

TASKS = ["boolq", "gsm8k", "science", "piqa", "wikitext2", "python-code", "film-reviews", "speeches"]
METHODS = {"seap": 0.62, "seap-gen": 0.75, "flap": 0.9, "wanda-sp": 1.1, "magnitude": 1.5, "random": 1.9}
ABOUT = {
    "versions": {"python": "3.11.2", "torch": "2.11.0", "seap": "0.1.0"},
    "machine": {"cpu": "Example CPU @ 2.0 GHz", "cores": 2, "gpu": None},
    "commit": "0123456789abcdef0123456789abcdef01234567",
    "command": "seap compare natural-7m --sparsity 0.2 --sparsity 0.5 --seeds 3",
    "seconds": 1234.5,
}
CHANNELS, GROUPS = 704, 4


def row(method: str, task: str, sparsity: float, seed: int, loss: float, **more: Any) -> dict[str, Any]:
    """One row of a compare file, with every key that such a row has."""
    base = {"method": method, "task": task, "made_for": task, "control": None, "target_sparsity": sparsity}
    base |= {"realised_sparsity": sparsity, "total_sparsity": 0.8 * sparsity, "seed": seed, "loss": loss}
    base |= {"loss_stderr": 0.02, "loss_n": 100, "ppl": math.exp(loss), "acc": None, "acc_stderr": None}
    base |= {"acc_metric": None, "acc_norm": None, "n": 200, "kl": None, "agreement": None, "data_hash": None}
    base |= {
        "calibration_tokens": None,
        "layers": None,
        "params_after": int(7e6 * (1 - 0.8 * sparsity)),
        "seconds": 2.0,
    }
    return base | more


def compare(
    *, tasks: list[str] = TASKS, sparsities: tuple[float, ...] = (0.2, 0.5), seeds: int = 3, layers: int = 8
) -> dict[str, Any]:
    """Six methods with all controls, accuracy, widths and overlap."""
    chance = random.Random(0)
    dense = {task: 2.1 + 0.2 * i for i, task in enumerate(tasks)}
    rows = [_dense(task, loss, layers) for task, loss in dense.items()]
    for sparsity in sparsities:
        for seed in range(seeds):
            for i, task in enumerate(tasks):
                hurt = 2.2 * sparsity**2 * (0.6 + 0.12 * i)
                for method, factor in METHODS.items():
                    added = hurt * factor * chance.gauss(1, 0.05)
                    rows.append(_row(method, task, sparsity, seed, dense[task], added, layers))
                for control, factor in (("general-text", 1.15), ("pooled", 1.06), ("no-answers", 1.01)):
                    added = hurt * 0.62 * factor * chance.gauss(1, 0.04)
                    rows.append(_row("seap", task, sparsity, seed, dense[task], added, layers) | {"control": control})
                for other in tasks:
                    if other != task and seed == 0:
                        added = hurt * 0.62 * (1.2 + chance.random())
                        changed = {"control": "other-task", "made_for": other, "data_hash": f"{other}-{seed}-3f2a"}
                        rows.append(_row("seap", task, sparsity, seed, dense[task], added, layers) | changed)
    overlap = [_overlap(tasks, s, axis, chance) for s in sparsities for axis in ("channels", "kv_groups")]
    about = {"model": "natural-7m", "family": "llama", "params": 7_100_000, "prunable_params": 5_900_000}
    lists = {"sparsities": list(sparsities), "methods": list(METHODS), "tasks": tasks, "seeds": list(range(seeds))}
    options = {"compensate": "reconstruct", "allocate": "damage"}
    return {"kind": "compare"} | about | lists | {"rows": rows, "overlap": overlap, "options": options} | ABOUT


def _dense(task: str, loss: float, layers: int) -> dict[str, Any]:
    full = [{"kv_groups": GROUPS, "channels": CHANNELS}] * layers
    more = {"acc": 0.62, "acc_stderr": 0.03, "acc_metric": "continuation among four", "layers": full, "made_for": None}
    return row("dense", task, 0, 0, loss, **more)


def _row(method: str, task: str, sparsity: float, seed: int, dense: float, added: float, layers: int) -> dict[str, Any]:
    widths = []
    for i in range(layers):
        tilt = 0.25 * (i / max(1, layers - 1) - 0.5) * (1 if method.startswith("seap") else -0.5)
        keep = min(1.0, max(0.1, 1 - sparsity - tilt))
        widths.append({"kv_groups": max(1, round(GROUPS * keep)), "channels": round(CHANNELS * keep)})
    more: dict[str, Any] = {"acc": max(0.25, 0.62 - 0.35 * added), "acc_stderr": 0.033, "layers": widths}
    more |= {
        "acc_metric": "exact match" if task == "gsm8k" else "continuation among four",
        "agreement": 0.9 - 0.4 * added,
    }
    if task == "gsm8k":
        more |= {"loops": min(1.0, 0.05 + 0.3 * added), "loops_stderr": 0.02, "endless": 0.1, "endless_stderr": 0.02}
    if task == "science":
        more |= {"said": max(0.1, 0.5 - 0.3 * added), "said_stderr": 0.06, "recall": 0.4, "recall_stderr": 0.09}
    more |= {"calibration_tokens": 16_000, "data_hash": f"{task}-{seed}-3f2a", "realised_sparsity": sparsity + 0.0004}
    return row(method, task, sparsity, seed, dense + added, **more)


def _overlap(tasks: list[str], sparsity: float, axis: str, chance: random.Random) -> dict[str, Any]:
    table = [[1.0] * len(tasks) for _ in tasks]
    for i in range(len(tasks)):
        for j in range(i):
            table[i][j] = table[j][i] = 1 - sparsity * (0.5 + 0.5 * chance.random())
    expected = (1 - sparsity) / (1 + sparsity)
    about = {"method": "seap", "sparsity": sparsity, "seed": 0, "axis": axis, "tasks": tasks}
    return about | {"jaccard": table, "expected": expected}


def analyze(*, tasks: list[str] = TASKS, layers: int = 8, bins: int = 64, texts: int = 40) -> dict[str, Any]:
    chance = random.Random(1)
    points = []
    for i, task in enumerate(tasks):
        angle = 2 * math.pi * i / len(tasks)
        for _ in range(texts):
            x, y = 20 * math.cos(angle) + chance.gauss(0, 5), 20 * math.sin(angle) + chance.gauss(0, 5)
            points.append({"x": x, "y": y, "task": task})
    values = [[[math.exp(chance.gauss(0, 0.5)) for _ in range(bins)] for _ in range(layers)] for _ in tasks]
    sizes = (8, 16, 32, 64, 128)
    places = [(t, n) for t in tasks for n in sizes]
    stability = [
        {
            "task": t,
            "axis": axis,
            "sparsity": 0.5,
            "num_texts": n,
            "jaccard": 1 - 0.9 / math.sqrt(n) - chance.random() / 20,
        }
        for axis in ("channels", "kv_groups")
        for t, n in places
    ]
    enough = [{"task": t, "num_texts": n, "jaccard": 1 - 1 / n, "loss": 2.5 + 2 / n + len(t) / 50} for t, n in places]
    depth = [0.9 - 0.03 * i for i in range(layers)]
    overlap = [{"axis": "channels", "sparsity": 0.5, "per_layer": depth, "expected_per_layer": [0.33] * layers}]
    stability += [
        {"task": t, "axis": "channels", "sparsity": 0.2, "num_texts": 99 + i, "jaccard": 0.9 - i / 50, "expected": 0.67}
        for i, t in enumerate(tasks)
    ]
    found = {"kind": "analyze", "model": "natural-7m", "tasks": tasks, "stability": stability, "enough": enough}
    found |= {"map": {"method": "t-SNE", "layer": 3, "points": points}, "overlap": overlap}
    found |= {"silhouette": [0.1 + 0.6 * i / layers for i in range(layers)]}
    return found | {"activation": {"axis": "channels", "tasks": tasks, "values": values}} | ABOUT


def bench() -> dict[str, Any]:
    rows = []
    for phase, ratios in (("prefill", (1.3, 1.62, 1.7)), ("decode", (1.51, 1.4, 1.22))):
        for batch, ratio in zip((1, 8, 32), ratios, strict=True):
            speed = 120.0 * batch
            speeds = {"dense_tokens_per_s": speed, "pruned_tokens_per_s": speed * ratio}
            rows.append({"phase": phase, "batch": batch, "ratio": ratio, "ceiling": 1.87} | speeds)
    return {"kind": "bench", "model": "natural-7m", "rows": rows} | ABOUT


def minimal() -> dict[str, Any]:
    """One task, one method, one seed, loss only, no dense widths."""
    rows = [row("dense", "notes", 0, 0, 2.0), row("seap", "notes", 0.5, 0, 2.25)]
    lists = {"sparsities": [0.5], "methods": ["seap"], "tasks": ["notes"], "seeds": [0]}
    return {"kind": "compare", "model": "tiny", "rows": rows} | lists


def write(folder: Path, **results: dict[str, Any]) -> list[Path]:
    """Each as FOLDER/NAME.json."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in results.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return [folder / f"{name}.json" for name in results]


if __name__ == "__main__":
    write(Path(sys.argv[1]), compare=compare(), analyze=analyze(layers=16), bench=bench(), minimal=minimal())
