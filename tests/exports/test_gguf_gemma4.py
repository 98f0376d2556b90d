"""Gemma 4 in GGUF: its layers' widths and kinds, and llama.cpp's logits."""

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
from seap.pruning.surgery import cut_

gguf = pytest.importorskip("gguf", reason='needs pip install "seap[gguf]"')

from seap.exports.gguf_file import check_config, write_gguf  # noqa: E402
from seap.exports.gguf_vocabulary import Vocabulary  # noqa: E402
from seap.exports.options import Export  # noqa: E402

SHAPE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 420}
SHAPE |= {"vocab_size_per_layer_input": 420, "head_dim": 16, "global_head_dim": 32}
KEPT = {0: 40, 1: 64, 2: 150, 3: 33}
PLAIN = {"num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0, "use_double_wide_mlp": False}


def pruned(biases: bool = False, **changes: Any) -> Any:
    built, draw = model("gemma4_text-shared", **(SHAPE | changes)), torch.Generator().manual_seed(0)
    masks, repairs = {}, {}
    for axis in describe(built).axes:
        masks[axis.key] = torch.randperm(axis.units, generator=draw) < KEPT[axis.layer]
        repairs[axis.key] = Repair(torch.randn(64, generator=draw).double())
    cut_(built, masks, repairs if biases else None)
    for layer in describe(built).layers:
        layer.layer_scalar.fill_(0.7)
    return built


def written(built: Any, path: Path) -> Path:
    write_gguf(built, Vocabulary("none"), path, Export(quantize="f32"))
    return path


def test_widths_kinds_and_what_both_kinds_have(tmp_path: Path) -> None:
    built = pruned()
    file = gguf.GGUFReader(written(built, tmp_path / "m.gguf"))
    said = {name.removeprefix("gemma4."): field.contents() for name, field in file.fields.items()}
    assert said["general.architecture"] == "gemma4" and said["feed_forward_length"] == [40, 64, 150, 33]
    assert said["attention.sliding_window_pattern"] == [True, False, True, False]
    assert said["attention.shared_kv_layers"] == 2 and said["embedding_length_per_layer_input"] == 6
    assert (said["attention.key_length"], said["attention.key_length_swa"]) == (32, 16)
    stored = {tensor.name: tensor.data for tensor in file.tensors}
    assert "blk.2.attn_k.weight" not in stored and "blk.1.attn_k.weight" in stored
    assert stored["blk.0.layer_output_scale.weight"] == np.float32(0.7)
    factors = stored["rope_freqs.weight"]
    assert len(factors) == 16 and factors[:4] == pytest.approx(1, rel=1e-5) and (factors[4:] > 9e29).all()


@pytest.mark.parametrize("changes", [{}, PLAIN, {"final_logit_softcapping": 3.0}])
def test_llama_cpp_computes_what_transformers_does(changes: dict[str, Any], tmp_path: Path) -> None:
    built = pruned(**changes)
    path = written(built, tmp_path / "m.gguf")
    for layer in describe(built).layers:
        layer.mlp.act_fn = layer.act_fn = Table()
    check_same(built, path, 5e-4)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"enable_moe_block": True}, "experts aren't written"),
        ({"hidden_activation": "silu"}, "its activation is silu"),
        ({"layer_types": ["full_attention", "sliding_attention"] * 2}, "the last two must be a sliding and a full one"),
    ],
)
def test_what_it_can_not_say_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=f"--to gguf: .*{reason}"):
        check_config(model("gemma4_text-shared", **(SHAPE | changes)).config)


def test_added_biases_have_no_place(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="prune with --compensate none"):
        written(pruned(biases=True), tmp_path / "m.gguf")
