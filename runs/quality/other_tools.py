"""Torch-Pruning, the general tool for structured pruning, on an LLM beside `seap prune`: loss added, size, time.

    pip install torch-pruning
    python runs/quality/other_tools.py MODEL --task NAME=PATH [--sparsity 0.5] --out FILE

By its own recipe for LLMs (its repository's examples/LLMs/prune_llm.py): one ratio for channels, heads and the hidden
size, KV heads left alone, by magnitude, and by its Taylor score with the loss's gradient on the task's calibration
text. Where a ratio must be met, it is searched for until as large a share of the attention and MLP weights is gone as
with seap, which leaves the hidden size alone; what goes of embeddings and norms beside is told as `params_after`.
Nothing is trained afterwards. llm-compressor isn't in it: it masks weights (SparseGPT, Wanda) and cuts no width.
"""

import argparse
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch_pruning as tp

import seap
from seap.environment import provenance
from seap.evaluation.commands import measure
from seap.evaluation.load import load_test
from seap.evaluation.options import Evaluation
from seap.files import digest, write_json
from seap.models import loader
from seap.pruning.prune import build_corpora
from seap.text.options import Calibration

CALIBRATION = {"num_texts": 400, "seq_len": 256, "max_tokens": 16384}
RECIPES = ("magnitude", "taylor")
SEARCHED = 6  # ratios tried
NEAR = 0.005  # of the sparsity


def block_params(model: Any) -> int:
    """Of the linears of all layers."""
    linears = (module for module in model.model.layers.modules() if isinstance(module, torch.nn.Linear))
    return sum(p.numel() for linear in linears for p in linear.parameters())


@torch.enable_grad()
def cut_(model: Any, recipe: str, ratio: float, rows: list[list[int]]) -> None:
    """Prune in place."""
    config, num_heads = model.config, {}
    for layer in model.model.layers:
        attention = layer.self_attn
        num_heads[attention.q_proj] = config.num_attention_heads
        num_heads[attention.k_proj] = num_heads[attention.v_proj] = config.num_key_value_heads
    kinds = {"magnitude": tp.importance.GroupMagnitudeImportance, "taylor": tp.importance.GroupTaylorImportance}
    importance = kinds[recipe](group_reduction="mean")
    pruner = tp.pruner.BasePruner(
        model,
        example_inputs=torch.arange(1, 9)[None],
        importance=importance,
        global_pruning=False,
        output_transform=lambda found: found.logits,
        pruning_ratio=ratio,
        ignored_layers=[model.lm_head],
        num_heads=num_heads,
        prune_num_heads=True,
        prune_head_dims=False,
        head_pruning_ratio=ratio,
        round_to=4,
    )
    for row in rows if recipe == "taylor" else ():
        ids = torch.tensor([row])
        (model(ids, labels=ids, use_cache=False).loss / len(rows)).backward()
    for group in pruner.step(interactive=True):
        group.prune()
    model.zero_grad(set_to_none=True)
    fitted_(model)


def fitted_(model: Any) -> None:
    """What the layers and the config say of their sizes."""
    config = model.config
    config.hidden_size = model.lm_head.in_features
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        config.num_attention_heads = attention.q_proj.out_features // attention.head_dim
        config.num_key_value_heads = attention.k_proj.out_features // attention.head_dim
        attention.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        config.intermediate_size = mlp.gate_proj.out_features


def by_torch_pruning(a: argparse.Namespace, recipe: str) -> tuple[Any, dict[str, Any]]:
    """The model cut as near to the sparsity as the ratio gets, and what was tried."""
    low, high, tried = 0.0, a.sparsity, []
    best: tuple[float, Any] = (2.0, None)
    for _ in range(SEARCHED):
        ratio, started = (low + high) / 2, time.perf_counter()
        model, tokenizer = loader.load_for_work(a.model, device="cpu", dtype="float32")
        [corpus] = build_corpora(model, tokenizer, a.task, Calibration(**CALIBRATION)).values()
        before = block_params(model)
        cut_(model, recipe, ratio, [list(row) for row in corpus.rows])
        removed = 1 - block_params(model) / before
        tried.append({"ratio": ratio, "removed": removed, "seconds": time.perf_counter() - started})
        if abs(removed - a.sparsity) < best[0]:
            best = (abs(removed - a.sparsity), model)
        if best[0] < NEAR:
            break
        low, high = (ratio, high) if removed < a.sparsity else (low, ratio)
    nearest = min(tried, key=lambda one: abs(one["removed"] - a.sparsity))
    return best[1], {"tried": tried, "realised_sparsity": nearest["removed"], "seconds": nearest["seconds"]}


def by_seap(a: argparse.Namespace, method: str, sparsity: float) -> tuple[Any, dict[str, Any]]:
    started = time.perf_counter()
    model, tokenizer = loader.load_for_work(a.model, device="cpu", dtype="float32")
    report = seap.prune(model, tokenizer, task=a.task, method=method, sparsity=sparsity, progress=False, **CALIBRATION)
    return model, {"realised_sparsity": report.realised_sparsity, "seconds": time.perf_counter() - started}


def row_of(a: argparse.Namespace, name: str, model: Any, about: dict[str, Any], test: Any, dense: Any) -> Any:
    [found] = measure(model, a.tokenizer, [test], a.evaluation, dense)
    row = {"tool": name, "params_after": sum(p.numel() for p in model.parameters())} | about | found
    print({key: row.get(key) for key in ("tool", "realised_sparsity", "added_loss", "acc", "params_after")}, flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--task", required=True)
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--windows", type=int, default=100)
    parser.add_argument("--methods", default="flap,seap")
    parser.add_argument("--out", type=Path, required=True)
    a = parser.parse_args()
    torch.set_grad_enabled(False)
    a.evaluation = Evaluation(num_items=a.items, num_windows=a.windows, window=CALIBRATION["seq_len"])
    test = load_test(a.task, a.evaluation)
    dense, a.tokenizer = loader.load_for_work(a.model, device="cpu", dtype="float32")
    rows = []
    for recipe in RECIPES:
        model, about = by_torch_pruning(a, recipe)
        rows.append(row_of(a, f"torch-pruning, {recipe}", model, about, test, dense))
    for method in a.methods.split(","):
        model, about = by_seap(a, method, a.sparsity)
        rows.append(row_of(a, f"seap prune --method {method}", model, about, test, dense))
    about = {"kind": "other tools", "model": a.model, "task": a.task, "sparsity": a.sparsity}
    about |= {"data_hash": digest(a.task), "torch_pruning": version("torch-pruning")}
    write_json(a.out, about | {"rows": rows} | provenance())


if __name__ == "__main__":
    main()
