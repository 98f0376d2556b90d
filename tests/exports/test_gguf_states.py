"""Nemotron-H in GGUF: the kinds of its layers by their widths, and llama.cpp's logits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from llama import check_same
from tiny import model
from vocabularies import byte_level

from seap.cli.main import main
from seap.compensation.compensate import Repair
from seap.errors import UserError
from seap.models.arch import describe
from seap.pruning.surgery import cut_

gguf = pytest.importorskip("gguf", reason='needs pip install "seap[gguf]"')

from seap.exports.gguf_file import check_config, write_gguf  # noqa: E402
from seap.exports.gguf_vocabulary import Vocabulary  # noqa: E402
from seap.exports.options import Export  # noqa: E402

KINDS = ["linear_attention", "mlp", "full_attention", "mlp", "linear_attention", "full_attention"]
SHAPE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "num_attention_heads": 4}
SHAPE |= {"num_key_value_heads": 2, "vocab_size": 420, "ssm_state_size": 16, "layers_block_type": KINDS}
KEPT = {"layers.1.channels": 40, "layers.3.channels": 64, "layers.2.kv_groups": 1, "layers.5.kv_groups": 2}


def pruned(biases: bool = True) -> Any:
    built, draw = model("nemotron_h-dense", **SHAPE), torch.Generator().manual_seed(0)
    masks, repairs = {}, {}
    for axis in describe(built).axes:
        masks[axis.key] = torch.randperm(axis.units, generator=draw) < KEPT[axis.key]
        repairs[axis.key] = Repair(torch.randn(64, generator=draw).double())
    cut_(built, masks, repairs if biases else None)
    return built


def written(built: Any, path: Path, quantize: Any = "f32") -> Path:
    write_gguf(built, Vocabulary("none"), path, Export(quantize=quantize))
    return path


def test_a_layer_is_what_it_has_a_number_for(tmp_path: Path) -> None:
    built = pruned()
    file = gguf.GGUFReader(written(built, tmp_path / "m.gguf"))
    said = {name: field.contents() for name, field in file.fields.items()}
    assert said["general.architecture"] == "nemotron_h"
    assert said["nemotron_h.feed_forward_length"] == [0, 40, 0, 64, 0, 0]
    assert said["nemotron_h.attention.head_count_kv"] == [0, 0, 1, 0, 0, 2]
    assert said["nemotron_h.attention.head_count"] == [4, 4, 2, 4, 4, 4]
    sizes = {name: said[f"nemotron_h.ssm.{name}"] for name in ("state_size", "inner_size", "group_count")}
    assert sizes == {"state_size": 16, "inner_size": 48, "group_count": 2}
    stored = {tensor.name: tensor.data for tensor in file.tensors}
    assert len(stored) == len(list(built.parameters()))
    mixer = built.model.layers[0].mixer
    np.testing.assert_allclose(stored["blk.0.ssm_a"][:, 0], -np.exp(mixer.A_log.detach().numpy()), rtol=1e-6)
    assert stored["blk.0.ssm_conv1d.weight"].shape == (mixer.conv1d.weight.shape[0], 4)
    assert stored["blk.0.ssm_norm.weight"].shape == (2, 24)


@pytest.mark.parametrize("biases", [False, True])
def test_llama_cpp_computes_what_transformers_does(biases: bool, tmp_path: Path) -> None:
    built = pruned(biases)
    check_same(built, written(built, tmp_path / "m.gguf"), 5e-4)  # its exponentials are approximate


def test_the_command_writes_one(tmp_path: Path) -> None:
    pruned().save_pretrained(tmp_path / "small")
    byte_level(r"\w+").save_pretrained(tmp_path / "small")
    out = tmp_path / "small.gguf"
    assert main(["export", str(tmp_path / "small"), "--to", "gguf", "--tokenizer", "none", "--out", str(out)]) == 0
    said = gguf.GGUFReader(out).fields
    assert said["nemotron_h.feed_forward_length"].contents() == [0, 40, 0, 64, 0, 0]


def test_a_mixers_own_numbers_stay_in_float32(tmp_path: Path) -> None:
    file = gguf.GGUFReader(written(pruned(), tmp_path / "m.gguf", "f16"))
    halves = {t.name.split(".")[-2] for t in file.tensors if t.tensor_type == gguf.GGMLQuantizationType.F16}
    assert halves >= {"ssm_in", "ssm_out", "ffn_up", "ffn_down", "attn_q", "attn_output"}
    assert not any(name in halves for name in ("ssm_a", "ssm_d", "ssm_norm", "ssm_conv1d"))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"layers_block_type": ["linear_attention", "moe", "full_attention"]}, "experts beside its mixers"),
        ({"mlp_hidden_act": "silu"}, "its activation is silu, not relu2"),
        ({"time_step_limit": [0.01, 0.1]}, "held between 0.01 and 0.1"),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=f"--to gguf: .*{reason}.*; load it with transformers"):
        check_config(model("nemotron_h-dense", **SHAPE | changes).config)
