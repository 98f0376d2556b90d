"""ONNX: a folder that onnxruntime-genai loads, or onnxruntime alone: one graph whose cache is inputs and outputs.

The graph is PyTorch's own trace (torch.onnx), so widths that differ from layer to layer are shapes like any other in
it. `genai_config.json` is what onnxruntime-genai reads of it
(https://onnxruntime.ai/docs/genai/reference/config.html).
"""

import io
import logging
from pathlib import Path
from typing import Any

import torch

from seap.errors import UserError, missing_extra
from seap.exports.engines import widths
from seap.exports.quiet import quiet
from seap.exports.step import Step, cache_names, cache_shapes, example_of, stock_name
from seap.exports.stock import OWN
from seap.files import to_json
from seap.models.arch import describe
from seap.models.blocks import refuse_gone
from seap.models.families import refuse_experts, refuse_other_caches
from seap.models.heads import size_of_key

OPSET = 18
TARGET = "--to onnx"
HALF = (torch.bfloat16, torch.float16)
LARGEST_F16 = 65504.0


def onnx_package() -> Any:
    """The `onnx` package. Raises UserError naming the extra where it isn't installed."""
    try:
        import onnx
    except ImportError as error:
        raise missing_extra("onnx", "onnx", TARGET) from error
    return onnx


def check_config(config: Any) -> None:
    """Raise UserError for a model that can't be traced: experts, caches of other kinds, sub-blocks that are gone."""
    refuse_experts(config, TARGET, "use --to uniform, or load it with transformers, which needs import seap")
    refuse_other_caches(config, TARGET, "use --to uniform, or load it with transformers, which needs import seap")
    refuse_gone(config, TARGET, "load it with transformers, or prune without --drop")


def onnx_bytes(model: Any) -> int:
    """What the folder takes at most."""
    return (20 << 20) + sum(p.numel() for p in model.parameters()) * 4


def write_onnx(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write the folder: the graph, its weights, tokenizer and configs."""
    onnx, arch = onnx_package(), describe(model)
    sixteen_bits, shapes = model.dtype in HALF, cache_shapes(arch)
    graph = (
        onnx.load_from_string(traced(model.float(), shapes)) if _is_small(model) else _by_file(model, shapes, folder)
    )
    if sixteen_bits:
        halve_matrices(onnx, graph)
    onnx.save_model(
        graph, folder / "model.onnx", save_as_external_data=True, location="model.onnx.data", size_threshold=1024
    )
    tokenizer.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    values = {name: value for name, value in model.config.to_dict().items() if name not in OWN}
    values["architectures"] = [stock_name(model)]
    (folder / "config.json").write_text(to_json(values, indent=2, default=str) + "\n")
    (folder / "genai_config.json").write_text(to_json(genai_config(model, tokenizer), indent=2) + "\n")


def _is_small(model: Any) -> bool:
    """Whether one protobuf holds it, which has at most 2 GB."""
    return bool(sum(p.numel() for p in model.parameters()) * 4 < 1 << 30)


def _by_file(model: Any, shapes: list[tuple[int, int]], folder: Path) -> Any:
    """A large graph, which PyTorch writes with its weights in files beside it."""
    onnx, place = onnx_package(), folder / "traced"
    place.mkdir()
    _export(model.float(), shapes, str(place / "model.onnx"))  # for torch a Path is no file, and over 2 GB no place
    graph = onnx.load_model(place / "model.onnx")
    for path in place.iterdir():
        path.unlink()
    place.rmdir()
    return graph


def traced(model: Any, shapes: list[tuple[int, int]]) -> bytes:
    """The model as an ONNX protobuf. shapes: KV groups and head size of every cache tensor."""
    held = io.BytesIO()
    _export(model, shapes, held)
    return held.getvalue()


def _export(model: Any, shapes: list[tuple[int, int]], into: Any) -> None:
    model.config._attn_implementation = "eager"
    number = len(shapes)
    inputs = ["input_ids", "attention_mask", "position_ids", *cache_names("past_key_values", number)]
    outputs = ["logits", *cache_names("present", number)]
    axes = {"input_ids": {0: "batch", 1: "tokens"}, "attention_mask": {0: "batch", 1: "total"}}
    axes |= {"position_ids": {0: "batch", 1: "tokens"}, "logits": {0: "batch", 1: "tokens"}}
    axes |= {name: {0: "batch", 2: "past"} for name in inputs[3:]}
    axes |= {name: {0: "batch", 2: "total"} for name in outputs[1:]}
    with torch.no_grad(), quiet("torch.onnx", logging.ERROR):
        torch.onnx.export(
            Step(model).eval(),
            example_of(shapes),
            into,
            input_names=inputs,
            output_names=outputs,
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )


def halve_matrices(onnx: Any, graph: Any) -> None:
    """Store matrices in float16, cast where they are read. Raises UserError for numbers that float16 can't hold."""
    import numpy as np

    casts = []
    for held in graph.graph.initializer:
        if held.data_type != onnx.TensorProto.FLOAT or sum(size > 1 for size in held.dims) < 2:
            continue
        values = onnx.numpy_helper.to_array(held)
        if float(np.abs(values).max()) > LARGEST_F16:
            raise UserError(f"{TARGET}: {held.name} holds numbers that float16 can't; load it in float32 and save that")
        name = held.name
        held.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float16), f"{name}_half"))
        casts.append(onnx.helper.make_node("Cast", [f"{name}_half"], [name], to=onnx.TensorProto.FLOAT))
    nodes = list(graph.graph.node)
    del graph.graph.node[:]
    graph.graph.node.extend([*casts, *nodes])


def genai_config(model: Any, tokenizer: Any) -> dict[str, Any]:
    """What onnxruntime-genai reads."""
    config, arch = model.config, describe(model)
    groups = [layer["kv_groups"] for layer in widths(config)]
    ends = config.eos_token_id if config.eos_token_id is not None else tokenizer.eos_token_id
    pad = config.pad_token_id if config.pad_token_id is not None else tokenizer.pad_token_id
    first = ends[0] if isinstance(ends, list) else ends
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": "model.onnx",
        "head_size": size_of_key(arch),
        "hidden_size": config.hidden_size,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "position_ids": "position_ids",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": max(groups),  # where layers differ, their shapes in the graph count
    }
    told = {
        "type": "llama",  # of its decoders that have nothing but this
        "bos_token_id": config.bos_token_id if config.bos_token_id is not None else tokenizer.bos_token_id,
        "eos_token_id": ends,
        "pad_token_id": first if pad is None else pad,
        "context_length": config.max_position_embeddings,
        "vocab_size": config.vocab_size,
        "decoder": decoder,
    }
    search = {"do_sample": False, "num_beams": 1, "max_length": config.max_position_embeddings, "min_length": 0}
    search |= {"past_present_share_buffer": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0}
    return {"model": told, "search": search}
