"""OpenVINO: a folder that openvino-genai's LLMPipeline and optimum-intel's OVModelForCausalLM load.

The model is traced with its cache as inputs and outputs, which then become OpenVINO's own state, one variable for each
layer's keys and values, reordered by `beam_idx`
(https://docs.openvino.ai/2025/openvino-workflow/running-inference/stateful-models.html). Widths that differ from layer
to layer are shapes like any other there.
"""

import contextlib
import logging
import sys
from pathlib import Path
from typing import Any

import torch

from seap.errors import missing_extra
from seap.exports.engines import widths
from seap.exports.options import Export
from seap.exports.quiet import quiet
from seap.exports.step import Step, cache_names, cache_shapes, example_of, stock_name
from seap.exports.stock import OWN
from seap.files import to_json
from seap.models.arch import describe
from seap.models.blocks import refuse_gone
from seap.models.families import refuse_experts, refuse_other_caches

GROUP = 64  # weights that share a scale in int4


def openvino_packages(options: Export) -> tuple[Any, Any]:
    """`openvino` and `openvino_tokenizers`; nncf must be there too where weights are compressed. Or a UserError."""
    try:
        import openvino
        import openvino_tokenizers

        if options.weights != "float":
            import nncf  # noqa: F401
    except ImportError as error:
        raise missing_extra("openvino", "openvino", "--to openvino") from error
    return openvino, openvino_tokenizers


def check_config(config: Any) -> None:
    """Raise UserError for a model that can't be traced: experts, caches of other kinds, sub-blocks that are gone."""
    refuse_experts(config, "--to openvino", "load it with transformers, which needs import seap")
    refuse_other_caches(config, "--to openvino", "load it with transformers, which needs import seap")
    refuse_gone(config, "--to openvino", "load it with transformers, or prune without --drop")


def openvino_bytes(model: Any, options: Export) -> int:
    """What the folder takes at most: 4 bits leave some layers in 8, vectors stay in float32."""
    vectors = sum(p.numel() for p in model.parameters() if p.dim() < 2)
    matrices = sum(p.numel() for p in model.parameters() if p.dim() > 1)
    own = 2 if model.dtype in (torch.bfloat16, torch.float16) else 4
    return (20 << 20) + 4 * vectors + int(matrices * (own if options.weights == "float" else 1.1))


def write_openvino(model: Any, tokenizer: Any, folder: Path, options: Export) -> list[str]:
    """Write the folder: model, tokenizer, detokenizer, configs. Returns what to know about it."""
    openvino, tokenizers = openvino_packages(options)
    sixteen_bits = model.dtype in (torch.bfloat16, torch.float16)
    converted = stateful(traced(model.float()))
    if options.weights != "float":
        converted = compressed(converted, options.weights)
    elif sixteen_bits:
        halve_matrices(converted)
    openvino.save_model(converted, folder / "openvino_model.xml", compress_to_fp16=False)
    for name, part in zip(
        ("openvino_tokenizer.xml", "openvino_detokenizer.xml"),
        tokenizers.convert_tokenizer(tokenizer, with_detokenizer=True),
        strict=True,
    ):
        openvino.save_model(part, folder / name)
    tokenizer.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    values = {name: value for name, value in model.config.to_dict().items() if name not in OWN}
    values["architectures"] = [stock_name(model)]
    (folder / "config.json").write_text(to_json(values, indent=2, default=str) + "\n")
    return _about_groups(model, options)


def _about_groups(model: Any, options: Export) -> list[str]:
    odd = [layer for layer in widths(model.config) if layer["channels"] % GROUP]
    if options.weights != "int4" or not odd:
        return []
    return [
        f"the down projections of {len(odd)} layers stay larger than 4 bits: prune with --round-to {GROUP} for those"
    ]


def traced(model: Any) -> Any:
    """The model as an OpenVINO model whose cache is inputs and outputs."""
    import openvino

    arch = describe(model)
    shapes = cache_shapes(arch)
    capped = getattr(model.config, "attn_logit_softcapping", None)  # which sdpa would leave out
    model.config._attn_implementation = "sdpa" if capped is None else "eager"
    with torch.no_grad(), quiet():  # the tracer warns about what doesn't vary here
        converted = openvino.convert_model(Step(model).eval(), example_input=example_of(shapes))
    names = ["input_ids", "attention_mask", "position_ids", *cache_names("past_key_values", len(shapes))]
    for port, name in zip(converted.inputs, names, strict=True):
        port.get_tensor().set_names({name})
        port.get_node().set_friendly_name(name)
        port.get_node().set_partial_shape(openvino.PartialShape([-1, -1]))
    for port, (groups, size) in zip(converted.inputs[3:], shapes, strict=True):
        port.get_node().set_partial_shape(openvino.PartialShape([-1, groups, -1, size]))
    for port, name in zip(converted.outputs, ["logits", *cache_names("present", len(shapes))], strict=True):
        port.get_tensor().set_names({name})
    converted.validate_nodes_and_infer_types()
    return converted


def stateful(converted: Any) -> Any:
    """The cache as OpenVINO's own state, its rows put in the order of `beam_idx` (B,) before each step."""
    import numpy as np
    from openvino import PartialShape, Type, opset13
    from openvino._offline_transformations import apply_make_stateful_transformation

    beams = opset13.parameter(PartialShape([-1]), Type.i32, name="beam_idx")
    beams.output(0).get_tensor().set_names({"beam_idx"})
    converted.add_parameters([beams])
    past, present = converted.inputs[3:-1], converted.outputs[1:]
    pairs = {i.get_any_name(): o.get_any_name() for i, o in zip(past, present, strict=True)}
    for port in past:
        readers = port.get_target_inputs()
        ordered = opset13.gather(port, beams, opset13.constant(0, Type.i64))
        for reader in readers:
            reader.replace_source_output(ordered.output(0))
    converted.validate_nodes_and_infer_types()
    apply_make_stateful_transformation(converted, pairs)
    batch = opset13.gather(
        opset13.shape_of(converted.input("input_ids"), Type.i64), opset13.constant([0]), opset13.constant(0)
    )
    for node in converted.get_ops():
        if node.get_type_name() == "ReadValue":
            _, groups, _, size = node.output(0).get_partial_shape()
            rest = opset13.constant(np.array([groups.get_length(), 0, size.get_length()], dtype=np.int64))
            shape = opset13.concat([batch, rest], 0)
            empty = opset13.broadcast(opset13.constant(np.float32(0)), shape)
            node.set_arguments([empty.output(0)])
    converted.validate_nodes_and_infer_types()
    return converted


def halve_matrices(converted: Any) -> None:
    """Store matrices in float16. Vectors stay: the frequencies of the rotary embedding lose too much by it."""
    import numpy as np
    from openvino import Type, opset13

    for node in converted.get_ops():
        if node.get_type_name() != "Constant" or node.get_element_type() != Type.f32:
            continue
        if sum(size > 1 for size in node.get_output_shape(0)) > 1:
            readers = node.output(0).get_target_inputs()
            back = opset13.convert(opset13.constant(node.data.astype(np.float16)), "f32")
            for reader in readers:
                reader.replace_source_output(back.output(0))


def compressed(converted: Any, weights: str) -> Any:
    """The same with 8- or 4-bit weights, by NNCF, without data. Rows that no group of 64 divides take 8 bits."""
    import nncf

    with quiet("nncf", logging.ERROR), contextlib.redirect_stdout(sys.stderr):  # its progress bar
        if weights == "int8":
            return nncf.compress_weights(converted, mode=nncf.CompressWeightsMode.INT8_ASYM)
        ragged = nncf.AdvancedCompressionParameters(group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST)
        mode = nncf.CompressWeightsMode.INT4_SYM
        return nncf.compress_weights(converted, mode=mode, group_size=GROUP, advanced_parameters=ragged)
