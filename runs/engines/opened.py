"""Imported: a model opened in an engine and fed tokens, and two such models timed in turn."""

import gc
import importlib.util
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

import seap
from seap.exports.export import export, size_of
from seap.exports.options import Export, Target
from seap.models import loader
from seap.models.modes import cache_name

PACKAGES = ("llama_cpp_python", "openvino", "onnxruntime", "onnxruntime_genai", "mlx", "mlx_lm", "torchao")
PACKAGES += ("compressed_tensors", "gguf", "nncf")
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}  # of OpenVINO


@dataclass(frozen=True)
class Opened:
    """A model that has read nothing yet. bytes: of its weights' file, or of the export."""

    step: Callable[[list[int]], Any]  # token ids that are new → logits of what follows, float32 (V,)
    reset: Callable[[], None]
    bytes: int


@dataclass(frozen=True)
class Form:
    """What a checkpoint's folder is opened as. needs: modules without which it can't be."""

    open: Callable[[Path, Path, int], Opened]  # the folder, an empty one to export into, threads
    needs: tuple[str, ...] = ()

    @property
    def missing(self) -> list[str]:
        return [name for name in self.needs if importlib.util.find_spec(name) is None]


def of_transformers(model: Any, size: int) -> Opened:
    state: dict[str, Any] = {}
    name = cache_name(model)

    @torch.inference_mode()
    def step(ids: list[int]) -> Any:
        found = model(torch.tensor([ids]), use_cache=True, **{name: state.get("cache")})
        state["cache"] = found[name]
        return found.logits[0, -1].float().numpy()

    return Opened(step, state.clear, size)


def in_transformers(folder: Path, room: Path, threads: int, *, prepacked: bool = False) -> Opened:
    """As `seap.load` gives it, in float32."""
    model, _ = loader.load(str(folder), dtype="float32", device="cpu")
    if prepacked:
        seap.prepack_(model)
    return of_transformers(model, weights_in(folder))


def in_stock_class(folder: Path, room: Path, threads: int, *, to: Target, **options: Any) -> Opened:
    """An export that transformers' own classes load. A dense model is one of `padded` as it is."""
    from transformers import AutoModelForCausalLM

    out = folder
    if to != "padded" or (folder / "seap.json").is_file():
        out = room / to
        export(str(folder), out, to, Export(**options))
    model = AutoModelForCausalLM.from_pretrained(out).eval()
    return of_transformers(model, weights_in(out))


def weights_in(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def in_llama_cpp(folder: Path, room: Path, threads: int, *, kind: str, exact: bool = False) -> Opened:
    """A GGUF file. exact: keys and values in float32 too."""
    import llama_cpp

    file = room / f"{kind}.gguf"
    if kind == "q4_k_m":
        whole = gguf(folder, room, "f16")
        settings = llama_cpp.llama_model_quantize_default_params()
        settings.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M
        llama_cpp.llama_model_quantize(str(whole).encode(), str(file).encode(), settings)
    else:
        file = gguf(folder, room, kind)
    f32 = llama_cpp.GGML_TYPE_F32
    keys = {"type_k": f32, "type_v": f32} if exact else {}
    engine = llama_cpp.Llama(
        str(file), n_ctx=512, n_gpu_layers=0, n_threads=threads, n_threads_batch=threads, verbose=False, **keys
    )

    def step(ids: list[int]) -> Any:
        engine.eval(ids)
        found = llama_cpp.llama_get_logits_ith(engine.ctx, -1)
        return np.ctypeslib.as_array(found, shape=(engine.n_vocab(),))

    return Opened(step, engine.reset, file.stat().st_size)


def gguf(folder: Path, room: Path, kind: str) -> Path:
    file = room / f"{kind}.gguf"
    if not file.exists():
        export(str(folder), file, "gguf", Export(quantize=kind))  # type: ignore[arg-type]
    return file


def in_openvino(folder: Path, room: Path, threads: int, *, kind: str, exact: bool = False) -> Opened:
    """An OpenVINO folder. exact: computed in float32, keys and values too."""
    out = room / f"openvino-{kind}"
    export(str(folder), out, "openvino", Export(weights=kind))  # type: ignore[arg-type]
    request, seen = request_of(out, threads, exact=exact), [0]

    def step(ids: list[int]) -> Any:
        request.infer(places_of(ids, seen) | {"beam_idx": np.zeros(1, dtype=np.int32)})
        return request.get_tensor("logits").data[0, -1].copy()

    def reset() -> None:
        request.reset_state()
        seen[0] = 0

    return Opened(step, reset, (out / "openvino_model.bin").stat().st_size)


def request_of(folder: Path, threads: int, *, exact: bool = False) -> Any:
    """What an exported folder is run by. exact: in float32, keys and values too."""
    import openvino

    options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"} | (EXACT if exact else {})
    return openvino.Core().compile_model(folder / "openvino_model.xml", "CPU", options).create_infer_request()


def places_of(ids: list[int], seen: list[int]) -> dict[str, Any]:
    """The inputs of one row of new tokens after `seen` others, which are counted up."""
    start, seen[0] = seen[0], seen[0] + len(ids)
    given = {"input_ids": [ids], "attention_mask": [[1] * seen[0]], "position_ids": [list(range(start, seen[0]))]}
    return {name: np.array(value, dtype=np.int64) for name, value in given.items()}


def in_onnxruntime(folder: Path, room: Path, threads: int) -> Opened:
    """An ONNX folder in onnxruntime itself, the cache handed on as it is."""
    import onnxruntime

    export(str(folder), room / "onnx", "onnx", Export())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(room / "onnx" / "model.onnx", options, providers=["CPUExecutionProvider"])
    value = onnxruntime.OrtValue.ortvalue_from_numpy
    shapes = {one.name: one.shape for one in session.get_inputs()}
    past = [name for name in shapes if name.startswith("past_key_values")]
    outputs = ["logits", *(name.replace("past_key_values", "present") for name in past)]
    state: dict[str, Any] = {}
    seen = [0]

    def reset() -> None:
        seen[0] = 0
        for name in past:
            state[name] = value(np.zeros((1, shapes[name][1], 0, shapes[name][3]), dtype=np.float32))

    def step(ids: list[int]) -> Any:
        given = {name: value(array) for name, array in places_of(ids, seen).items() if name in shapes}
        logits, *present = session.run_with_ort_values(outputs, given | state)
        state.update(zip(past, present, strict=True))
        return logits.numpy()[0, -1]

    reset()
    return Opened(step, reset, size_of(room / "onnx"))


def in_genai(folder: Path, room: Path, threads: int) -> Opened:
    """An ONNX folder in onnxruntime-genai."""
    import onnxruntime_genai as genai

    export(str(folder), room / "onnx", "onnx", Export())
    config = genai.Config(str(room / "onnx"))
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
    model, state = genai.Model(config), {}

    def reset() -> None:
        parameters = genai.GeneratorParams(model)
        parameters.set_search_options(max_length=512, min_length=0)
        state["generator"] = genai.Generator(model, parameters)

    def step(ids: list[int]) -> Any:
        state["generator"].append_tokens(np.array([ids], dtype=np.int32))
        return np.array(state["generator"].get_logits(), dtype=np.float32).reshape(-1, vocabulary)[-1]

    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    reset()
    return Opened(step, reset, size_of(room / "onnx"))


def in_mlx(folder: Path, room: Path, threads: int, *, to: Target) -> Opened:
    """A folder that mlx-lm loads, on the CPU, with as many threads as MLX takes."""
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache
    from mlx_lm.utils import load_model

    export(str(folder), room / to, to, Export())
    mx.set_default_device(mx.cpu)
    model, _ = load_model(room / to, trust_remote_code=True)
    state: dict[str, Any] = {}

    def step(ids: list[int]) -> Any:
        if "cache" not in state:
            state["cache"] = make_prompt_cache(model)
        return np.array(model(mx.array([ids]), cache=state["cache"])[0, -1].astype(mx.float32))

    return Opened(step, state.clear, size_of(room / to))


def written(step: Callable[[list[int]], Any], prompt: list[int], number: int) -> tuple[float, float, list[int]]:
    """Seconds of the prompt, seconds a token after it, and the greedy tokens."""
    started = time.perf_counter()
    ids = [int(np.argmax(step(prompt)))]
    read = time.perf_counter() - started
    taken = []
    for _ in range(number - 1):
        before = time.perf_counter()
        ids.append(int(np.argmax(step(ids[-1:]))))
        taken.append(time.perf_counter() - before)
    return read, median(taken), ids


def in_turn(models: Mapping[str, Opened], prompt: list[int], number: int, repeats: int) -> dict[str, dict[str, Any]]:
    """Tokens per second of each, taken in turn, the median of the repeats after one that warms up."""
    read: dict[str, list[float]] = {which: [] for which in models}
    token: dict[str, list[float]] = {which: [] for which in models}
    first: dict[str, list[int]] = {}
    for _ in range(repeats + 1):
        for which, opened in models.items():
            opened.reset()
            gc.collect()
            seconds, each, ids = written(opened.step, prompt, number)
            read[which].append(seconds)
            token[which].append(each)
            first[which] = ids[:8]
    return {
        which: {
            "bytes": opened.bytes,
            "tokens_per_second": 1 / median(token[which][1:]),
            "prefill_tokens_per_second": len(prompt) / median(read[which][1:]),
            "first_tokens": first[which],
        }
        for which, opened in models.items()
    }


def installed() -> dict[str, str]:
    """The engines that are here, with their versions."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
