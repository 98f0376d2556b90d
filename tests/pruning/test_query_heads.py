"""Query heads that go within KV groups: over a tiny model of every family whose heads can be cut."""

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cut import greedy, logits
from tiny import EVERY, ids, model
from transformers import AutoModelForCausalLM

import seap
from seap.compensation.compensate import Repair, Repairs, kept_inputs
from seap.errors import UserError
from seap.exports.engines import query_heads
from seap.exports.options import Export
from seap.exports.stock import stock_model
from seap.models.arch import Arch, describe
from seap.models.axes import KV_GROUPS, Masks
from seap.models.families import FAMILIES
from seap.models.modeling_seap import layer_widths
from seap.pruning.surgery import cut_
from seap.selection.mask import budgets_of, compose, load_masks, realised_sparsity, save_masks
from seap.serving.networks.network import check_network, load_network, network_between, save_network
from seap.serving.networks.sharing import share_weights

GROUPS = {"llama-mqa": 1}  # of 8 query heads; else 2
HEADS = [3, 2, 4, 1]  # that stay of each group, layer by layer
GROUPS |= {name: 8 for name in EVERY if not FAMILIES[name.partition("-")[0]].heads_share}  # latent: each its own
CUTTABLE = sorted(name for name in EVERY if not FAMILIES[name.partition("-")[0]].heads_refused)


def built(name: str, **changes: Any) -> Any:
    return model(name, **{"num_key_value_heads": GROUPS.get(name, 2), **changes})


def some_masks(arch: Arch, seed: int = 0) -> Masks:
    """One group or both in turn, of each as many query heads as `HEADS` says, less the seed; half of the channels."""
    generator = torch.Generator().manual_seed(seed)
    masks: Masks = {}
    for axis in arch.axes:
        if axis.name == KV_GROUPS:
            groups = torch.rand(axis.units, generator=generator).argsort() < 1 + axis.layer % 2
            count = max(HEADS[axis.layer % 4] - seed, 1)
            heads = torch.rand(axis.units, axis.queries, generator=generator).argsort(1) < count
            masks[axis.key] = groups
            if count < axis.queries:
                masks[axis.heads_key] = (heads & groups[:, None]).flatten()
        elif axis.usage_key:
            masks[axis.key] = torch.ones(axis.entries, dtype=torch.bool)
        else:
            masks[axis.key] = torch.rand(axis.units, generator=generator).argsort() < 5 + axis.units // 2
    return masks


def biases(arch: Arch, masks: Masks) -> Repairs:
    bias = torch.linspace(-1, 1, arch.model.config.hidden_size, dtype=torch.float64)
    return {axis.key: Repair(bias) for axis in arch.axes if not axis.usage_key and not axis.mask_of(masks).all()}


@torch.no_grad()
def zeroed(dense: Any, masks: Masks, repairs: Repairs) -> Any:
    """The dense model whose consumers have zeros where they read what goes, and the repairs' biases."""
    masked = copy.deepcopy(dense)
    arch = describe(masked)
    for axis in [axis for axis in arch.axes if not axis.usage_key]:
        arch.weight(axis.layer, axis.consumer)[:, ~kept_inputs(axis, axis.mask_of(masks))] = 0
        if axis.key in repairs:
            consumer = arch.consumer(axis)
            old = consumer.bias if consumer.bias is not None else torch.zeros(1)
            consumer.bias = torch.nn.Parameter(old + repairs[axis.key].bias.float())
    return masked


def cut(name: str, **changes: Any) -> tuple[Any, Any, Masks]:
    """Masked dense model, sliced model, masks."""
    dense = built(name, **changes)
    arch = describe(dense)
    masks = some_masks(arch)
    repairs = biases(arch, masks)
    reference = zeroed(dense, masks, repairs)
    cut_(dense, masks, repairs)
    return reference, dense, masks


@torch.no_grad()
@pytest.mark.parametrize("name", CUTTABLE)
def test_sliced_equals_masked_and_reloads_to_the_bit(name: str, tmp_path: Path) -> None:
    reference, sliced, masks = cut(name)
    arch, dense = describe(sliced), describe(reference)
    torch.testing.assert_close(sliced(ids()).logits, reference(ids()).logits, atol=2e-5, rtol=1e-4)
    budgets = budgets_of(dense.axes, masks)
    for axis, before in zip(arch.axes, dense.axes, strict=True):
        if axis.name == KV_GROUPS:
            assert (
                axis.queries == min(HEADS[axis.layer % 4], before.queries) == budgets.get(axis.heads_key, axis.queries)
            )
            assert axis.units == int(masks[axis.key].sum()) == budgets[axis.key]
            own = layer_widths(sliced.config, axis.layer)
            assert own["num_attention_heads"] == axis.units * axis.queries and own["num_key_value_heads"] == axis.units
    size, left = (
        sum(p.numel() for key, p in net.named_parameters() if not key.endswith((".sinks", ".experts.down_proj_bias")))
        for net in (reference, sliced)
    )  # both with the repairs' biases
    assert realised_sparsity(dense, masks) * dense.prunable_params == pytest.approx(size - left)
    sliced.save_pretrained(tmp_path)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(ids()).logits, sliced(ids()).logits)


@torch.no_grad()
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", CUTTABLE)
def test_generation_with_a_cache_equals_the_full_forward_and_padding_changes_nothing(name: str, cache: str) -> None:
    _, sliced, _ = cut(name)
    if cache == "static" and not sliced._can_compile_fullgraph:
        pytest.skip(f"{type(sliced).__mro__[1].__name__} has no static cache in transformers")
    options: dict[str, Any] = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    options |= {"cache_implementation": cache, "disable_compile": True}
    prompt = ids(2, 9)
    text = sliced.generate(prompt, **options)
    for end in range(prompt.shape[1], text.shape[1]):
        logits = sliced(text[:, :end], use_cache=False).logits[:, -1]
        logits[:, 2] = -torch.inf  # min_new_tokens forbids the end of text
        assert torch.equal(logits.argmax(-1), text[:, end])
    padded = torch.cat([torch.zeros(2, 4, dtype=torch.long), prompt], 1)
    mask = (torch.arange(13) >= 4).long().expand(2, -1)
    assert torch.equal(sliced.generate(padded, attention_mask=mask, **options)[:, 13:], text[:, 9:])


@pytest.mark.parametrize("name", ["llama", "phi3", "qwen2", "gemma3_text", "gpt_oss"])
def test_gradients_reach_every_weight(name: str) -> None:
    _, sliced, _ = cut(name)
    sliced.train()
    sliced(ids(), labels=ids()).loss.backward()
    for key, parameter in sliced.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), key
        assert "proj" not in key or key.endswith("k_proj.bias") or parameter.grad.any(), key


@torch.no_grad()
def test_without_seap_it_loads_as_remote_code(tmp_path: Path) -> None:
    _, sliced, _ = cut("qwen2")
    sliced.save_pretrained(tmp_path / "cut")
    torch.save(sliced(ids()).logits, tmp_path / "logits")
    program = f"""
import sys, torch
sys.modules["seap"] = None
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({str(tmp_path / "cut")!r}, trust_remote_code=True)
expected = torch.load({str(tmp_path / "logits")!r}, weights_only=True)
assert torch.equal(model(torch.tensor({ids().tolist()})).logits, expected)
print("equal")
"""
    there = {"HF_HOME": str(tmp_path / "hf"), "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1"}
    there["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=there, cwd=tmp_path)
    assert done.stdout.strip().endswith("equal"), done.stderr


@torch.no_grad()
@pytest.mark.parametrize("first", ["heads", "units"])
@pytest.mark.parametrize("second", ["heads", "units"])
def test_cut_twice_is_cut_once_by_the_masks_of_both(first: str, second: str) -> None:
    """In layers that lose query heads first, second, both times or never."""
    dense = built("qwen3", num_hidden_layers=4)
    whole, parts = copy.deepcopy(dense), []
    for seed, kind in ((0, first), (1, second)):
        masks = some_masks(describe(dense), seed)
        parts.append({key: mask for key, mask in masks.items() if kind == "heads" or "query_heads" not in key})
        cut_(dense, parts[-1])
    cut_(whole, compose(*parts))
    assert whole.config.to_dict()["per_layer_config"] == dense.config.to_dict()["per_layer_config"]
    assert torch.equal(whole(ids()).logits, dense(ids()).logits)


def test_masks_that_keep_unequally_many_or_of_other_groups_are_refused(tmp_path: Path) -> None:
    dense = built("llama")
    masks = some_masks(describe(dense))
    uneven = masks | {"layers.1.query_heads": torch.tensor([1, 1, 0, 0, 1, 0, 0, 0]).bool()}
    with pytest.raises(UserError, match=r"layers\.1\.query_heads: the mask keeps \[2, 1\] query heads of the groups"):
        cut_(dense, uneven)
    other = masks | {"layers.0.kv_groups": ~masks["layers.0.kv_groups"]}
    with pytest.raises(UserError, match=r"layers\.0\.query_heads: the groups that keep query heads aren't those"):
        cut_(dense, other)
    with pytest.raises(UserError, match=r"layers\.0\.query_heads has 6 units in the mask, 8 in the model"):
        cut_(dense, masks | {"layers.0.query_heads": torch.ones(6).bool()})
    save_masks(tmp_path / "mask.safetensors", masks, {})
    found, _ = load_masks(tmp_path / "mask.safetensors")
    assert found.keys() == masks.keys() and all(torch.equal(found[key], masks[key]) for key in masks)
    assert "query heads" in found._repr_html_()  # type: ignore[attr-defined]


def test_a_config_whose_layers_have_heads_that_no_groups_share_is_refused(tmp_path: Path) -> None:
    _, sliced, _ = cut("llama")
    sliced.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    layers = config["per_layer_config"]
    own = layers["1"] if isinstance(layers, dict) else layers[1]
    own["num_attention_heads"] = 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="3 attention heads in 2 groups"):
        seap.load(str(tmp_path), device="cpu")


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "phi3", "qwen2", "gemma2"])
def test_a_stock_class_holds_it_padded(name: str, tmp_path: Path) -> None:
    dense = built(name)
    cut_(dense, some_masks(describe(dense)))
    stock, _ = stock_model(dense, pad=True)
    stock.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again).__module__.startswith("transformers.models")
    torch.testing.assert_close(again(ids()).logits, dense(ids()).logits, atol=1e-5, rtol=0)


@torch.no_grad()
def test_one_number_of_query_heads_in_all_layers_is_a_stock_model(tmp_path: Path) -> None:
    dense = built("qwen2", num_hidden_layers=4)
    masks = {axis.key: torch.ones(axis.units, dtype=torch.bool) for axis in describe(dense).axes}
    for layer in range(4):
        masks[f"layers.{layer}.query_heads"] = (
            torch.tensor([[1, 0, 0, 1], [0, 1, 1, 0]]).roll(layer, 1).bool().flatten()
        )
    cut_(dense, masks)
    stock, _ = stock_model(dense, pad=False)
    assert stock.config.num_attention_heads == 4 and stock.config.num_key_value_heads == 2
    stock.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(again(ids()).logits, dense(ids()).logits, atol=1e-6, rtol=0)


def test_layers_of_different_query_heads_are_no_uniform_model() -> None:
    dense = built("llama")
    cut_(dense, some_masks(describe(dense)))
    with pytest.raises(UserError, match="2 to 4 query heads"):
        stock_model(dense, pad=False)


@torch.no_grad()
@pytest.mark.parametrize("name", CUTTABLE)
@pytest.mark.parametrize("min_slice_bytes", [1 << 20, 0])
def test_one_model_in_memory_switches_between_numbers_of_query_heads(name: str, min_slice_bytes: int) -> None:
    """Two tasks of different numbers, one with repairs, beside the dense model: what surgery makes of each."""
    dense = built(name)
    first, second = (some_masks(describe(dense), seed) for seed in (0, 1))
    repairs = biases(describe(dense), second)
    expected = {"dense": dense} | {task: copy.deepcopy(dense) for task in ("first", "second")}
    cut_(expected["first"], first)
    cut_(expected["second"], second, repairs)
    runtime = seap.TaskRuntime(
        copy.deepcopy(dense),
        {"first": first, "second": second},
        repairs={"second": repairs},
        min_slice_bytes=min_slice_bytes,
    )
    for task in ("first", "second", "dense", "first"):
        with runtime.task(task) as current:
            torch.testing.assert_close(logits(current, ids()), logits(expected[task], ids()), atol=2e-5, rtol=0)
            assert torch.equal(greedy(current, ids()), greedy(expected[task], ids())), task
        sparsity = 0 if task == "dense" else realised_sparsity(describe(dense), runtime.masks(task))
        assert runtime.weights_at_work(task) == pytest.approx(1 - sparsity)


@pytest.mark.parametrize("name", ["llama", "phi3", "gpt_oss"])
def test_a_network_of_fewer_query_heads_is_packed_from_its_checkpoint(name: str, tmp_path: Path) -> None:
    """With weights of its own, and as a correction that owns a part of them."""
    dense = built(name)
    masks = some_masks(describe(dense))
    made = copy.deepcopy(dense)
    cut_(made, masks, biases(describe(dense), masks))
    with torch.no_grad():
        describe(made).consumer(describe(made).layer_axes(1)[0]).weight.mul_(1.1)
    network = network_between(dense, made, masks)
    save_network(tmp_path / "one.safetensors", network, {"task": "one"})
    check_network(tmp_path / "one.safetensors", describe(dense), load_network(tmp_path / "one.safetensors"))
    with seap.TaskRuntime(copy.deepcopy(dense), {"one": load_network(tmp_path / "one.safetensors")}).task("one") as now:
        torch.testing.assert_close(logits(now, ids()), logits(made, ids()), atol=2e-5, rtol=0)
    rows = [tuple(row.tolist()) for row in ids(rows=4)]
    shared = share_weights(dense, made, network, rows, share=1.0, batch_tokens=64, progress=False)
    with seap.TaskRuntime(copy.deepcopy(dense), {"one": shared}).task("one") as now:
        torch.testing.assert_close(logits(now, ids()), logits(made, ids()), atol=1e-3, rtol=0)


def test_gguf_has_the_head_counts_of_every_layer(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason='needs pip install "seap[gguf]"')
    from seap.exports.gguf_file import write_gguf
    from seap.exports.gguf_vocabulary import Vocabulary

    _, sliced, _ = cut("llama", num_hidden_layers=4)
    write_gguf(sliced, Vocabulary("none"), tmp_path / "cut.gguf", Export(quantize="f32"))
    fields = gguf.GGUFReader(tmp_path / "cut.gguf").fields
    assert query_heads(sliced.config) == HEADS
    heads, groups = (fields[f"deci.attention.head_count{end}"].contents() for end in ("", "_kv"))
    assert groups == [1, 2, 1, 2] and heads == [count * own for count, own in zip(groups, HEADS, strict=True)]
