"""Mixtures of experts in GGUF: read back equal, computed as llama.cpp does from the file's arrays, or refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from llama import check_same
from tiny import model
from vocabularies import byte_level

from seap.errors import UserError
from seap.exports.options import Export
from seap.models.arch import describe
from seap.pruning.surgery import cut_

gguf = pytest.importorskip("gguf", reason='needs pip install "seap[gguf]"')

from seap.exports.gguf_experts import ARCHITECTURES  # noqa: E402
from seap.exports.gguf_file import check_config, round_trip, write_gguf  # noqa: E402
from seap.exports.gguf_vocabulary import PRE_TOKENIZERS, Vocabulary, vocabulary_of  # noqa: E402

SHAPE: dict[str, Any] = {"hidden_size": 64, "head_dim": 16, "num_attention_heads": 4, "num_key_value_heads": 2}
MODELS: dict[str, dict[str, Any]] = {
    "mixtral": {},
    "qwen3_moe": {},
    "qwen2_moe": {"mlp_only_layers": [], "head_dim": None},
}


def pruned(name: str, experts: tuple[int, ...] = (3, 3, 3), width: int = 8, **changes: Any) -> Any:
    """A tiny model with so many experts of one width in its layers, and half of its KV groups where that goes."""
    built, draw = model(name, **(SHAPE | MODELS[name] | changes)), torch.Generator().manual_seed(0)
    masks = {}
    for axis in describe(built).axes:
        if axis.usage_key:
            order = torch.rand(axis.experts, axis.units, generator=draw).argsort(1)
            gone = torch.rand(axis.experts, generator=draw).argsort() >= experts[axis.layer]
            masks[axis.key] = ((order < width) & ~gone[:, None]).flatten()
        else:
            kept = axis.units if axis.name == "kv_groups" and name == "qwen2_moe" else axis.units // 2
            masks[axis.key] = torch.randperm(axis.units, generator=draw) < kept
    cut_(built, masks)
    return built


def written(built: Any, path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    write_gguf(built, Vocabulary("none"), path, Export(quantize="f32"))
    reader = gguf.GGUFReader(path)
    said = {name: field.contents() for name, field in reader.fields.items()}
    return said, {tensor.name: tensor.data for tensor in reader.tensors}


def halves(rows: np.ndarray, head_size: int = 16) -> np.ndarray:
    """llama.cpp's rotary order back to transformers'."""
    return rows.reshape(-1, head_size // 2, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def as_llama_cpp(x: np.ndarray, said: dict[str, Any], stored: dict[str, np.ndarray], kind: str) -> np.ndarray:
    """build_moe_ffn of layer 0: softmax over all experts, the largest k, their sum made 1 or not; (N, D) → (N, D)."""
    block = {name.removeprefix("blk.0.ffn_"): value for name, value in stored.items() if name.startswith("blk.0.ffn_")}
    scores = np.exp(x @ block["gate_inp.weight"].T)
    scores /= scores.sum(1, keepdims=True)
    found = np.zeros_like(x)
    for row, (own, given) in enumerate(zip(scores, x, strict=True)):
        chosen = np.argsort(-own)[: said[f"{kind}.expert_used_count"]]
        weights = own[chosen] / (own[chosen].sum() if kind != "qwen2moe" else 1)
        for weight, e in zip(weights, chosen, strict=True):
            gate, up, down = (block[f"{part}_exps.weight"][e] for part in ("gate", "up", "down"))
            found[row] += weight * (down @ (silu(gate @ given) * (up @ given)))
        if "gate_inp_shexp.weight" in block:
            gate, up, down = (block[f"{part}_shexp.weight"] for part in ("gate", "up", "down"))
            share = 1 / (1 + np.exp(-block["gate_inp_shexp.weight"] @ given))
            found[row] += share * (down @ (silu(gate @ given) * (up @ given)))
    return found


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_a_file_reads_back_equal_and_computes_the_same(name: str, tmp_path: Path) -> None:
    built, kind = pruned(name), ARCHITECTURES[name]
    said, stored = written(built, tmp_path / "m.gguf")
    whole = name == "qwen2_moe"
    assert said["general.architecture"] == kind and said[f"{kind}.block_count"] == 3
    assert said[f"{kind}.attention.head_count_kv"] == (2 if whole else 1)
    assert said[f"{kind}.attention.head_count"] == (4 if whole else 2)
    assert (said[f"{kind}.expert_count"], said[f"{kind}.expert_used_count"]) == (3, 2)
    width = "feed_forward_length" if name == "mixtral" else "expert_feed_forward_length"
    assert said[f"{kind}.{width}"] == 8
    assert (f"{kind}.expert_shared_feed_forward_length" in said) == whole
    for layer, block in enumerate(describe(built).layers):
        own = {path: value.numpy() for path, value in block.named_parameters()}
        start = f"blk.{layer}"
        for part in "qk":
            rows = stored[f"{start}.attn_{part}.weight"]
            np.testing.assert_array_equal(
                halves(rows) if kind == "llama" else rows, own[f"self_attn.{part}_proj.weight"]
            )
        both = [stored[f"{start}.ffn_{part}_exps.weight"] for part in ("gate", "up")]
        np.testing.assert_array_equal(np.concatenate(both, 1), own["mlp.experts.gate_up_proj"])
        np.testing.assert_array_equal(stored[f"{start}.ffn_down_exps.weight"], own["mlp.experts.down_proj"])
        np.testing.assert_array_equal(stored[f"{start}.ffn_gate_inp.weight"], own["mlp.gate.weight"])
    sizes = sum(value.size for value in stored.values())
    assert sizes == sum(p.numel() for p in built.parameters())
    x = torch.randn(7, 64, generator=torch.Generator().manual_seed(1))
    expected = describe(built).layers[0].mlp(x[None])
    expected = expected[0] if isinstance(expected, tuple) else expected
    found = as_llama_cpp(x.numpy(), said, stored, kind)
    np.testing.assert_allclose(found, expected.view(7, 64).numpy(), atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_gives_the_same_logits_and_greedy_text(name: str, tmp_path: Path) -> None:
    built, path = pruned(name, vocab_size=420), tmp_path / "m.gguf"
    words = byte_level(*PRE_TOKENIZERS["gpt-2"].splits)
    write_gguf(built, vocabulary_of(words, built.config), path, Export(quantize="f32"))
    check_same(built, path)


@torch.no_grad()
def test_in_eight_bits_routers_stay_as_they_are(tmp_path: Path) -> None:
    built = pruned("qwen3_moe", width=32, moe_intermediate_size=40)
    write_gguf(built, Vocabulary("none"), tmp_path / "m.gguf", Export(quantize="q8_0"))
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert kinds["blk.0.ffn_gate_inp.weight"] == "F32" and kinds["blk.0.ffn_down_exps.weight"] == "Q8_0"
    rounded = round_trip(built, Export(quantize="q8_0"))
    assert "model.layers.0.mlp.experts.down_proj" in rounded and "model.layers.0.mlp.gate.weight" not in rounded


def test_what_one_number_does_not_say_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"3 to 4 in num_local_experts.*one-width and --experts"):
        check_config(pruned("mixtral", experts=(3, 4, 3)).config)
    cases = {
        "gpt_oss": ({}, "mixtral, qwen2_moe, qwen3_moe are written, not gpt_oss"),
        "qwen2_moe": ({}, "layers without experts"),
        "qwen3_moe": ({"norm_topk_prob": False}, "norm_topk_prob is False"),
        "mixtral": ({"hidden_act": "gelu"}, "not silu"),
    }
    for name, (changes, why) in cases.items():
        with pytest.raises(UserError, match=why):
            check_config(model(name, **changes).config)
    with pytest.raises(UserError, match="heads for all of the hidden size"):
        check_config(model("qwen2_moe", mlp_only_layers=[], head_dim=16).config)
    biased = pruned("qwen3_moe", attention_bias=True)
    with pytest.raises(UserError, match="qwen3moe, where qwen3_moe goes, has no biases there"):
        write_gguf(biased, Vocabulary("none"), tmp_path / "m.gguf", Export())
