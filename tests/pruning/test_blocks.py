"""Whole sub-blocks that go: over a tiny model of every family that lets them, and refused by the others."""

import copy
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from generating import assert_a_cache_changes_nothing, assert_left_padding_changes_nothing
from safetensors.torch import load_file
from tiny import EVERY, ids, model
from toy import folder, texts_file, tokenizer
from transformers import AutoModelForCausalLM

import seap
from seap.compensation.compensate import Repair, Repairs
from seap.errors import UserError
from seap.models.arch import Arch, describe
from seap.models.axes import CHANNELS, KV_GROUPS, Masks
from seap.models.blocks import cache_kinds, gone, why_whole
from seap.models.options import Streaming
from seap.pruning.commands import prune_to_folder
from seap.pruning.stages import calibrate_to_files, mask_to_file
from seap.pruning.surgery import cut_
from seap.selection.mask import realised_sparsity, save_masks
from seap.selection.options import Pruning
from seap.text.options import Calibration

LAYERS = 4
GONE = [("channels", 1), ("channels", 2), ("kv_groups", 0), ("kv_groups", 2), ("kv_groups", 3)]
# whose tiny models have nothing that can go: experts everywhere and at most one attention, a norm that two read through
NOTHING = {"olmoe", "qwen3_5_moe_text", "granitemoehybrid", "lfm2_moe", "falcon_h1", "nemotron_h", "nemotron_h-dense"}
NOTHING |= {"gemma4_text-experts", "gemma3n_text"}
CASES: dict[str, dict[str, Any]] = {name: {} for name in EVERY if name not in NOTHING}
CASES |= {
    "hyperclovax-plain": {"use_post_norm": False},
    "stablelm-parallel": {"use_parallel_residual": True},
    "gpt_neox-in-turn": {"use_parallel_residual": False},
    "gemma2-biased": {"attention_bias": True},
    "llama-bare": {"attention_bias": False, "mlp_bias": False},
}


def built(case: str, **changes: Any) -> Any:
    name = case.partition("-")[0] if case not in EVERY else case
    return model(name, **{"num_hidden_layers": LAYERS} | CASES[case] | changes)


def masks_of(arch: Arch, going: Sequence[tuple[str, int]] = GONE) -> Masks:
    """Some sub-blocks gone, but for the last attention of its kind; of the others about half of the units."""
    generator, kinds = torch.Generator().manual_seed(3), cache_kinds(arch)
    masks, left = {}, [kinds[axis.layer] for axis in arch.axes if axis.name == KV_GROUPS]
    for axis in arch.axes:
        mask = torch.rand(axis.entries, generator=generator) < 0.6
        mask[0] = True
        if why_whole(arch, axis):
            mask[:] = True
        elif (axis.name, axis.layer) in going and (axis.name == CHANNELS or left.count(kinds[axis.layer]) > 1):
            mask[:] = False
            if axis.name == KV_GROUPS:
                left.remove(kinds[axis.layer])
        masks[axis.key] = mask
    return masks


def repairs_of(arch: Arch, masks: Masks) -> Repairs:
    """A bias for every axis that loses units, but for those of layer 0."""
    bias = torch.linspace(-1, 1, arch.model.config.hidden_size, dtype=torch.float64)
    cut = [axis for axis in arch.axes if not masks[axis.key].all() and axis.layer]
    return {axis.key: Repair(bias) for axis in cut}


@torch.no_grad()
def zeroed(dense: Any, masks: Masks, repairs: Repairs) -> Any:
    """The dense model with the removed units' columns of each consumer set to zero, and the repairs made."""
    masked = copy.deepcopy(dense)
    arch = describe(masked)
    for axis in arch.axes:
        if axis.usage_key:
            continue
        arch.weight(axis.layer, axis.consumer)[:, (~masks[axis.key]).repeat_interleave(axis.unit_inputs)] = 0
        if axis.key in repairs:
            consumer = arch.consumer(axis)
            old = consumer.bias if consumer.bias is not None else torch.zeros(1)
            consumer.bias = torch.nn.Parameter(old + repairs[axis.key].bias.float())
    return masked


@pytest.fixture(params=sorted(CASES))
def dropped(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """(masked dense model, the same cut)"""
    dense = built(request.param)
    arch = describe(dense)
    masks = masks_of(arch)
    repairs = repairs_of(arch, masks)
    reference = zeroed(dense, masks, repairs)
    expected = realised_sparsity(arch, masks)
    before = sum(weight.numel() for axis in arch.axes for weight in arch.weights(axis))
    cut_(dense, masks, repairs)
    after = sum(weight.numel() for axis in describe(dense).axes for weight in describe(dense).weights(axis))
    assert abs((before - after) / arch.prunable_params - expected) < 0.02  # biases of the consumers stay
    return reference, dense


@torch.no_grad()
def test_what_is_cut_says_what_the_masked_model_says(dropped: tuple[Any, Any]) -> None:
    reference, sliced = dropped
    assert gone(sliced.config)
    torch.testing.assert_close(sliced(ids()).logits, reference(ids()).logits, atol=2e-5, rtol=1e-4)
    sliced.set_attn_implementation("eager")
    torch.testing.assert_close(sliced(ids()).logits, reference(ids()).logits, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_norms_and_weights_of_what_is_gone_are_gone(dropped: tuple[Any, Any]) -> None:
    _, sliced = dropped
    arch = describe(sliced)
    inside = dict(arch.layers[2].named_parameters())
    stays = any(axis.layer == 2 for axis in arch.axes) or not arch.can_cut_heads or arch.mixers(2)
    if not stays:  # nothing of it is left but two vectors
        assert sorted(value.dim() for value in inside.values()) == [1, 1]
        assert {name for name in inside} == {f"{path}.weight" for path in arch.writers(2)}


@torch.no_grad()
def test_save_and_load_are_bit_identical(dropped: tuple[Any, Any], tmp_path: Path) -> None:
    _, sliced = dropped
    sliced.save_pretrained(tmp_path / "once")
    once = AutoModelForCausalLM.from_pretrained(tmp_path / "once")
    once.save_pretrained(tmp_path / "twice")
    twice = AutoModelForCausalLM.from_pretrained(tmp_path / "twice")
    for loaded in (once, twice):
        assert torch.equal(loaded(ids()).logits, sliced(ids()).logits)
        assert loaded.state_dict().keys() == sliced.state_dict().keys()
        assert gone(loaded.config) == gone(sliced.config)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generation_with_a_cache_equals_the_full_forward(dropped: tuple[Any, Any], cache: str) -> None:
    assert_a_cache_changes_nothing(dropped[1], cache)


def test_left_padding_changes_nothing(dropped: tuple[Any, Any]) -> None:
    assert_left_padding_changes_nothing(dropped[1])


def test_gradients_reach_every_parameter(dropped: tuple[Any, Any]) -> None:
    _, sliced = dropped
    sliced.train()(ids(), labels=ids()).loss.backward()
    for name, parameter in sliced.named_parameters():
        if parameter.numel() and "experts" not in name:
            assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), name
        if name.endswith(tuple(f"layers.1.{path}.weight" for path in describe(sliced).writers(1))):
            assert parameter.grad is not None and bool(parameter.grad.any())


@torch.no_grad()
def test_places_in_the_cache_are_filled_from_the_first(dropped: tuple[Any, Any]) -> None:
    _, sliced = dropped
    cache = sliced(ids(), use_cache=True)
    found = cache.get("cache", cache.get("past_key_values"))
    if found is None:
        pytest.skip("its model hands no cache out")
    assert found.get_seq_length() == ids().shape[1]
    arch = describe(sliced)
    attentions = sum(arch.has(layer, "attention") for layer in range(len(arch.layers)))
    assert sum(layer.is_initialized for layer in found.layers if hasattr(layer, "keys")) == attentions


@pytest.mark.parametrize("name", ["llama", "phi", "mistral"])
def test_a_model_without_some_is_pruned_again(name: str) -> None:
    dense = built(name)
    cut_(dense, masks_of(describe(dense), [("kv_groups", 1)]))
    arch = describe(dense)
    assert "layers.1.kv_groups" not in {axis.key for axis in arch.axes}
    masks = masks_of(arch, [("channels", 1), ("channels", 3)])
    reference = zeroed(dense, masks, repairs_of(arch, masks))
    cut_(dense, masks, repairs_of(arch, masks))
    assert gone(dense.config) == ["layer 1 attention", "layer 1 mlp", "layer 3 mlp"]
    with torch.no_grad():
        torch.testing.assert_close(dense(ids()).logits, reference(ids()).logits, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "axis", "layers", "reason"),
    [
        ("mixtral", "expert_channels", [1], "keeps its experts"),
        ("llama", "kv_groups", [0, 1, 2, 3], "every attention of all layers"),
        ("gemma2", "kv_groups", [1, 3], "every attention of full_attention"),
    ],
)
def test_what_must_stay_is_said(name: str, axis: str, layers: list[int], reason: str) -> None:
    dense = built(name)
    before = {key: value.clone() for key, value in dense.state_dict().items()}
    masks = masks_of(describe(dense), [])
    for layer in layers:
        masks[f"layers.{layer}.{axis}"][:] = False
    with pytest.raises(UserError, match=reason):
        cut_(dense, masks)
    assert all(torch.equal(before[key], value) for key, value in dense.state_dict().items())


def test_an_opt_whose_norms_are_of_the_stream_is_refused() -> None:
    dense = built("opt", do_layer_norm_before=False)
    with pytest.raises(UserError, match="do_layer_norm_before"):
        cut_(dense, {key: mask & ("channels" not in key) for key, mask in masks_of(describe(dense)).items()})


@pytest.mark.parametrize("vectors", [True, False])
def test_a_stock_reader_fails_rather_than_load_random_weights(vectors: bool, tmp_path: Path) -> None:
    dense = model("llama", num_hidden_layers=LAYERS, attention_bias=False, mlp_bias=False)
    arch = describe(dense)
    masks = {axis.key: torch.ones(axis.units, dtype=torch.bool) for axis in arch.axes}
    masks["layers.1.kv_groups"][:] = False
    masks["layers.2.channels"][:] = False
    cut_(dense, masks, repairs_of(arch, masks) if vectors else None)
    dense.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["per_layer_config"] == {"1": {"skip": ["attention"]}, "2": {"skip": ["mlp"]}}
    assert [block["attention"]["no_op"] for block in config["block_configs"]] == [False, True, False, False]
    assert [block["ffn"]["no_op"] for block in config["block_configs"]] == [False, False, True, False]
    stored = load_file(tmp_path / "model.safetensors")
    assert stored["model.layers.1.self_attn.o_proj.weight"].shape == (24 if vectors else 0,)
    program = f"""
import sys
sys.modules["seap"] = None
from transformers import LlamaForCausalLM
LlamaForCausalLM.from_pretrained({str(tmp_path)!r}, attn_implementation="eager")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode and "mismatch" in done.stderr.lower()
    program = f"""
import sys, torch
sys.modules["seap"] = None
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({str(tmp_path)!r}, trust_remote_code=True)
print(float(model(torch.tensor({ids().tolist()})).logits.double().sum()))
"""
    environment = {"HF_HOME": str(tmp_path / "hf"), "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    with torch.no_grad():
        assert float(done.stdout) == pytest.approx(float(dense(ids()).logits.double().sum()), rel=1e-6), done.stderr


@pytest.mark.parametrize(
    "damage",
    [
        {
            "blocks": {
                "attention": {"consumer": "mlp", "passes": []},
                "mlp": {"consumer": "mlp.down_proj", "passes": []},
            }
        },
        {"written": {"attention": ["1"], "mlp": []}},
        {"written": None},
    ],
)
def test_a_damaged_entry_is_refused(damage: dict[str, Any], tmp_path: Path) -> None:
    dense = built("llama")
    cut_(dense, masks_of(describe(dense)))
    dense.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["seap"] |= damage
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match="damaged; prune again"):
        seap.load(str(tmp_path), device="cpu")


@pytest.mark.parametrize("name", ["llama", "opt", "cohere"])
@pytest.mark.parametrize("vectors", [True, False])
def test_streamed_weights_lose_the_same(
    name: str, vectors: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = tokenizer()
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *_, **__: words)  # not the family's own
    dense, stats = folder(tmp_path / "dense", name, num_hidden_layers=LAYERS), tmp_path / "stats"
    calibrate_to_files(str(dense), [f"toy={texts_file(tmp_path / 'toy.txt')}"], stats, Calibration(), progress=False)
    mask, options = (
        tmp_path / "mask.safetensors",
        Pruning(method="flap", sparsity=0.05, compensate="bias" if vectors else "none"),
    )
    about = mask_to_file(str(dense), [stats / "toy.safetensors"], mask, options)
    masks = masks_of(describe(built(name)))
    save_masks(tmp_path / "gone.safetensors", masks, {key: value for key, value in about.items() if key != "skipped"})
    logits = []
    for streaming in (Streaming(), Streaming(stream=True)):
        out = tmp_path / f"stream-{streaming.stream}"
        prune_to_folder(
            str(dense),
            out,
            stats_files=[stats / "toy.safetensors"],
            mask_file=tmp_path / "gone.safetensors",
            streaming=streaming,
            progress=False,
        )
        loaded, _ = seap.load(str(out), device="cpu")
        assert len(gone(loaded.config)) == sum(not mask.any() for mask in masks.values())
        with torch.no_grad():
            logits.append(loaded(ids()).logits)
    assert torch.equal(*logits)
