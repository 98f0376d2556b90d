"""The paper's Tables 1 to 4 on a machine with the weights: accuracy, layer sparsity, perplexity, speed.

    bash runs/paper/paper_llama2_7b.sh                  # everything, from the Hub

A dry run, on a small model and local files (one to two minutes on two CPU cores):

    python runs/paper/paper.py MODEL --data DIR --general wikitext2=DIR/wikitext2 --tasks piqa,arc_easy --limit 8 \\
        --tokens 2048 --window 128 --new-tokens 8 --repeats 1 --dtype float32 --size 7b --out out/paper.json

Baselines are calibrated on general text, as published; SEAP on each task's training items, SEAP-gen on all of them and
the general text (weights 2 and 3). Perplexity and speed are those of masks made of the general text. Sparsity is of all
prunable parameters; `seap-reference` rows follow the published convention, which removes less, since that is what the
published SEAP figures were measured at. Of the paper's figures the mean accuracies and the speed-ups are written down
here; a dash stands where there is none.
"""

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from tqdm import tqdm

from seap.activations.calibration import calibrate
from seap.activations.stats import Statistics
from seap.environment import provenance
from seap.evaluation import harness, metrics
from seap.evaluation.evaluate import load_test, prepare
from seap.evaluation.options import Evaluation
from seap.files import write_json
from seap.models import loader
from seap.pruning import prune as pruning
from seap.text.corpus import build_corpus
from seap.text.options import Calibration
from seap.text.tasks import load_items, parse_spec

TASKS = ("winogrande", "openbookqa", "hellaswag", "piqa", "arc_challenge", "arc_easy", "boolq")
FOLDERS = {"openbookqa": "obqa", "arc_challenge": "ai2_arc"}  # where a local copy is named otherwise
SPARSITIES = (0.2, 0.5)
TIMED = ("wanda-sp", "flap", "seap", "seap-gen")
LAYER_SPARSITY = {"seap-uniform": "uniform", "seap-adaptive": "adaptive", "seap": "logistic"}
CALIBRATION = Calibration(num_texts=200, seq_len=512, wording="plain")  # as the paper has it
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
Groups = dict[tuple[str, float], Rows]  # by method and sparsity


@dataclass
class Setting:
    """The loaded model, what it is tested on, and the statistics of every text."""

    model: Any
    tokenizer: Any
    tasks: tuple[str, ...]
    data: Path | None
    limit: int | None
    statistics: dict[str, Statistics]
    wikitext: Sequence[metrics.Row]
    new_tokens: int  # generated when speed is measured
    repeats: int


def spec(task: str, data: Path | None) -> str:
    return f"{task}={data / FOLDERS.get(task, task)}" if data else task


def set_up(arguments: argparse.Namespace) -> Setting:
    tasks, tokens = tuple(arguments.tasks.split(",")), arguments.tokens
    harness.check(tasks, arguments.data)
    specs = {task: spec(task, arguments.data) for task in tasks}
    for one in specs.values():
        load_items(parse_spec(one), "train")
    evaluation = Evaluation(window=arguments.window, metric="loss", num_items=arguments.limit or 10**6)
    test = load_test(arguments.general, evaluation)
    model, tokenizer = loader.load(arguments.model, dtype=arguments.dtype, device=arguments.device)
    own = replace(CALIBRATION, max_tokens=tokens)
    general = replace(PUBLISHED_FLAP, max_tokens=tokens or PUBLISHED_FLAP.max_tokens)
    statistics = pruning.calibrate(model, tokenizer, list(specs.values()), **asdict(own))
    texts = [item.text for item in load_items(parse_spec(arguments.general), "train")]
    corpus = build_corpus("general", texts, tokenizer, general, source=arguments.general)
    statistics["general"] = calibrate(model, corpus, general)
    wikitext = prepare(test, model, tokenizer, evaluation).windows
    limits = {name: getattr(arguments, name) for name in ("limit", "new_tokens", "repeats")}
    return Setting(
        model=model,
        tokenizer=tokenizer,
        tasks=tasks,
        data=arguments.data,
        statistics=statistics,
        wikitext=wikitext,
        **limits,
    )


def networks(setting: Setting) -> Iterator[tuple[str, float, tuple[str, ...], dict[str, Any]]]:
    """(name, sparsity, tasks that its accuracy is measured on, options) of every pruned model."""
    weights = dict.fromkeys(setting.tasks, 2.0) | {"general": 3.0}
    for sparsity in SPARSITIES:
        for name in ("wanda-sp", "flap"):
            yield name, sparsity, setting.tasks, {"method": name, "of": ("general",)}
        yield "seap-gen", sparsity, setting.tasks, {"method": "seap-gen", "of": tuple(weights), "weights": weights}
        for text in (*setting.tasks, "general"):
            tasks = () if text == "general" else (text,)
            yield "seap-reference", sparsity, tasks, {"method": "seap-reference", "of": (text,)}
            for label, allocate in LAYER_SPARSITY.items():
                yield label, sparsity, tasks, {"method": "seap-paper", "of": (text,), "allocate": allocate}
            yield "seap-now", sparsity, tasks, {"method": "seap", "of": (text,)}


def accuracies(setting: Setting, model: Any, tasks: tuple[str, ...]) -> Rows:
    if not tasks:
        return []
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
        if "general" in options["of"]:
            rows.append(perplexity(setting, pruned) | about)
            if name in TIMED:
                rows.append(speed(setting, pruned) | about)
    return rows


def perplexity(setting: Setting, model: Any) -> dict[str, Any]:
    figure = metrics.loss(model, setting.wikitext)
    return {"task": "general", "metric": "loss", "value": figure.value, "stderr": figure.stderr, "n": figure.n}


@torch.no_grad()
def speed(setting: Setting, pruned: Any, *, prompt: int = 128) -> dict[str, Any]:
    """Generated tokens per second of the pruned over the dense model, interleaved, after a warm-up; batch 1."""
    new, vocabulary = setting.new_tokens, pruned.config.vocab_size
    prompt = min(prompt, (getattr(pruned.config, "max_position_embeddings", None) or prompt + new) - new)
    ids = torch.randint(10, vocabulary, (1, prompt), device=next(pruned.parameters()).device)
    whole, length = torch.ones_like(ids), {"max_new_tokens": new, "min_new_tokens": new}
    times: dict[str, list[float]] = {"dense": [], "pruned": []}
    for _ in range(setting.repeats + 1):
        for name, model in (("dense", setting.model), ("pruned", pruned)):
            started = time.perf_counter()
            model.generate(ids, attention_mask=whole, do_sample=False, pad_token_id=0, **length)
            if ids.is_cuda:
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - started)
    rates = {name: new / median(taken[1:]) for name, taken in times.items()}
    return {"task": "speed", "metric": "ratio", "value": rates["pruned"] / rates["dense"], "stderr": None} | rates


def show(rows: Rows, size: str) -> None:
    """The four tables, our means beside the published ones."""
    groups: Groups = {}
    for row in rows:
        groups.setdefault((row["method"], row["sparsity"]), []).append(row)
    published, fast = PUBLISHED.get(size, {}), PUBLISHED_SPEED.get(size, {})
    by_paper = {k: published.get(("seap" if k[0] == "seap-reference" else k[0], k[1])) for k in groups}
    scored = {k: [*accuracy(g), cell(by_paper[k], "{:.2f}")] for k, g in groups.items()}
    variants = {k: line for k, line in scored.items() if k[0] in LAYER_SPARSITY}
    main = {k: line for k, line in scored.items() if k[0] == "seap" or k not in variants}
    table("Table 1. Accuracy, %, mean over tasks", ("acc", "acc_norm", "paper"), groups, main)
    title = "Table 2. SEAP's layer sparsity: logistic (seap, LB), uniform (UL), adaptive (AL); accuracy, %"
    table(title, ("acc", "acc_norm", "paper"), groups, variants)
    perplexities = {k: [cell(perplexity_of(g), "{:.2f}"), "-"] for k, g in groups.items()}
    table("Table 3. Perplexity on the general text", ("ppl", "paper"), groups, perplexities)
    speeds = {
        k: [f"{r['dense']:.1f}", f"{r['pruned']:.1f}", f"×{r['value']:.2f}", cell(by_speed(fast, k), "×{:.2f}")]
        for k, group in groups.items()
        for r in group
        if r["metric"] == "ratio"
    }
    table("Table 4. Generated tokens per second, batch 1", ("dense", "pruned", "ratio", "paper"), groups, speeds)


def by_speed(published: dict[float, float], key: tuple[str, float]) -> float | None:
    return published.get(key[1]) if key[0] == "seap" else None


def table(title: str, columns: Sequence[str], groups: Groups, lines: dict[tuple[str, float], list[str]]) -> None:
    print(f"\n{title}\n{'method':16}{'sparsity':>9}{'realised':>9}{''.join(f'{c:>10}' for c in columns)}")
    for key, cells in lines.items():
        realised = mean(row.get("realised_sparsity", 0.0) for row in groups[key])
        print(f"{key[0]:16}{key[1]:9.2f}{realised:9.3f}{''.join(f'{c:>10}' for c in cells)}")


def accuracy(group: Rows) -> list[str]:
    of = {m: [100 * row["value"] for row in group if row["metric"] == m] for m in ("acc", "acc_norm")}
    return [cell(mean(values) if values else None, "{:.2f}") for values in of.values()]


def perplexity_of(group: Rows) -> float | None:
    return next((math.exp(min(row["value"], 700)) for row in group if row["metric"] == "loss"), None)


def cell(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--size", choices=["7b", "13b", "other"], default="other")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--general", default="wikitext2")
    parser.add_argument("--data", type=Path, help="local Parquet copies of the tasks, instead of the Hub")
    parser.add_argument("--limit", type=int, help="items per task, for a dry run")
    parser.add_argument("--tokens", type=int, help="calibration tokens per text, for a dry run")
    parser.add_argument("--window", type=int, default=2048, help="tokens per window of the perplexity")
    parser.add_argument("--new-tokens", type=int, default=128, help="generated when speed is measured")
    parser.add_argument("--repeats", type=int, default=5, help="of every measurement of speed, after a warm-up")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=Path("results/paper/paper.json"))
    arguments = parser.parse_args(words)
    loader.quiet_transformers()
    started = time.perf_counter()
    rows = measure(set_up(arguments))
    about = provenance()
    write_json(arguments.out, {"rows": rows, "seconds": time.perf_counter() - started} | about)
    show(rows, arguments.size)


if __name__ == "__main__":
    main()
