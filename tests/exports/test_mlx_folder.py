"""MLX: mlx-lm on a CPU computes what transformers does, from our modelling file and from its own for nemotron-nas.

Needs `pip install "mlx[cpu]" mlx-lm`, which there is for Linux and Macs; without them what needs them is skipped, and
the arrays alone are held against transformers.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cut import one_head_fewer
from safetensors.torch import load_file
from tiny import model
from vocabularies import byte_level

from seap.cli.main import main
from seap.compensation.compensate import Repair
from seap.errors import UserError
from seap.exports.mlx_folder import check_config, write_mlx
from seap.exports.nemotron_nas import write_nas
from seap.models.arch import describe
from seap.pruning.surgery import cut_

SHAPE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "num_attention_heads": 4}
SHAPE |= {"num_key_value_heads": 2, "vocab_size": 420}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 32}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
MODELS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "llama with biases everywhere": ("llama", {}, True),
    "tied llama": ("llama-tied", {}, False),
    "llama 3's rope": ("llama", {"rope_parameters": LLAMA3}, False),
    "yarn": ("llama", {"rope_parameters": YARN}, False),
    "mistral": ("mistral", {"sliding_window": None}, False),
    "qwen2": ("qwen2", {"head_dim": None}, True),
    "qwen3": ("qwen3", {}, True),
    "smollm3": ("smollm3", {"head_dim": None, "no_rope_layer_interval": 2}, True),
}
IDS = torch.randint(3, 400, (1, 24), generator=torch.Generator().manual_seed(3))


def pruned(name: str, **changes: Any) -> Any:
    row, own, biases = MODELS[name]
    built, draw = model(row, **(SHAPE | own | changes)), torch.Generator().manual_seed(0)
    kept = {"kv_groups": (2, 1, 2), "channels": (96, 37, 64)}
    masks, repairs = {}, {}
    for axis in describe(built).axes:
        masks[axis.key] = torch.randperm(axis.units, generator=draw) < kept[axis.name][axis.layer]
        repairs[axis.key] = Repair(torch.randn(64, generator=draw).double())
    cut_(built, masks, repairs if biases else None)
    return built


def without_blocks(built: Any, *, vectors: bool) -> Any:
    """The second layer's attention and the last one's MLP gone, with vectors in their places or none."""
    masks = {axis.key: torch.ones(axis.units, dtype=torch.bool) for axis in describe(built).axes}
    gone = ("layers.1.kv_groups", "layers.2.channels")
    masks |= {key: torch.zeros_like(masks[key]) for key in gone}
    cut_(built, masks, {key: Repair(torch.ones(64).double()) for key in gone} if vectors else None)
    return built


def by_mlx(folder: Path, ids: torch.Tensor, steps: int) -> tuple[np.ndarray, list[int]]:
    """mlx-lm's logits (T, V), and so many greedy tokens with its cache."""
    mx = pytest.importorskip("mlx.core", reason='needs pip install "mlx[cpu]" mlx-lm')
    utils = pytest.importorskip("mlx_lm.utils", reason="needs pip install mlx-lm")
    from mlx_lm.models.cache import make_prompt_cache

    mx.set_default_device(mx.cpu)
    built, _ = utils.load_model(folder, trust_remote_code=True)
    logits = np.array(built(mx.array(ids.tolist()))[0].astype(mx.float32))
    cache, given, found = make_prompt_cache(built), mx.array(ids.tolist()), []
    for _ in range(steps):
        last = int(mx.argmax(built(given, cache=cache)[0, -1]).item())
        found.append(last)
        given = mx.array([[last]])
    return logits, found


def held(built: Any, folder: Path) -> None:
    """Hold a folder that mlx-lm loads against transformers: logits, and greedy text with a cache."""
    logits, found = by_mlx(folder, IDS, 8)
    expected = built(IDS).logits[0].detach().numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())
    built.generation_config.eos_token_id = None
    wanted = built.generate(IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=8, do_sample=False)
    assert found == wanted[0, 24:].tolist()


@pytest.mark.parametrize("name", MODELS)
def test_mlx_computes_the_same_with_our_file(name: str, tmp_path: Path) -> None:
    built = pruned(name)
    write_mlx(built, byte_level(r"\w+"), tmp_path)
    held(built, tmp_path)


def test_mlx_computes_the_same_with_fewer_query_heads(tmp_path: Path) -> None:
    built = one_head_fewer(model("qwen3", **SHAPE))
    write_mlx(built, byte_level(r"\w+"), tmp_path)
    held(built, tmp_path)


@pytest.mark.parametrize("vectors", [False, True])
def test_mlx_computes_the_same_without_some_sub_blocks(vectors: bool, tmp_path: Path) -> None:
    built = without_blocks(pruned("qwen3"), vectors=vectors)
    write_mlx(built, byte_level(r"\w+"), tmp_path)
    held(built, tmp_path)


@pytest.mark.parametrize("name", ["llama with biases everywhere", "tied llama", "llama 3's rope", "yarn", "qwen2"])
def test_mlx_runs_nemotron_nas_with_its_own_file(name: str, tmp_path: Path) -> None:
    built = pruned(name)
    write_nas(built, byte_level(r"\w+"), tmp_path)
    held(built, tmp_path)


@pytest.mark.parametrize("name", MODELS)
def test_the_arrays_are_the_models_own(name: str, tmp_path: Path) -> None:
    built = pruned(name)
    write_mlx(built, byte_level(r"\w+"), tmp_path)
    stored, told = load_file(tmp_path / "model.safetensors"), json.loads((tmp_path / "config.json").read_text())
    own = dict(built.named_parameters())
    assert stored.keys() == own.keys() and all(torch.equal(stored[key], own[key]) for key in own)
    assert [layer["channels"] for layer in told["layers"]] == [96, 37, 64] and told["model_file"] == "modeling_mlx.py"
    freqs = 1 / torch.tensor(told["rope_freqs"], dtype=torch.float64)
    torch.testing.assert_close(freqs.float(), built.model.rotary_emb.inv_freq)
    assert told["rope_scale"] == built.model.rotary_emb.attention_scaling


def test_what_the_file_does_not_compute_is_refused(tmp_path: Path) -> None:
    for row, message in (("gemma2", "only llama"), ("mistral", "sliding window"), ("mixtral", "mixtures of experts")):
        with pytest.raises(UserError, match=message):
            check_config(model(row, **SHAPE).config)
    model("gemma2").save_pretrained(tmp_path / "dense")
    assert main(["export", str(tmp_path / "dense"), "--to", "mlx", "--out", str(tmp_path / "no")]) == 1
    assert not (tmp_path / "no").exists()
