"""How fast a dense and a pruned model write, and how large they are, in transformers, llama.cpp and OpenVINO: one run.

    pip install "seap[gguf,openvino]" llama-cpp-python
    python runs/engines/engine_speed.py DENSE PRUNED --out results/engines/engine_speed.json

Greedy tokens after a prompt, one request, as many threads for all. Each form of both models is loaded once; then they
take turns (dense, pruned, dense, …), and the median of the repeats stands. Q4_K_M is llama.cpp's own quantization of
our f16 file. Engines that aren't installed are left out, and said.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

import seap
from seap.environment import provenance
from seap.exports.export import export
from seap.exports.options import Export
from seap.files import write_json
from seap.models import loader

Step = Callable[[list[int]], int]  # token ids that are new → the id that follows
ENGINES = ("llama_cpp_python", "openvino")


def in_transformers(folder: Path, *, prepacked: bool) -> tuple[Step, Callable[[], None], int]:
    model, _ = loader.load(str(folder), dtype="float32", device="cpu")
    if prepacked:
        seap.prepack_(model)
    state: dict[str, Any] = {}

    @torch.inference_mode()
    def step(ids: list[int]) -> int:
        found = model(torch.tensor([ids]), past_key_values=state.get("cache"), use_cache=True)
        state["cache"] = found.past_key_values
        return int(found.logits[0, -1].argmax())

    return step, state.clear, sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def in_llama_cpp(folder: Path, room: Path, kind: str, threads: int) -> tuple[Step, Callable[[], None], int]:
    import llama_cpp

    file = room / f"{kind}.gguf"
    if kind == "q4_k_m":
        whole = gguf(folder, room, "f16")
        settings = llama_cpp.llama_model_quantize_default_params()
        settings.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M
        llama_cpp.llama_model_quantize(str(whole).encode(), str(file).encode(), settings)
    else:
        file = gguf(folder, room, kind)
    engine = llama_cpp.Llama(
        str(file), n_ctx=512, n_gpu_layers=0, n_threads=threads, n_threads_batch=threads, verbose=False
    )

    def step(ids: list[int]) -> int:
        engine.eval(ids)
        return int(np.argmax(engine.scores[engine.n_tokens - 1] if engine._logits_all else last(engine)))

    return step, engine.reset, file.stat().st_size


def last(engine: Any) -> Any:
    import llama_cpp

    found = llama_cpp.llama_get_logits_ith(engine.ctx, -1)
    return np.ctypeslib.as_array(found, shape=(engine.n_vocab(),))


def gguf(folder: Path, room: Path, kind: str) -> Path:
    file = room / f"{kind}.gguf"
    if not file.exists():
        export(str(folder), file, "gguf", Export(quantize=kind))  # type: ignore[arg-type]
    return file


def in_openvino(folder: Path, room: Path, kind: str, threads: int) -> tuple[Step, Callable[[], None], int]:
    import openvino

    out = room / f"openvino-{kind}"
    export(str(folder), out, "openvino", Export(weights=kind))  # type: ignore[arg-type]
    options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    request = openvino.Core().compile_model(out / "openvino_model.xml", "CPU", options).create_infer_request()
    seen = [0]

    def step(ids: list[int]) -> int:
        start, seen[0] = seen[0], seen[0] + len(ids)
        given = {"input_ids": [ids], "attention_mask": [[1] * seen[0]], "position_ids": [range(start, seen[0])]}
        arrays = {name: np.array(value, dtype=np.int64) for name, value in given.items()}
        request.infer(arrays | {"beam_idx": np.zeros(1, dtype=np.int32)})
        return int(request.get_tensor("logits").data[0, -1].argmax())

    def reset() -> None:
        request.reset_state()
        seen[0] = 0

    return step, reset, (out / "openvino_model.bin").stat().st_size


def forms(threads: int, kinds: list[str]) -> dict[str, Callable[[Path, Path], Any]]:
    """Form → what opens a model in it."""
    found: dict[str, Callable[[Path, Path], Any]] = {
        "transformers float32": lambda folder, _: in_transformers(folder, prepacked=False),
        "transformers float32, prepacked": lambda folder, _: in_transformers(folder, prepacked=True),
    }
    for kind in ("f32", "f16", "q8_0", "q4_k_m"):
        found[f"llama.cpp {kind}"] = lambda folder, room, kind=kind: in_llama_cpp(folder, room, kind, threads)
    for kind in ("float", "int8"):
        found[f"openvino {kind}"] = lambda folder, room, kind=kind: in_openvino(folder, room, kind, threads)
    return {name: opened for name, opened in found.items() if not kinds or any(kind in name for kind in kinds)}


def written(step: Step, prompt: list[int], number: int) -> tuple[float, float, list[int]]:
    """Seconds of the prompt, seconds a token after it, and the tokens."""
    started = time.perf_counter()
    ids = [step(prompt)]
    read = time.perf_counter() - started
    taken = []
    for _ in range(number - 1):
        before = time.perf_counter()
        ids.append(step(ids[-1:]))
        taken.append(time.perf_counter() - before)
    return read, median(taken), ids


def row_of(name: str, opened: Callable[[Path, Path], Any], models: dict[str, Path], a: Any) -> dict[str, Any]:
    """One form of both models, in turn."""
    prompt, found = list(range(100, 100 + a.prompt)), {}
    with tempfile.TemporaryDirectory() as room:
        ready = {}
        for which, folder in models.items():
            (own := Path(room, which)).mkdir()
            ready[which] = opened(folder, own)
            found[which] = {"bytes": ready[which][2], "read": [], "token": []}
        for _ in range(a.repeats + 1):  # the first warms up
            for which, (step, reset, _) in ready.items():
                reset()
                read, token, ids = written(step, prompt, a.new)
                found[which]["read"].append(read)
                found[which]["token"].append(token)
                found[which]["ids"] = ids[:8]
    row: dict[str, Any] = {"form": name}
    for which, one in found.items():
        row[which] = {
            "bytes": one["bytes"],
            "tokens_per_second": 1 / median(one["token"][1:]),
            "prefill_tokens_per_second": a.prompt / median(one["read"][1:]),
            "first_tokens": one["ids"],
        }
    row["ratio"] = row["pruned"]["tokens_per_second"] / row["dense"]["tokens_per_second"]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dense", type=Path)
    parser.add_argument("pruned", type=Path)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--only", default="", help="parts of the forms' names, separated by commas")
    parser.add_argument("--out", type=Path, default=Path("results/engines/engine_speed.json"))
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    rows, missing = [], []
    for name, opened in forms(a.threads, [part for part in a.only.split(",") if part]).items():
        try:
            rows.append(row_of(name, opened, {"dense": a.dense, "pruned": a.pruned}, a))
        except ModuleNotFoundError as error:
            missing.append(name)
            print(f"{name}: left out, {error.name} isn't installed", flush=True)
            continue
        print({k: v if not isinstance(v, dict) else round(v["tokens_per_second"], 1) for k, v in rows[-1].items()})
    about = {"kind": "engine speed", "threads": a.threads, "prompt": a.prompt, "new": a.new, "left_out": missing}
    about["engines"] = {name: found for name in ENGINES if (found := installed(name))}
    write_json(a.out, about | {"rows": rows} | provenance())


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
