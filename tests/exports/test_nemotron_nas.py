"""`nemotron-nas`: what its readers derive from our config is what is in the file, and computes what was pruned."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cut import one_head_fewer
from safetensors.torch import load_file
from tiny import model
from torch import Tensor
from torch.nn import functional
from transformers import AutoConfig
from vocabularies import byte_level

import seap
from seap.cli.main import main
from seap.compensation.compensate import Repair
from seap.errors import UserError
from seap.exports.nemotron_nas import check_config, derived, ffn_mult, write_nas
from seap.models.arch import describe
from seap.pruning.surgery import cut_

SHAPE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 600, "head_dim": 8, "num_attention_heads": 8}
SHAPE |= {"num_key_value_heads": 4, "vocab_size": 420, "max_position_embeddings": 64}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 32}
MODELS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "llama with biases everywhere": ("llama", {}, True),
    "tied llama": ("llama-tied", {}, True),
    "llama without biases": ("llama-tied", {"tie_word_embeddings": False}, False),
    "llama 3's rope": ("llama", {"rope_parameters": LLAMA3}, False),
    "fewer heads than the hidden size holds": ("llama", {"num_attention_heads": 4, "num_key_value_heads": 4}, False),
    "mistral": ("mistral", {"sliding_window": None}, False),
    "qwen2": ("qwen2", {"head_dim": None}, True),
}
IDS = torch.randint(3, 400, (2, 20), generator=torch.Generator().manual_seed(3))


def pruned(name: str, channels: tuple[int, ...] = (512, 300, 1)) -> Any:
    row, changes, biases = MODELS[name]
    built, draw = model(row, **(SHAPE | changes)), torch.Generator().manual_seed(0)
    kept = {"kv_groups": (4, 3, 1), "channels": channels}
    masks, repairs = {}, {}
    for axis in describe(built).axes:
        masks[axis.key] = torch.randperm(axis.units, generator=draw) < kept[axis.name][axis.layer]
        repairs[axis.key] = Repair(torch.randn(64, generator=draw).double())
    cut_(built, masks, repairs if biases else None)
    return built


def find_multiple(n: int, k: int) -> int:
    """As vLLM and mlx-lm write it."""
    if n % k == 0:
        return n
    return n + k - (n % k)


def read(folder: Path, ids: Tensor, inv_freq: Tensor, rope_scale: float = 1.0) -> Tensor:
    """Logits as a reader of `nemotron-nas` computes them: sizes from config.json alone, each weight held to them."""
    config, weights = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    size, heads = config["hidden_size"], config["num_attention_heads"]
    head_dim = size // heads
    assert head_dim * heads == size and len(config["block_configs"]) == config["num_hidden_layers"]

    def linear(x: Tensor, name: str, rows: int, columns: int, bias: bool) -> Tensor:
        assert weights[f"{name}.weight"].shape == (rows, columns), name
        return functional.linear(x, used(f"{name}.weight"), used(f"{name}.bias") if bias else None)

    taken = set()

    def used(name: str) -> Tensor:
        taken.add(name)
        return weights[name]

    def norm(x: Tensor, name: str) -> Tensor:
        return functional.rms_norm(x, (size,), used(name), config["rms_norm_eps"])

    angles = torch.arange(ids.shape[1])[:, None].float() * inv_freq
    cos, sin = (torch.cat([part, part], -1) * rope_scale for part in (angles.cos(), angles.sin()))

    def turned(x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat([-second, first], -1) * sin

    x = functional.embedding(ids, used("model.embed_tokens.weight"))
    for layer, block in enumerate(config["block_configs"]):
        start, attention, ffn = f"model.layers.{layer}", block["attention"], block["ffn"]
        if not attention["no_op"]:
            kv = heads // attention["n_heads_in_group"]
            h, bias = norm(x, f"{start}.input_layernorm.weight"), config["attention_bias"]
            q = linear(h, f"{start}.self_attn.q_proj", heads * head_dim, size, bias)
            k = linear(h, f"{start}.self_attn.k_proj", kv * head_dim, size, bias)
            v = linear(h, f"{start}.self_attn.v_proj", kv * head_dim, size, bias)
            q, k, v = (part.unflatten(-1, (-1, head_dim)).transpose(1, 2) for part in (q, k, v))
            k, v = (part.repeat_interleave(heads // kv, 1) for part in (k, v))
            h = functional.scaled_dot_product_attention(turned(q), turned(k), v, is_causal=True)
            h = h.transpose(1, 2).flatten(2)
            x = x + linear(h, f"{start}.self_attn.o_proj", size, heads * head_dim, bias)
        if not ffn["no_op"]:
            wide = find_multiple(int(2 * round(ffn["ffn_mult"], 6) * size / 3), 256)
            h, bias = norm(x, f"{start}.post_attention_layernorm.weight"), config["mlp_bias"]
            gate = linear(h, f"{start}.mlp.gate_proj", wide, size, bias)
            up = linear(h, f"{start}.mlp.up_proj", wide, size, bias)
            x = x + linear(functional.silu(gate) * up, f"{start}.mlp.down_proj", size, wide, bias)
    head = "model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"
    found = functional.linear(norm(x, "model.norm.weight"), used(head))
    assert taken == weights.keys()  # strict loading
    return found


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_a_reader_computes_what_was_pruned(name: str, tmp_path: Path) -> None:
    built = pruned(name)
    notes = write_nas(built, byte_level(r"\w+"), tmp_path)
    assert any("2 layers have channels that are no multiple of 256" in note for note in notes)
    rope = built.model.rotary_emb
    found = read(tmp_path, IDS, rope.inv_freq, rope.attention_scaling)
    torch.testing.assert_close(found, built(IDS).logits, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_fewer_query_heads_in_a_layer_are_padded_too(tmp_path: Path) -> None:
    built = one_head_fewer(model("llama-tied", **SHAPE))
    write_nas(built, byte_level(r"\w+"), tmp_path)
    found = read(tmp_path, IDS, built.model.rotary_emb.inv_freq)
    torch.testing.assert_close(found, built(IDS).logits, atol=1e-4, rtol=1e-4)


def test_derived_widths_are_the_kept_ones_at_every_size() -> None:
    for size in (64, 576, 896, 2048, 4096, 5120, 8192, 16384):
        for channels in range(256, 8 * size + 1, 256):
            assert find_multiple(int(2 * ffn_mult(channels, size) * size / 3), 256) == channels
            assert derived(ffn_mult(channels, size), size) == channels


@torch.no_grad()
def test_multiples_of_256_are_padded_by_nothing(tmp_path: Path) -> None:
    built = model("llama-tied", **SHAPE)
    kept = {"kv_groups": 4, "channels": 512}
    cut_(built, {a.key: torch.arange(a.units) < kept[a.name] for a in describe(built).axes})
    assert write_nas(built, byte_level(r"\w+"), tmp_path) == []
    stored = sum(value.numel() for value in load_file(tmp_path / "model.safetensors").values())
    assert stored == sum(parameter.numel() for parameter in built.parameters())


def test_the_config_class_in_the_folder_reads_as_vllm_reads_it(tmp_path: Path) -> None:
    write_nas(pruned("tied llama"), byte_level(r"\w+"), tmp_path)
    config = AutoConfig.from_pretrained(tmp_path, trust_remote_code=True)
    assert config.model_type == "nemotron-nas" and config.architectures == ["DeciLMForCausalLM"]
    first = config.block_configs[1]
    assert first.attention.no_op is False and config.num_attention_heads // first.attention.n_heads_in_group == 4
    assert hasattr(first.ffn, "ffn_mult") and not hasattr(first.ffn, "hidden_act")
    config.save_pretrained(tmp_path / "again")
    told = json.loads((tmp_path / "again" / "config.json").read_text())
    assert told["block_configs"] == json.loads((tmp_path / "config.json").read_text())["block_configs"]
    assert config.rope_parameters["rope_theta"] == 10000.0


@torch.no_grad()
def test_whole_sub_blocks_are_no_ops(tmp_path: Path) -> None:
    built = pruned("llama without biases")
    masks = {axis.key: torch.ones(axis.units, dtype=torch.bool) for axis in describe(built).axes}
    masks |= {key: torch.zeros_like(masks[key]) for key in ("layers.1.kv_groups", "layers.2.channels")}
    cut_(built, masks)
    write_nas(built, byte_level(r"\w+"), tmp_path)
    blocks = json.loads((tmp_path / "config.json").read_text())["block_configs"]
    assert [block["attention"]["no_op"] for block in blocks] == [False, True, False]
    assert [block["ffn"]["no_op"] for block in blocks] == [False, False, True]
    found = read(tmp_path, IDS, built.model.rotary_emb.inv_freq)
    torch.testing.assert_close(found, built(IDS).logits, atol=1e-4, rtol=1e-4)


def test_a_vector_that_was_left_and_a_first_layer_without_attention_are_refused(tmp_path: Path) -> None:
    for layer, repair, said in ((1, True, "--compensate none"), (0, False, "can't begin with a layer without")):
        built = pruned("llama without biases")
        masks = {axis.key: torch.ones(axis.units, dtype=torch.bool) for axis in describe(built).axes}
        masks[f"layers.{layer}.kv_groups"] = torch.zeros_like(masks[f"layers.{layer}.kv_groups"])
        cut_(built, masks, {f"layers.{layer}.kv_groups": Repair(torch.ones(64).double())} if repair else None)
        with pytest.raises(UserError, match=said):
            write_nas(built, byte_level(r"\w+"), tmp_path)


@pytest.mark.parametrize(
    ("row", "changes", "message"),
    [
        ("qwen3", {}, "only llama, mistral, qwen2 are written, and this is qwen3"),
        ("mistral", {"sliding_window": 6}, "sliding window"),
        ("llama", {"hidden_act": "gelu"}, "not silu"),
        ("llama", {"head_dim": 24}, "24 doesn't divide it"),
        ("llama", {"head_dim": 16}, "don't hold"),
        ("mixtral", {}, "mixtures of experts"),
    ],
)
def test_what_has_no_place_is_refused(row: str, changes: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_config(model(row, **(SHAPE | changes)).config)


def test_the_command_and_its_provenance(tmp_path: Path) -> None:
    pruned("tied llama").save_pretrained(tmp_path / "small")
    byte_level(r"\w+").save_pretrained(tmp_path / "small")
    out = tmp_path / "nas"
    assert main(["export", str(tmp_path / "small"), "--to", "nemotron-nas", "--out", str(out)]) == 0
    assert {"config.json", "configuration_decilm.py", "model.safetensors", "tokenizer.json"} <= {
        path.name for path in out.iterdir()
    }
    with pytest.raises(UserError, match=r"--task is for --to gguf, torchao, compressed-tensors"):
        seap.export(tmp_path / "small", tmp_path / "no", "nemotron-nas", task=["t=x.txt"])
