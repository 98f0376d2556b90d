"""Pruned × quantized, on natural-7m and the built-in model: is half the model in 8 bits better than all of it in 4?

    pip install "seap[gguf,torchao]" llama-cpp-python
    python runs/quality/quantized.py MODEL NATURAL [--kinds code gsm8k wiki] [--out results/quality/quantized.json]

Each network is dense or pruned for a task by the default method. Each is measured whole and in fewer bits, by torchao
and by llama.cpp's own quantizer, on the same test: loss (and accuracy, on the built-in tasks), and bytes of the decoder
layers and of everything, in the arithmetic that each engine uses by default. Tokens written per second, on one thread,
are of the first task and of a larger shape with random weights, in turn in every repeat. About 17 minutes of one core.
"""

import argparse
import ctypes
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from seap.activations.calibration import calibrate
from seap.bench.speed import Runner
from seap.environment import provenance
from seap.evaluation import metrics
from seap.evaluation.evaluate import Exam, accuracy, load_test, prepare
from seap.evaluation.options import Evaluation
from seap.exports.gguf_file import write_gguf
from seap.exports.gguf_vocabulary import Vocabulary
from seap.exports.options import Export
from seap.exports.quantization import quantize_, stored_bytes
from seap.files import digest, write_json
from seap.models import loader
from seap.models.arch import describe
from seap.models.shapes import random_model
from seap.pruning.prune import build_corpora, prune
from seap.pruning.surgery import cut_
from seap.selection.options import Pruning
from seap.selection.ranking import rank
from seap.text.builtin import TASKS
from seap.text.options import Calibration

Row = dict[str, Any]
NETWORKS = [("dense", 0.0, 1), ("25%", 0.25, 32), ("50%", 0.5, 32)]  # name, sparsity, widths a multiple of
OTHER_WIDTHS = [("50%, any width", 0.5, 1), ("50%, widths of 256", 0.5, 256)]
TORCHAO = ("bf16", "int8", "int4")
LLAMA_CPP = ("F16", "Q8_0", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M", "Q2_K")
PAIRS = [("torchao", "int4", "int8"), ("llama.cpp", "Q4_K_M", "Q8_0"), ("llama.cpp", "Q4_0", "Q8_0")]
PAIRS += [("llama.cpp", "Q3_K_M", "Q4_K_M"), ("llama.cpp", "Q2_K", "Q4_K_M")]
PROMPT, WRITTEN, REPEATS = 64, 32, 5


class Transformers:
    """A model in transformers."""

    def __init__(self, model: Any) -> None:
        self.model, self.runner = model, Runner.of(model)

    def tested(self, exam: Exam) -> Row:
        right, _ = accuracy(self.model, exam)
        told = {} if right is None else {"acc": right.value, "acc_stderr": right.stderr, "acc_n": right.n}
        return losses(metrics.loss(self.model, exam.windows)) | told

    def write(self) -> float:
        return self.runner.decode(1, PROMPT, WRITTEN)


class LlamaCpp:
    """A GGUF file in llama.cpp on one thread, fed tokens."""

    def __init__(self, path: Path, length: int) -> None:
        import llama_cpp

        sizes = {"n_ctx": length, "n_batch": length, "n_threads": 1, "n_threads_batch": 1}
        with silent():
            self.engine = llama_cpp.Llama(str(path), logits_all=True, n_gpu_layers=0, verbose=False, **sizes)

    def tested(self, exam: Exam) -> Row:
        """As `evaluation/metrics.py: loss`, in nats per scored token."""
        sums = []
        for row in exam.windows:
            self.engine.reset()
            self.engine.eval(list(row.ids[:-1]))
            logits = torch.from_numpy(self.engine.scores[: len(row.ids) - 1].copy())
            every = torch.nn.functional.cross_entropy(logits, torch.tensor(row.ids[1:]), reduction="none")
            scored = every[row.start - 1 :].double()
            sums.append((float(scored.sum()), len(scored)))
        return losses(metrics.ratio_of(sums))

    def write(self) -> float:
        """Seconds of `WRITTEN` greedy steps after a prompt."""
        self.engine.reset()
        self.engine.eval(list(range(10, 10 + PROMPT)))
        started = time.perf_counter()
        for _ in range(WRITTEN):
            self.engine.eval([int(np.argmax(self.engine.scores[self.engine.n_tokens - 1]))])
        return time.perf_counter() - started


def losses(figure: metrics.Figure) -> Row:
    return {"loss": figure.value, "loss_stderr": figure.stderr, "loss_n": figure.n}


@contextmanager
def silent() -> Iterator[None]:
    """Without what a C library writes to standard error."""
    saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


def quantize_file(source: Path, out: Path, name: str) -> None:
    """llama.cpp's own quantizer, as llama-quantize runs it."""
    import llama_cpp

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}"), 1
    with silent():
        failed = llama_cpp.llama_model_quantize(bytes(source), bytes(out), ctypes.byref(parameters))
    assert failed == 0


def in_torchao(dense: Any) -> Iterator[tuple[Row, Transformers]]:
    """A 16-bit model as transformers runs it, whole and with torchao's weights."""
    for weights in TORCHAO:
        model = deepcopy(dense)
        notes = quantize_(model, weights) if weights != "bf16" else []  # type: ignore[arg-type]
        inside = {id(p) for block in describe(model).layers for p in block.parameters()}
        every = {id(p): stored_bytes(p) for p in model.parameters()}
        row = {"engine": "torchao", "weights": weights, "bytes": sum(every.values()), "notes": notes}
        yield row | {"layer_bytes": sum(size for key, size in every.items() if key in inside)}, Transformers(model)


def in_llama_cpp(dense: Any, room: Path, length: int, kinds: tuple[str, ...]) -> Iterator[tuple[Row, LlamaCpp]]:
    """The same as llama.cpp runs it, whole and with llama.cpp's own quantized types."""
    import gguf

    whole = room / "F16.gguf"
    write_gguf(dense, Vocabulary("none"), whole, Export(quantize="f16"))
    for weights in kinds:
        path = room / f"{weights}.gguf"
        if weights != "F16":
            quantize_file(whole, path, weights)
        tensors = gguf.GGUFReader(path).tensors
        sizes = {tensor.name: int(tensor.n_bytes) for tensor in tensors}
        row = {"engine": "llama.cpp", "weights": weights, "bytes": sum(sizes.values())}
        row["layer_bytes"] = sum(size for name, size in sizes.items() if name.startswith("blk."))
        row["down"] = sorted({t.tensor_type.name for t in tensors if t.name.endswith("ffn_down.weight")})
        yield row, LlamaCpp(path, length)


def networks(dense: Any, tokenizer: Any, spec: str, options: Calibration, wanted: list[Any]) -> Iterator[Any]:
    """The dense model and those pruned for a task from one calibration, in 16 bits, with what is to be said of each."""
    [(name, corpus)] = build_corpora(dense, tokenizer, spec, options).items()
    found = {name: calibrate(dense, corpus, options, progress=False)}
    ranking = rank(dense, found, Pruning(sparsity=0.5, round_to=1), seed=options.seed)
    text = {"calibration_tokens": corpus.num_tokens, "data_hash": corpus.data_hash}
    for label, sparsity, round_to in wanted:
        pruned, about = deepcopy(dense), {"network": label, "task": name}
        if sparsity:
            own = replace(ranking, options=replace(ranking.options, round_to=round_to), known={})
            report = prune(pruned, ranking=own, sparsity=sparsity, round_to=round_to, seed=options.seed, progress=False)
            about |= text | {"target_sparsity": sparsity, "realised_sparsity": report.realised_sparsity}
        yield pruned.to(torch.bfloat16).eval(), about


def measure(dense: Any, tokenizer: Any, spec: str, plan: tuple[Any, ...], timed: bool) -> list[Row]:
    """A row for every network, engine and number of bits, on one task."""
    options, testing, wanted = plan
    exam, rows, runs = prepare(load_test(spec, testing), dense, tokenizer, testing), [], []
    length = max(PROMPT + WRITTEN, *(len(window.ids) for window in exam.windows))
    for model, about in networks(dense, tokenizer, spec, options, wanted):
        with tempfile.TemporaryDirectory() as room:
            for made in (in_torchao(model), in_llama_cpp(model, Path(room), length, LLAMA_CPP)):
                for row, engine in made:
                    rows.append(about | row | engine.tested(exam))
                    runs += [(rows[-1], engine.write)] if timed and about["network"] in ("dense", "25%", "50%") else []
    time_writing(runs)
    return [row | {"added_loss": row["loss"] - rows[0]["loss"]} for row in rows]


def measure_shape(name: str) -> list[Row]:
    """Bytes and speed of a shape with random weights, dense and with half of every axis."""
    rows, runs = [], []
    with tempfile.TemporaryDirectory() as room:
        for label in ("dense", "50%"):
            model = random_model(name, dtype="bfloat16")
            if label != "dense":
                cut_(model, {a.key: torch.arange(a.units) < _half(a.units) for a in describe(model).axes})
            folder = Path(room, label)
            folder.mkdir()
            kinds = ("F16", "Q8_0", "Q4_K_M", "Q4_0")
            for made in (in_torchao(model), in_llama_cpp(model, folder, PROMPT + WRITTEN, kinds)):
                for row, engine in made:
                    rows.append({"network": label, "task": name} | row)
                    runs.append((rows[-1], engine.write))
        time_writing(runs)
    return rows


def _half(units: int) -> int:
    return units // 2 if units < 256 else units // 2 // 256 * 256


def time_writing(runs: list[tuple[Row, Callable[[], float]]]) -> None:
    """Put `tokens_per_s` into the rows: the median of repeats, in each of which every engine has its turn."""
    taken: list[list[float]] = [[] for _ in runs]
    for _ in range(REPEATS + 1):
        for times, (_, write) in zip(taken, runs, strict=True):
            times.append(write())
    for (row, _), times in zip(runs, taken, strict=True):
        row["tokens_per_s"] = WRITTEN / statistics.median(times[1:])
        row["tokens_per_s_range"] = [WRITTEN / max(times[1:]), WRITTEN / min(times[1:])]


def means_of(rows: list[Row]) -> list[Row]:
    """Over the tasks, for every network, engine and number of bits, the largest first."""
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        found.setdefault((row["engine"], row["network"], row["weights"]), []).append(row)
    told = []
    for key, own in found.items():
        names = [n for n in ("layer_bytes", "bytes", "added_loss", "acc", "tokens_per_s") if n in own[0]]
        means = {name: statistics.fmean(row[name] for row in own if name in row) for name in names}
        told.append(dict(zip(("engine", "network", "weights"), key, strict=True)) | means)
    return sorted(told, key=lambda row: (row["engine"], -row["layer_bytes"]))


def at_equal_bytes(rows: list[Row], engine: str, low: str, high: str) -> Row:
    """What the dense model in few bits adds to the loss, and what pruned ones in more bits would at its bytes.

    Between the 50%, the 25% and the dense network in the higher number of bits by straight lines over the bytes of the
    layers, task by task; where these all are larger, nothing.
    """
    dense, pruned, tasks = [], [], list(dict.fromkeys(row["task"] for row in rows))
    for task in tasks:
        own = {(r["network"], r["weights"]): r for r in rows if (r["task"], r["engine"]) == (task, engine)}
        line = [own[name, high] for name in ("50%", "25%", "dense")]
        sizes, added = [r["layer_bytes"] for r in line], [r["added_loss"] for r in line]
        dense.append(own["dense", low]["added_loss"])
        pruned.append(float(np.interp(own["dense", low]["layer_bytes"], sizes, added, left=np.nan)))
    told = {"engine": engine, "low": low, "high": high, "dense in low": dense, "pruned in high": pruned}
    return told | {"pruned is better on": sum(p < d for p, d in zip(pruned, dense, strict=True)), "of": len(tasks)}


def show(rows: list[Row]) -> None:
    for row in rows:
        told = f"{row['layer_bytes'] / 1e6:8.2f} of {row['bytes'] / 1e6:7.2f} MB"
        told += f"{row['added_loss']:9.4f}" if "added_loss" in row else ""
        told += f"{row['acc']:8.1%}" if "acc" in row else ""
        told += f"{row['tokens_per_s']:8.0f} tokens/s" if "tokens_per_s" in row else ""
        print(f"{row['engine']:10}{row['network']:19}{row['weights']:7}{told}")


def plans_of(arguments: argparse.Namespace) -> dict[str, tuple[str, list[str], tuple[Any, ...]]]:
    """Model, tasks, and how each is calibrated, tested and pruned."""
    shared: dict[str, Any] = {"second_moments": True, "seed": arguments.seed}
    packed = Calibration(num_texts=2000, seq_len=256, pack=True, max_tokens=arguments.tokens, **shared)
    windows = Evaluation(metric="loss", num_items=64, window=256)
    items = Calibration(num_texts=400, max_tokens=2000, **shared)
    kinds = [f"{kind}={arguments.natural / kind}" for kind in arguments.kinds]
    return {
        "natural": (arguments.model, kinds, (packed, windows, NETWORKS + OTHER_WIDTHS)),
        "builtin": (loader.BUILTIN, list(TASKS), (items, Evaluation(num_items=100, max_new_tokens=24), NETWORKS)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("natural", type=Path)
    parser.add_argument("--kinds", nargs="+", default=["code", "gsm8k", "wiki"])
    parser.add_argument("--tokens", type=int, default=32768, help="Of calibration text, for natural-7m.")
    parser.add_argument("--shape", default="llama:0.1b", help="Whose speed is measured, with random weights.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/quality/quantized.json"))
    arguments = parser.parse_args()
    started = time.perf_counter()
    loader.quiet_transformers()
    result: Row = {"kind": "quantized", "seed": arguments.seed, "threads": torch.get_num_threads()}
    result["shape"] = means_of(measure_shape(arguments.shape))
    show(result["shape"])
    hashes = []
    for label, (name, specs, plan) in plans_of(arguments).items():
        dense, tokenizer = loader.load(name, dtype="float32", device="cpu")
        rows = []
        for spec in tqdm(specs, desc=label):
            rows += measure(dense, tokenizer, spec, plan, timed=spec == specs[0])
        hashes += [row["data_hash"] for row in rows if "data_hash" in row]
        equal = [at_equal_bytes(rows, *pair) for pair in PAIRS]
        result[label] = {"means": means_of(rows), "equal_bytes": equal, "rows": rows}
        show(result[label]["means"])
    packages = {name: version(name) for name in ("torchao", "gguf", "llama_cpp_python")}
    result |= {"engines": packages, "data_hash": digest(hashes), "seconds": time.perf_counter() - started}
    write_json(arguments.out, result | provenance())


if __name__ == "__main__":
    main()
