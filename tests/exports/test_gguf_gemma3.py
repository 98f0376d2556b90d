"""Gemma 3 in GGUF: what is written of layers that are alike, llama.cpp's logits, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from llama import Table, check_same
from tiny import model

from seap.compensation.compensate import Repair
from seap.errors import UserError
from seap.models.arch import describe
from seap.models.axes import CHANNELS
from seap.pruning.surgery import cut_
from seap.vocabulary.embedding import cut_embeddings_

gguf = pytest.importorskip("gguf", reason='needs pip install "seap[gguf]"')

from seap.exports.gguf_file import check_config, write_gguf  # noqa: E402
from seap.exports.gguf_vocabulary import Vocabulary  # noqa: E402
from seap.exports.options import Export  # noqa: E402

KINDS = ["sliding_attention"] * 5 + ["full_attention"]
SHAPE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 420, "head_dim": 16}
SHAPE |= {"query_pre_attn_scalar": 16, "num_hidden_layers": 6, "layer_types": KINDS}
SHAPE |= {"hidden_activation": "gelu_pytorch_tanh", "attention_bias": False}


def pruned(kept: dict[int, int] | None = None, *, biases: bool = False, **changes: Any) -> Any:
    """With as many channels left in each layer as `kept` says, else 32."""
    built, draw = model("gemma3_text", **(SHAPE | changes)), torch.Generator().manual_seed(0)
    masks, repairs = {}, {}
    for axis in describe(built).axes:
        left = (kept or {}).get(axis.layer, 32) if axis.name == CHANNELS else axis.units
        masks[axis.key] = torch.randperm(axis.units, generator=draw) < left
        repairs[axis.key] = Repair(torch.randn(64, generator=draw).double())
    cut_(built, masks, repairs if biases else None)
    return built


def written(built: Any, path: Path) -> Path:
    write_gguf(built, Vocabulary("none"), path, Export(quantize="f32"))
    return path


def test_what_all_layers_have_and_norms_as_factors(tmp_path: Path) -> None:
    built = pruned()
    file = gguf.GGUFReader(written(built, tmp_path / "m.gguf"))
    said = {name.removeprefix("gemma3."): field.contents() for name, field in file.fields.items()}
    assert said["general.architecture"] == "gemma3" and said["feed_forward_length"] == 32
    assert said["attention.sliding_window"] == 6 and said["attention.key_length"] == 16
    stored = {tensor.name: tensor.data for tensor in file.tensors}
    np.testing.assert_allclose(stored["output_norm.weight"], built.model.norm.weight.detach().numpy() + 1)
    query = built.model.layers[3].self_attn.q_norm.weight.detach().numpy()
    np.testing.assert_allclose(stored["blk.3.attn_q_norm.weight"], query + 1)


@pytest.mark.parametrize("changes", [{}, {"final_logit_softcapping": 3.0}])
def test_llama_cpp_computes_what_transformers_does(changes: dict[str, Any], tmp_path: Path) -> None:
    built = pruned(**changes)
    path = written(built, tmp_path / "m.gguf")
    for layer in describe(built).layers:
        layer.mlp.act_fn = Table()
    check_same(built, path, 5e-4)


def test_a_model_that_lost_tokens_alone_goes_to_llama_cpp(tmp_path: Path) -> None:
    built = model("gemma3_text", **SHAPE)
    cut_embeddings_(built, range(410))
    path = written(built, tmp_path / "m.gguf")
    for layer in built.model.layers:
        layer.mlp.act_fn = Table()
    check_same(built, path, 5e-4)


def test_layers_of_different_widths_are_refused() -> None:
    with pytest.raises(UserError, match="reads one width for all layers of Gemma 3; cut the vocabulary alone"):
        check_config(pruned({1: 40}).config)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"hidden_activation": "silu"}, "its activation is silu"),
        ({"layer_types": KINDS[::-1]}, "not every layer but each sixth has a window"),
        ({"query_pre_attn_scalar": 8}, "its queries are scaled by something else than the head size"),
        ({"attn_logit_softcapping": 30.0}, "its attention's logits are capped"),
        ({"attention_bias": True}, "its projections have biases"),
    ],
)
def test_what_it_can_not_say_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=f"--to gguf: .*{reason}"):
        check_config(model("gemma3_text", **(SHAPE | changes)).config)


def test_added_biases_have_no_place(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="prune with --compensate none"):
        written(pruned(biases=True), tmp_path / "m.gguf")
