"""What pruning a public model takes: FLAP by its published procedure, and `seap prune` with FLAP and with the default.

    python runs/speed/rival_cost.py MODEL --task NAME=PATH [--sparsity 0.5] [--tokens 16384] --out FILE

`published` is what CASIA-IVA-Lab/FLAP's main.py does (lib/prune.py: prepare_calibration_input, prune_flap with WIFV and
AL-AM, compress; lib/layerwrapper.py: BiasGPT), on GQA with a KV group as the unit: one prompt at a time through one
layer after the other, a running mean and fluctuation of every linear, one threshold, sliced linears with FLAP's bias.
It isn't saved, which seap's runs are. Each is a process of its own on the same rows: seconds of the clock, of the
processor, and peak memory, loading included. Run it on a quiet machine.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from seap.environment import provenance
from seap.files import digest, write_json
from seap.models import loader
from seap.pruning.prune import build_corpora
from seap.text.options import Calibration

SEQ_LEN, NUM_TEXTS = 256, 400


class Running:
    """BiasGPT: the mean and the fluctuation of what a linear reads, one prompt after the other."""

    def __init__(self, linear: nn.Linear) -> None:
        self.mean = torch.zeros(linear.in_features)
        self.fluctuation = torch.zeros(linear.in_features)
        self.count = 0

    def add_batch(self, inputs: Tensor) -> None:
        inp, old = inputs.reshape(-1, inputs.shape[-1]).t().float(), self.mean
        self.mean = self.mean * self.count / (self.count + 1) + inp.mean(1) / (self.count + 1)
        if self.count:
            self.fluctuation *= (self.count - 1) / self.count
            self.fluctuation += ((inp - self.mean[:, None]) * (inp - old[:, None])).sum(1) / (self.count + 1)
        self.count += 1


class Caught(Exception):
    """The first layer was reached."""


@torch.no_grad()
def published(model: Any, rows: list[list[int]], sparsity: float) -> int:
    """Prune in place; returns the parameters that are left."""
    layers, inputs, kwargs = model.model.layers, [], {}

    def catch(_: nn.Module, args: Any, given: Any) -> None:
        inputs.append(args[0])
        kwargs.setdefault(len(inputs) - 1, {k: v for k, v in given.items() if not k.startswith("past")})
        raise Caught

    hook = layers[0].register_forward_pre_hook(catch, with_kwargs=True)
    for row in rows:
        with contextlib.suppress(Caught):
            model(torch.tensor([row]), use_cache=False)
    hook.remove()
    found: list[tuple[nn.Module, str, Running]] = []
    for layer in layers:
        linears = {"heads": layer.self_attn.o_proj, "channels": layer.mlp.down_proj}
        seen = {name: Running(linear) for name, linear in linears.items()}
        hooks = [
            linear.register_forward_hook(lambda _, args, __, to=seen[name]: to.add_batch(args[0]))  # type: ignore[misc]
            for name, linear in linears.items()
        ]
        for place, states in enumerate(inputs):
            out = layer(states, **kwargs[place])
            inputs[place] = out if isinstance(out, Tensor) else out[0]
        for one in hooks:
            one.remove()
        found += [(layer, name, own) for name, own in seen.items()]
    compress(model, found, sparsity)
    return sum(p.numel() for p in model.parameters())


def compress(model: Any, found: list[tuple[nn.Module, str, Running]], sparsity: float) -> None:
    """WIFV, standardised by axis; one threshold over all by parameters; slices and biases."""
    scored = []
    for layer, name, own in found:
        linear = layer.self_attn.o_proj if name == "heads" else layer.mlp.down_proj
        metric = own.fluctuation * linear.weight.float().pow(2).sum(0)
        metric = (metric - metric.mean()) / metric.std()
        groups = model.config.num_key_value_heads
        scored.append(metric.view(groups, -1).mean(1) if name == "heads" else metric)
    costs = [
        sum(p.numel() for p in (layer.self_attn if name == "heads" else layer.mlp).parameters()) / len(score)
        for (layer, name, _), score in zip(found, scored, strict=True)
    ]
    flat, order = torch.cat(scored).sort(descending=True)
    cost = torch.cat([torch.full_like(score, each) for score, each in zip(scored, costs, strict=True)])[order]
    threshold = flat[int((cost.cumsum(0) - cost.sum() * (1 - sparsity)).abs().argmin())]
    for (layer, name, own), score in zip(found, scored, strict=True):
        keep = score > threshold
        keep[score.argmax()] = True
        cut(layer, name, own, keep)


def cut(layer: nn.Module, name: str, own: Running, keep: Tensor) -> None:
    if name == "heads":
        attention = layer.self_attn
        writers, reader = (attention.q_proj, attention.k_proj, attention.v_proj), attention.o_proj
    else:
        writers, reader = (layer.mlp.gate_proj, layer.mlp.up_proj), layer.mlp.down_proj
    columns = keep.repeat_interleave(reader.in_features // len(keep))
    bias = (own.mean * ~columns) @ reader.weight.float().t()
    reader.bias = nn.Parameter(bias if reader.bias is None else reader.bias + bias)
    reader.weight = nn.Parameter(reader.weight[:, columns])
    for linear in writers:
        rows = keep.repeat_interleave(linear.out_features // len(keep))
        linear.weight = nn.Parameter(linear.weight[rows])
        if linear.bias is not None:
            linear.bias = nn.Parameter(linear.bias[rows])


def rows_of(a: argparse.Namespace, model: Any, tokenizer: Any) -> list[list[int]]:
    options = Calibration(num_texts=NUM_TEXTS, seq_len=SEQ_LEN, max_tokens=a.tokens, wording="plain")
    [corpus] = build_corpora(model, tokenizer, a.task, options).values()
    return [list(row) for row in corpus.rows]


def one(a: argparse.Namespace) -> None:
    """The published procedure, in the process that is measured."""
    model, tokenizer = loader.load_for_work(a.model, device="cpu", dtype="float32")
    before, rows = sum(p.numel() for p in model.parameters()), rows_of(a, model, tokenizer)
    after = published(model, rows, a.sparsity)
    print(json.dumps({"num_rows": len(rows), "num_tokens": sum(map(len, rows)), "params_removed": before - after}))


def command(a: argparse.Namespace, name: str, place: str) -> list[str]:
    if name == "published":
        words = [sys.executable, __file__, a.model, "--task", a.task, "--sparsity", str(a.sparsity)]
        return [*words, "--tokens", str(a.tokens), "--here"]
    words = [sys.executable, "-m", "seap", "prune", a.model, "--task", a.task, "--out", f"{place}/{name}", "--json"]
    words += ["--sparsity", str(a.sparsity), "--max-tokens", str(a.tokens), "--num-texts", str(NUM_TEXTS)]
    words += ["--seq-len", str(SEQ_LEN), "--device", "cpu", "--dtype", "float32", "--template", "none"]
    return [*words, "--method", name]


def measured(words: list[str]) -> dict[str, Any]:
    started = time.perf_counter()
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    if status:
        raise SystemExit(f"{' '.join(words)} ended with {status}")
    about = json.loads(said)
    told = {name: about[name] for name in ("num_rows", "num_tokens", "params_removed") if name in about}
    taken = {"seconds": seconds, "cpu_seconds": used.ru_utime + used.ru_stime, "peak_bytes": used.ru_maxrss * 1024}
    return taken | told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--task", required=True)
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--runs", default="published,flap,seap")
    parser.add_argument("--out", type=Path, default=Path("results/speed/rival_cost.json"))
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.here:
        one(a)
        return
    with tempfile.TemporaryDirectory() as place:
        runs = {name: measured(command(a, name, place)) for name in a.runs.split(",")}
    about = {
        "kind": "rival cost",
        "model": a.model,
        "task": a.task,
        "sparsity": a.sparsity,
        "data_hash": digest(a.task),
    }
    write_json(a.out, about | {"runs": runs} | provenance())
    print(json.dumps(runs, indent=1))


if __name__ == "__main__":
    main()
