"""The whole way in memory: presets, seeds, compensation, notes, and what is refused before anything changes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import ids, model
from toy import TEXTS, tokenizer
from transformers import AutoModelForCausalLM

import seap
from seap.activations.calibration import calibrate
from seap.activations.stats import merge
from seap.compensation.compensate import kept_inputs, repair_axes
from seap.errors import UserError
from seap.methods import METHODS
from seap.models.arch import describe
from seap.pruning.prune import make_masks
from seap.selection.mask import choose_units, compose, realised_sparsity
from seap.selection.mixture import combine_scores
from seap.selection.options import Pruning
from seap.text.corpus import build_corpus
from seap.text.options import Calibration

QUICK: dict[str, Any] = {"min_channels": 4, "progress": False}
TASK = {"toy": TEXTS}
TWO = {"first": TEXTS[:20], "second": TEXTS[20:]}


def pruned(name: str = "llama", task: Any = None, **options: Any) -> tuple[Any, Any]:
    dense = model(name)
    return dense, seap.prune(dense, tokenizer(), task=task or TASK, **(QUICK | options))


IN_LAYERS = {"shortgpt"}  # whose sparsity comes in whole layers: tests/pruning/test_whole_layers.py
CHANNELS_ALONE = {"modegpt-mlp"}  # of which this llama's are 38%


@pytest.mark.parametrize(
    ("method", "sparsity"),
    [
        *((method, 0.2) for method in sorted(METHODS.keys() - {"seap-reference", *IN_LAYERS})),
        *((method, 0.5) for method in sorted(METHODS.keys() - {"seap-reference", *IN_LAYERS, *CHANNELS_ALONE})),
    ],
)
def test_every_method_removes_what_was_asked(method: str, sparsity: float) -> None:
    dense, report = pruned(method=method, sparsity=sparsity)
    unit = max(axis.unit_params for axis in describe(dense).axes if axis.name == "channels")
    prunable = describe(model()).prunable_params
    assert abs(report.realised_sparsity - sparsity) * prunable <= unit
    # this llama has biases everywhere, so compensation adds no parameters
    assert report.params_before - report.params_after == round(report.realised_sparsity * prunable)
    assert report.params_after == sum(p.numel() for p in dense.parameters())
    assert report.layers == [
        {"kv_groups": layer.self_attn.k_proj.out_features // 8, "channels": layer.mlp.down_proj.in_features}
        for layer in dense.model.layers
    ]
    assert torch.isfinite(dense(ids()).logits).all()


@pytest.mark.parametrize("name", ["qwen2", "gemma2", "phi3", "gpt2", "gpt_neox", "opt"])
@pytest.mark.parametrize("method", ["llm-pruner", "obs", "modegpt-mlp"])
def test_rivals_on_families_that_differ(name: str, method: str, tmp_path: Path) -> None:
    dense, report = pruned(name, method=method, sparsity=0.1)
    unit = max(axis.unit_params for axis in describe(dense).axes if axis.name == "channels")
    assert abs(report.realised_sparsity - 0.1) * describe(model(name)).prunable_params <= unit
    if method == "modegpt-mlp":
        assert all(layer.get("kv_groups", 4) == 4 for layer in report.layers)
    dense.save_pretrained(tmp_path / "small")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "small").eval()
    with torch.no_grad():
        assert torch.equal(loaded(ids()).logits, dense(ids()).logits)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_same_seed_gives_the_same_weights_bit_for_bit(method: str) -> None:
    sparsity = 0.2 if method in CHANNELS_ALONE else 0.5
    (first, _), (second, _) = (pruned(method=method, sparsity=sparsity) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_sparsity_zero_changes_nothing() -> None:
    dense, report = pruned(sparsity=0)
    assert report.realised_sparsity == report.total_sparsity == 0
    assert torch.equal(dense(ids()).logits, model()(ids()).logits)


def test_the_best_units_stay_and_ties_go_to_the_first() -> None:
    arch = describe(model("llama"))
    axis = arch.axes[1]
    scores = {a.key: torch.zeros(a.num_inputs, dtype=torch.float64) for a in arch.axes}
    scores[axis.key][[3, 7]] = torch.tensor([1.0, 2.0], dtype=torch.float64)
    mask = choose_units(arch.axes, scores, {axis.key: 4})[axis.key]
    assert mask.nonzero().flatten().tolist() == [0, 1, 3, 7]


def test_a_kv_group_goes_with_all_its_query_heads() -> None:
    """Trap: with GQA the published code leaves attention unpruned, or cuts only o_proj."""
    dense, report = pruned(sparsity=0.5)
    for layer, widths in zip(dense.model.layers, report.layers, strict=True):
        attention = layer.self_attn
        rows = [m.out_features for m in (attention.q_proj, attention.k_proj, attention.v_proj)]
        assert rows == [16 * widths["kv_groups"], 8 * widths["kv_groups"], 8 * widths["kv_groups"]]
        assert attention.o_proj.in_features == 16 * widths["kv_groups"]
        assert [m.bias.numel() for m in (attention.q_proj, attention.k_proj, attention.v_proj)] == rows
    assert any(widths["kv_groups"] < 4 for widths in report.layers)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "phi3"])
def test_bias_carries_the_mean_of_what_was_removed(name: str) -> None:
    """The output of every consumer keeps its mean over the calibration tokens, existing biases included."""
    dense = model(name)
    data = build_corpus("toy", TEXTS, tokenizer(), Calibration(), source="test", seq_len=64)
    arch = describe(dense)
    statistics = calibrate(dense, data, Calibration(), progress=False)
    masks, _ = make_masks(dense, {"toy": statistics}, Pruning(sparsity=0.3, min_channels=4))
    repairs = repair_axes(arch, masks, statistics, "bias")
    for axis in arch.axes:
        gone = ~kept_inputs(axis, masks[axis.key])
        weight, mean = arch.weight(axis.layer, axis.consumer).double(), statistics[axis.key].mean
        if not gone.any():
            assert axis.key not in repairs
            continue
        torch.testing.assert_close(weight[:, ~gone] @ mean[~gone] + repairs[axis.key].bias, weight @ mean)
        old = arch.consumer(axis).bias
        before = old.clone() if old is not None else torch.zeros_like(weight[:, 0].float())
        compensated = model(name)
        bias = {"compensate": "bias", "sequential": False}
        seap.prune(compensated, statistics={"toy": statistics}, masks=masks, **bias, **QUICK)
        found = describe(compensated).consumer(axis).bias
        torch.testing.assert_close(found, before + repairs[axis.key].bias.float(), atol=1e-6, rtol=1e-5)


def mlp_inputs(dense: Any, rows: Any) -> torch.Tensor:
    """What the first layer's MLP reads: (N, D)."""
    seen: list[torch.Tensor] = []
    handle = dense.model.layers[0].mlp.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0]))
    for row in rows:
        dense(torch.tensor([row]))
    handle.remove()
    return torch.cat(seen)


def test_bias_brings_the_output_nearer_on_the_calibration_text() -> None:
    outputs = {}
    data = build_corpus("toy", TEXTS, tokenizer(), Calibration(), source="test", seq_len=64)
    with torch.no_grad():
        for kind in ("none", "bias"):
            dense = model("llama")
            layer = dense.model.layers[0].mlp
            inputs = mlp_inputs(dense, data.rows)
            expected = layer(inputs)
            statistics = {"toy": calibrate(dense, data, Calibration(), progress=False)}
            options = {"axes": ("channels",), "sparsity": 0.3, "compensate": kind}
            seap.prune(dense, statistics=statistics, **(QUICK | options))
            outputs[kind] = (layer(inputs) - expected).square().mean()
    assert outputs["bias"] < outputs["none"]


def test_protected_and_rounded_layers_are_as_asked() -> None:
    _, report = pruned(sparsity=0.3, protect_first=1, round_to=8)
    assert report.layers[0] == {"kv_groups": 4, "channels": 40}
    assert all(layer["channels"] % 8 == 0 for layer in report.layers)


def test_general_masks_serve_several_tasks() -> None:
    _, report = pruned(task=TWO, method="seap-gen", weights={"first": 3, "second": 2})
    assert report.tasks == ("first", "second")
    with pytest.raises(UserError, match="a task mask is of one task, got first, second; use --method seap-gen"):
        pruned(task=TWO, method="seap")
    with pytest.raises(UserError, match="--weights names third, the tasks are first, second"):
        pruned(task=TWO, method="seap-gen", weights={"third": 1})


def test_pooled_methods_see_all_text_as_one() -> None:
    dense = model("llama")
    statistics = seap.calibrate(dense, tokenizer(), TWO, progress=False)
    arch, options = describe(dense), Pruning(method="flap")
    pooled = combine_scores(arch, options.resolved(), statistics, options, 0)
    one = combine_scores(arch, options.resolved(), {"all": merge(statistics.values())}, options, 0)
    assert all(torch.equal(pooled[key], one[key]) for key in one)


def test_masks_compose_when_a_pruned_model_is_pruned_again() -> None:
    dense = model("llama")
    first = seap.prune(dense, tokenizer(), task=TASK, sparsity=0.3, **QUICK)
    second = seap.prune(dense, tokenizer(), task=TASK, sparsity=0.3, **QUICK)
    assert any("already pruned" in note for note in second.notes)
    whole = compose(first.masks, second.masks)
    assert realised_sparsity(describe(model("llama")), whole) == pytest.approx(1 - 0.7 * 0.7, abs=0.02)
    for axis in describe(dense).axes:
        assert int(whole[axis.key].sum()) == axis.units


def test_methods_of_weights_alone_need_no_text() -> None:
    dense = model("llama")
    report = seap.prune(dense, method="magnitude", **QUICK)
    assert report.num_tokens == 0 and report.tasks == ()
    _, noted = pruned(method="random")
    assert any("text was not used" in note for note in noted.notes)


def test_options_without_effect_are_said() -> None:
    _, report = pruned(allocate="uniform", logistic_k=3.0)
    assert "--logistic-k has no effect with these choices" in report.notes


def test_heads_that_stay_are_said() -> None:
    _, report = pruned("olmo2", sparsity=0.2)
    assert any("the heads of olmo2 stay, its q/k norm spans all heads" in note for note in report.notes)
    assert all("kv_groups" not in layer for layer in report.layers)


def test_unknown_families_list_the_known_ones() -> None:
    from transformers import BloomConfig, BloomForCausalLM

    bloom = BloomForCausalLM(BloomConfig(vocab_size=50, hidden_size=16, n_layer=1, n_head=2))
    with pytest.raises(UserError, match=r"unknown model family 'bloom'; known: .*gemma2, .*docs/adding_a_model\.md"):
        seap.prune(bloom, tokenizer(), task=TASK)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 1.0}, "--sparsity 1.0: must be at least 0 and below 1"),
        ({"sparsity": -0.1}, "--sparsity -0.1"),
        ({"sparsity": float("nan")}, "--sparsity nan"),
        ({"method": "seab"}, "unknown method 'seab'; did you mean 'seap'"),
        ({"score": "wifx"}, "unknown score 'wifx'; did you mean 'wifv'"),
        ({"round_to": -1}, "--round-to -1: must be at least 0"),
        ({"num_texts": 0}, "--num-texts 0"),
        ({"seq_len": 1}, "--seq-len 1"),
        ({"weights": {"toy": -1.0}}, "--weights.toy -1.0"),
        ({"sparsity": 0.9, "min_channels": 32}, "sparsity 0.9 can't be met"),
        ({"task": {"toy": ["w3"]}}, "none of 1 texts has two tokens"),
    ],
)
def test_bad_options_are_refused_before_the_model_changes(options: dict[str, Any], message: str) -> None:
    dense = model("llama")
    with pytest.raises(UserError, match=message):
        seap.prune(dense, tokenizer(), **({"task": TASK} | QUICK | options))
    assert torch.equal(dense(ids()).logits, model("llama")(ids()).logits)
    assert not hasattr(dense.config, "seap")


def test_unknown_keywords_are_refused() -> None:
    with pytest.raises(TypeError, match=r"unknown options \['sparsety'\]"):
        seap.prune(model("llama"), tokenizer(), task=TASK, sparsety=0.5)


def test_a_run_that_needs_text_says_so() -> None:
    with pytest.raises(UserError, match="give a tokenizer and a task"):
        seap.prune(model("llama"), tokenizer())


def test_frozen_options_can_be_varied() -> None:
    assert replace(Pruning(), method="flap").resolved() == METHODS["flap"]
    with pytest.raises(UserError, match="unknown allocate"):
        replace(Pruning(), allocate="flat")  # type: ignore[arg-type]
