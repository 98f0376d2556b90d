"""The paper's tables on a machine with the weights: accuracy, layer sparsity, perplexity and speed, beside its figures.

    bash runs/paper_llama2_7b.sh                  # everything, from the Hub
    python runs/paper.py MODEL --data DIR --limit 20 --tasks piqa,boolq --general wikitext2=DIR/wikitext2   # a dry run

Baselines are calibrated on general text, as published; SEAP on each task's training items, SEAP-gen on all of them and
the general text (weights 2 and 3). Sparsity is of all prunable parameters; `seap-reference` rows follow the published
convention, which removes less, since that is what the published SEAP figures were measured at.
"""

import argparse
import time
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from tqdm import tqdm

from seap import checkpoint, harness, metrics, pruning
from seap.config import Calibration, Evaluation
from seap.corpus import build_corpus
from seap.environment import command_line, commit, machine, versions
from seap.evaluate import load_test, loss_rows
from seap.files import write_json
from seap.stats import Statistics
from seap.tasks import load_items, parse_spec

TASKS = ("winogrande", "openbookqa", "hellaswag", "piqa", "arc_challenge", "arc_easy", "boolq")
FOLDERS = {"openbookqa": "obqa", "arc_challenge": "ai2_arc"}  # where a local copy is named otherwise
SPARSITIES = (0.2, 0.5)
CALIBRATION = Calibration(num_texts=200, seq_len=512)
PUBLISHED_FLAP = Calibration(num_texts=10**9, seq_len=128, pack=True, max_tokens=1024 * 128)
# Table 1, mean of the seven tasks (arXiv 2503.07605)
PUBLISHED: dict[str, dict[tuple[str, float], float]] = {
    "7b": {
        ("dense", 0.0): 66.97,
        ("wanda-sp", 0.2): 60.95,
        ("flap", 0.2): 62.07,
        ("seap", 0.2): 65.46,
        ("seap-gen", 0.2): 64.75,
        ("wanda-sp", 0.5): 45.23,
        ("flap", 0.5): 46.82,
        ("seap", 0.5): 55.73,
        ("seap-gen", 0.5): 54.71,
    },
    "13b": {
        ("dense", 0.0): 69.46,
        ("wanda-sp", 0.2): 65.57,
        ("flap", 0.2): 66.76,
        ("seap", 0.2): 68.12,
        ("seap-gen", 0.2): 68.75,
        ("wanda-sp", 0.5): 49.94,
        ("flap", 0.5): 51.78,
        ("seap", 0.5): 60.24,
        ("seap-gen", 0.5): 60.89,
    },
}
PUBLISHED_SPEED = {"7b": {0.2: 1.17, 0.5: 1.48}, "13b": {}}
Rows = list[dict[str, Any]]


@dataclass
class Setting:
    """The loaded model, what it is tested on, and the statistics of every text."""

    model: Any
    tokenizer: Any
    tasks: tuple[str, ...]
    data: Path | None
    limit: int | None
    statistics: dict[str, Statistics]
    wikitext: list[metrics.Row]


def spec(task: str, data: Path | None) -> str:
    return f"{task}={data / FOLDERS.get(task, task)}" if data else task


def prepare(arguments: argparse.Namespace) -> Setting:
    tasks = tuple(arguments.tasks.split(","))
    harness.check(tasks, arguments.data)
    for task in tasks:
        load_items(parse_spec(spec(task, arguments.data)), "train")
    evaluation = Evaluation(window=2048, metric="loss", num_items=arguments.limit or 10**6)
    test = load_test(arguments.general, evaluation)
    model, tokenizer = checkpoint.load(arguments.model, dtype=arguments.dtype)
    specs = {task: spec(task, arguments.data) for task in tasks}
    statistics = pruning.calibrate(model, tokenizer, list(specs.values()), **vars(CALIBRATION))
    texts = [item.text for item in load_items(parse_spec(arguments.general), "train")]
    corpus = build_corpus("general", texts, tokenizer, PUBLISHED_FLAP, source=arguments.general)
    statistics["general"] = pruning.calibrating.calibrate(model, corpus, PUBLISHED_FLAP)
    wikitext = loss_rows(model, tokenizer, test, evaluation)
    return Setting(model, tokenizer, tasks, arguments.data, arguments.limit, statistics, wikitext)


def networks(setting: Setting) -> Iterator[tuple[str, float, tuple[str, ...], dict[str, Any]]]:
    """(name, sparsity, tasks that it is for, options) of every pruned model."""
    for sparsity in SPARSITIES:
        for name in ("wanda-sp", "flap"):
            yield name, sparsity, setting.tasks, {"method": name, "of": ("general",)}
        weights = dict.fromkeys(setting.tasks, 2.0) | {"general": 3.0}
        everything = (*setting.tasks, "general")
        yield "seap-gen", sparsity, setting.tasks, {"method": "seap-gen", "of": everything, "weights": weights}
        for task in setting.tasks:
            yield "seap-reference", sparsity, (task,), {"method": "seap-reference", "of": (task,)}
            for label, allocate in (("seap", "logistic"), ("seap-uniform", "uniform"), ("seap-adaptive", "adaptive")):
                yield label, sparsity, (task,), {"method": "seap-paper", "of": (task,), "allocate": allocate}
            yield "seap-now", sparsity, (task,), {"method": "seap", "of": (task,)}


def accuracies(setting: Setting, model: Any, tasks: tuple[str, ...]) -> Rows:
    rows = harness.evaluate(model, setting.tokenizer, tasks, data=setting.data, limit=setting.limit)
    return [row for row in rows if row["metric"] in ("acc", "acc_norm")]


def measure(setting: Setting) -> Rows:
    rows = [row | {"method": "dense", "sparsity": 0.0} for row in accuracies(setting, setting.model, setting.tasks)]
    rows.append(perplexity(setting, setting.model) | {"method": "dense", "sparsity": 0.0})
    for name, sparsity, tasks, options in tqdm(list(networks(setting)), desc="networks"):
        pruned = deepcopy(setting.model)
        statistics = {text: setting.statistics[text] for text in options["of"]}
        choices = {key: value for key, value in options.items() if key != "of"}
        report = pruning.prune(pruned, statistics=statistics, sparsity=sparsity, progress=False, **choices)
        about = {"method": name, "sparsity": sparsity, "realised_sparsity": report.realised_sparsity}
        rows += [row | about for row in accuracies(setting, pruned, tasks)]
        if tasks == setting.tasks:
            rows.append(perplexity(setting, pruned) | about)
            rows.append(speed(setting, pruned) | about)
    return rows


def perplexity(setting: Setting, model: Any) -> dict[str, Any]:
    figure = metrics.loss(model, setting.wikitext)
    return {"task": "general", "metric": "loss", "value": figure.value, "stderr": figure.stderr, "n": figure.n}


@torch.no_grad()
def speed(setting: Setting, pruned: Any, *, prompt: int = 128, new: int = 128, repeats: int = 5) -> dict[str, Any]:
    """Generated tokens per second of the pruned over the dense model, interleaved, after a warm-up; batch 1."""
    ids = torch.randint(10, 1000, (1, prompt), device=next(pruned.parameters()).device)
    times: dict[str, list[float]] = {"dense": [], "pruned": []}
    for _ in range(repeats + 1):
        for name, model in (("dense", setting.model), ("pruned", pruned)):
            started = time.perf_counter()
            model.generate(ids, max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0)
            if ids.is_cuda:
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - started)
    rates = {name: new / median(taken[1:]) for name, taken in times.items()}
    return {"task": "speed", "metric": "ratio", "value": rates["pruned"] / rates["dense"], "stderr": None} | rates


def show(rows: Rows, size: str) -> None:
    """Our means beside the published ones."""
    published = PUBLISHED.get(size, {})
    print(
        f"{'method':16}{'sparsity':>9}{'realised':>9}{'acc':>8}{'acc_norm':>9}{'paper':>8}{'loss':>8}{'speed':>7}{'paper':>7}"
    )
    for method, sparsity in dict.fromkeys((row["method"], row["sparsity"]) for row in rows):
        own = [row for row in rows if (row["method"], row["sparsity"]) == (method, sparsity)]
        of = {m: [row["value"] for row in own if row["metric"] == m] for m in ("acc", "acc_norm", "loss", "ratio")}
        realised = mean(row.get("realised_sparsity", 0.0) for row in own)
        paper, fast = published.get((method, sparsity)), PUBLISHED_SPEED.get(size, {}).get(sparsity)
        cells = [f"{100 * mean(of[m]):.2f}" if of[m] else "" for m in ("acc", "acc_norm")]
        cells.append(f"{paper:.2f}" if paper else "")
        cells.append(f"{of['loss'][0]:.3f}" if of["loss"] else "")
        cells.append(f"×{of['ratio'][0]:.2f}" if of["ratio"] else "")
        cells.append(f"×{fast:.2f}" if fast and of["ratio"] else "")
        widths = (8, 9, 8, 8, 7, 7)
        line = "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        print(f"{method:16}{sparsity:9.2f}{realised:9.3f}{line}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--size", choices=["7b", "13b", "other"], default="other")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--general", default="wikitext2")
    parser.add_argument("--data", type=Path, help="local Parquet copies of the tasks, instead of the Hub")
    parser.add_argument("--limit", type=int, help="items per task, for a dry run")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--out", type=Path, default=Path("results/paper.json"))
    arguments = parser.parse_args()
    checkpoint.quiet_transformers()
    started = time.perf_counter()
    rows = measure(prepare(arguments))
    about = {"versions": versions(), "machine": machine(), "commit": commit(), "command": command_line()}
    write_json(arguments.out, {"rows": rows, "seconds": time.perf_counter() - started} | about)
    show(rows, arguments.size)


if __name__ == "__main__":
    main()
