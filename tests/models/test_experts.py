"""Mixtures of experts: how they are used, which ones go, what is measured of them, and what compensates."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import MOE, ids, model
from toy import TEXTS, tokenizer
from transformers import AutoModelForCausalLM

import seap
from seap.activations.calibration import calibrate
from seap.activations.moments import Moments
from seap.activations.stats import Statistics, load_statistics, merge, save_statistics
from seap.compensation.compensate import FEW_TOKENS, fitting, kept_inputs, output_error, repair_axes, weight_of
from seap.errors import UserError
from seap.exports.stock import stock_model
from seap.models.arch import Arch, describe
from seap.models.axes import Axis
from seap.page.describe import describe as inspected
from seap.pruning.prune import make_masks
from seap.pruning.surgery import cut_
from seap.scoring.score import score_inputs
from seap.selection.damage import simulated
from seap.selection.mask import check_fits, choose_units, compose, kept_experts, realised_sparsity
from seap.selection.options import Pruning
from seap.selection.usage import Usage, keep_experts
from seap.text.corpus import Corpus
from seap.text.options import Calibration

ROWS = tuple(tuple(row) for row in ids(40, 9).tolist())
DATA = Corpus("toy", ROWS, "test")
OPTIONS = Calibration(second_moments=True, batch_tokens=50)
FEW: dict[str, Any] = {"min_channels": 2, "progress": False}
MEASURED: dict[str, Statistics] = {}


def measured(name: str) -> Statistics:
    if name not in MEASURED:
        MEASURED[name] = calibrate(model(name), DATA, OPTIONS, progress=False)
    return MEASURED[name]


def of_experts(arch: Arch) -> list[Axis]:
    return [axis for axis in arch.axes if axis.usage_key]


@torch.no_grad()
def one_by_one(dense: Any, axis: Axis) -> tuple[torch.Tensor, torch.Tensor]:
    """By the definition, row by row and expert by expert: p·h of all experts (N, E·U), and p·‖output‖ (N, E)."""
    experts = describe(dense).experts_of(axis)
    seen: list[tuple[torch.Tensor, ...]] = []
    handle = experts.module.register_forward_pre_hook(lambda _, args: seen.append(args))
    for row in ROWS:
        dense(torch.tensor([row]))
    handle.remove()
    hidden, chosen, weights = (torch.cat(parts) for parts in zip(*seen, strict=True))
    p = torch.zeros(len(hidden), axis.experts).scatter_(1, chosen, weights)
    up = dict(experts.layer.named_parameters())
    layout, inputs, strength = experts.layout, [], []
    for e in range(axis.experts):
        first, last = experts.matrix(layout.up, e), experts.matrix(layout.down, e)
        added = [up[name][e] if name else 0 for name in (layout.up_bias, layout.down_bias)]
        gated = experts.module._apply_gate if experts.module.has_gate else experts.module.act_fn
        h = gated(hidden @ first.t() + added[0])
        inputs.append(p[:, e, None] * h)
        strength.append(p[:, e] * (h @ last.t() + added[1]).norm(dim=1))
    return torch.cat(inputs, 1).double(), torch.stack(strength, 1).double()


def test_the_score_is_that_of_reap_by_hand() -> None:
    # three tokens, two experts: chosen or not, then router's weight times the norm of the output
    usage = Usage.of(Moments.of(torch.tensor([[1, 0, 2.0, 0.0], [1, 1, 4.0, 6.0], [0, 0, 0.0, 0.0]])).mean)
    torch.testing.assert_close(usage.share, torch.tensor([2 / 3, 1 / 3], dtype=torch.float64))
    torch.testing.assert_close(usage.added, torch.tensor([2.0, 2.0], dtype=torch.float64))
    torch.testing.assert_close(usage.reap, torch.tensor([3.0, 6.0], dtype=torch.float64))
    unused = Usage.of(torch.tensor([1, 0, 2.0, 0.0]))
    assert unused.reap.tolist() == [2.0, 0.0]


@pytest.mark.parametrize("name", sorted(MOE))
def test_statistics_are_those_of_the_experts(name: str) -> None:
    dense, found = model(name), measured(name)
    for axis in of_experts(describe(dense)):
        inputs, strength = one_by_one(dense, axis)
        usage, moments = found[axis.usage_key], found[axis.key]
        assert usage.count == moments.count == DATA.num_tokens == len(inputs)
        expected = torch.cat([(strength > 0).double(), strength], 1)
        torch.testing.assert_close(usage.mean, expected.mean(0), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(moments.mean, inputs.mean(0), atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(moments.variance, inputs.var(0), atol=1e-6, rtol=1e-4)
        assert moments.co is not None and moments.num_blocks == axis.experts
        for own, block in zip(inputs.split(axis.units, 1), moments.co, strict=True):
            torch.testing.assert_close(block / (len(inputs) - 1), torch.cov(own.t()), atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("name", ["qwen2_moe", "gpt_oss"])
def test_batches_parts_and_files_change_nothing(name: str, tmp_path: Path) -> None:
    dense, whole = model(name), measured(name)
    first, second = (replace(DATA, rows=part) for part in (ROWS[:15], ROWS[15:]))
    parts = [calibrate(dense, part, replace(OPTIONS, batch_tokens=1), progress=False) for part in (first, second)]
    save_statistics(tmp_path / "stats.safetensors", whole, {"task": "toy"})
    stored, _ = load_statistics(tmp_path / "stats.safetensors")
    assert stored.keys() == whole.keys() == describe(dense).measured(()).keys() and stored.has_second_moments
    for key, moments in merge(parts).items():
        assert moments.count == whole[key].count
        torch.testing.assert_close(moments.mean, whole[key].mean, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(moments.m2, whole[key].m2, atol=1e-5, rtol=1e-4)
        assert torch.equal(stored[key].mean, whole[key].mean) and torch.equal(stored[key].m2, whole[key].m2)
    quick = calibrate(dense, DATA, Calibration(batch_tokens=30), progress=False)
    for key, moments in quick.items():
        torch.testing.assert_close(moments.m2, whole[key].m2, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", sorted(MOE))
@pytest.mark.parametrize("experts", [3, "auto", "keep"])
def test_the_target_is_met_within_one_unit(name: str, experts: Any) -> None:
    dense = model(name)
    arch = describe(dense)
    for method in ("wanda-sp", "seap-paper", "flap"):
        options = Pruning(method=method, sparsity=0.5, experts=experts, min_channels=2)
        masks, _ = make_masks(dense, {"toy": measured(name)}, options)
        check_fits(arch, masks)
        unit = max(axis.unit_params for axis in arch.axes)
        assert abs(realised_sparsity(arch, masks) - 0.5) * arch.prunable_params <= unit
        if experts != "auto":
            counts = {len(kept_experts(axis, masks[axis.key])) for axis in of_experts(arch)}
            assert counts == ({3} if experts == 3 else {of_experts(arch)[0].experts})


@pytest.mark.parametrize("name", sorted(MOE))
@pytest.mark.parametrize("method", ["seap", "seap-paper", "flap", "magnitude", "random"])
def test_every_family_is_pruned_saved_and_loaded(name: str, method: str, tmp_path: Path) -> None:
    dense = model(name)
    before = dict(describe(dense).measured(()))
    given: dict[str, Any] = {} if method in ("magnitude", "random") else {"statistics": {"toy": measured(name)}}
    few = {"search_evaluations": 3, "probe_tokens": 30, "fisher_tokens": 60}
    report = seap.prune(dense, method=method, sparsity=0.5, experts=3, **given, **few, **FEW)
    assert all(layer["experts"] == 3 for layer in report.layers if "experts" in layer)
    assert describe(dense).measured(()) != before
    with torch.no_grad():
        logits = dense(ids()).logits
        assert torch.isfinite(logits).all()
        dense.save_pretrained(tmp_path)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
        assert torch.equal(loaded(ids()).logits, logits)
    seen = describe(loaded)
    fewer = [seen.experts_of(axis).module.num_experts for axis in of_experts(seen)]
    assert fewer == [3] * len(fewer) and "added_bias" in loaded.config.seap
    assert not any("expert" in path for path in loaded.config.seap["added_bias"] if "shared" not in path)


def test_inspect_says_how_experts_are_used(tmp_path: Path) -> None:
    save_statistics(tmp_path / "stats.safetensors", measured("mixtral"), {"task": "toy"})
    found = inspected(str(tmp_path / "stats.safetensors"))
    use = found["experts"]["layers.1.experts"]
    assert sum(use["share"]) == pytest.approx(2) and len(use["reap"]) == 5  # every token goes to two
    assert found["layers"][1]["experts"].startswith("5, by ")


def by_hand(axis: Axis, added: list[float]) -> dict[str, Moments]:
    """Statistics of experts that every token is routed to, with these strengths."""
    return {axis.usage_key: Moments.of(torch.tensor([[1.0] * len(added) + added] * 2))}


def test_auto_drops_the_hardly_used_but_neither_too_many_nor_more_than_asked() -> None:
    arch = describe(model("qwen3_moe", num_hidden_layers=1))
    [axis] = of_experts(arch)

    def kept(added: list[float], sparsity: float, **changes: Any) -> tuple[int, ...] | None:
        options = Pruning(sparsity=sparsity, min_channels=2, **changes)
        return next(a for a in keep_experts(arch, options, {}, by_hand(axis, added)) if a.usage_key).kept

    assert kept([1, 1, 0.01, 1, 1, 0.02], 0.5) == (0, 1, 3, 4)
    assert kept([1, 1, 0.2, 1, 1, 0.2], 0.5) is None  # 0.27 of the mean
    assert kept([0, 0, 0, 0, 0, 1], 0.25) == (2, 3, 4, 5)
    assert kept([0, 0, 0, 0, 0, 1], 0.9) == (4, 5)  # the router needs two
    one = axis.units * axis.entry_params / arch.prunable_params
    assert kept([1, 1, 0.01, 1, 1, 0.02], one * 1.5) == (0, 1, 3, 4, 5)
    assert kept([1, 1, 0.01, 1, 1, 0.02], one / 2) is None
    assert kept([1, 1, 0, 1, 1, 0], 0.5, experts="keep") is None
    assert kept([1, 1, 0, 1, 1, 0], 0.5, axes=("kv_groups",)) is None
    assert kept([1, 1, 0, 1, 1, 0], 0.5, protect_first=1) is None
    assert kept([3, 1, 4, 1, 5, 9], 0.5, experts=3) == (2, 4, 5)


def test_the_best_channels_of_every_expert_stay() -> None:
    arch = describe(model("mixtral"))
    axis = of_experts(arch)[0].with_experts((0, 2, 3))
    scores = {axis.key: torch.arange(axis.entries, dtype=torch.float64)}
    mask = choose_units([axis], scores, {axis.key: 2})[axis.key].view(5, 40)
    assert mask.nonzero().tolist() == [[0, 38], [0, 39], [2, 38], [2, 39], [3, 38], [3, 39]]


@pytest.mark.parametrize("name", sorted(MOE))
def test_what_is_simulated_is_what_is_cut(name: str) -> None:
    dense = model(name)
    arch = describe(dense)
    masks = {axis.key: torch.ones(axis.entries, dtype=torch.bool) for axis in arch.axes}
    axis = of_experts(arch)[-1]
    chosen = masks[axis.key].view(axis.experts, axis.units)
    chosen[1], chosen[0, ::2], chosen[2:, 1::2] = False, False, False
    with torch.no_grad():
        before = dense(ids()).logits
        with simulated(arch, axis, kept_inputs(axis, masks[axis.key]), None):
            expected = dense(ids()).logits
        assert torch.equal(dense(ids()).logits, before) and not torch.allclose(before, expected, atol=1e-3)
        cut_(dense, masks)
        torch.testing.assert_close(dense(ids()).logits, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", sorted(MOE))
def test_compensation_never_makes_an_expert_worse_on_the_calibration_text(name: str) -> None:
    dense, statistics = model(name), measured(name)
    arch = describe(dense)
    masks, _ = make_masks(dense, {"toy": statistics}, Pruning(method="wanda-sp", sparsity=0.4, min_channels=2))
    repairs = repair_axes(arch, masks, statistics, "ridge")
    better = 0
    for axis in of_experts(arch):
        weight, repair = weight_of(arch, axis).double(), repairs[axis.key]
        moments, keep = fitting(axis, statistics), masks[axis.key]
        assert repair.weight is not None and not repair.bias.any()
        width, start = int(keep.sum()) // len(kept_experts(axis, keep)), 0
        tokens = statistics[axis.usage_key].mean[: axis.experts] * DATA.num_tokens
        columns = zip(weight.split(axis.units, 1), moments.split(axis.experts), keep.split(axis.units), strict=True)
        for expert, (part, own, kept) in enumerate(columns):
            if not kept.any():
                continue
            fitted = repair.weight[:, start : start + width]
            start += width
            left = [output_error(part, own, kept, replace(repair, weight=w)) for w in (part[:, kept], fitted)]
            assert left[1] <= left[0] * (1 + 1e-9)
            if tokens[expert] < FEW_TOKENS:
                assert torch.equal(fitted, part[:, kept])
            better += left[1] < left[0]
    assert better


def test_an_expert_that_saw_few_tokens_is_left_alone() -> None:
    dense = model("mixtral")
    arch = describe(dense)
    few = calibrate(dense, replace(DATA, rows=ROWS[:3]), OPTIONS, progress=False)
    masks, _ = make_masks(dense, {"toy": few}, Pruning(method="wanda-sp", sparsity=0.4, experts="keep", min_channels=2))
    for axis in of_experts(arch):
        repair = repair_axes(arch, masks, few, "ridge")[axis.key]
        assert repair.weight is not None and repair.about == "0 experts refitted"
        assert torch.equal(repair.weight, weight_of(arch, axis)[:, masks[axis.key]])


def test_bias_compensation_leaves_experts_alone_and_says_so() -> None:
    dense = model("mixtral")
    report = seap.prune(dense, statistics={"toy": measured("mixtral")}, method="flap", **FEW)
    assert any("experts have no bias" in note for note in report.notes)
    assert list(dense.config.seap["added_bias"]) == ["self_attn.o_proj"]


def test_masks_compose_when_a_pruned_model_is_pruned_again() -> None:
    dense = model("qwen2_moe")
    first = seap.prune(dense, tokenizer(), task={"toy": TEXTS}, method="seap-paper", sparsity=0.3, experts=4, **FEW)
    second = seap.prune(dense, tokenizer(), task={"toy": TEXTS}, method="seap-paper", sparsity=0.3, experts=3, **FEW)
    original = model("qwen2_moe")
    whole = compose(first.masks, second.masks)
    cut_(original, whole)
    with torch.no_grad():
        torch.testing.assert_close(original(ids()).logits, dense(ids()).logits, atol=1e-5, rtol=1e-4)


def test_magnitude_ranks_experts_by_their_weights() -> None:
    dense = model("mixtral")
    with torch.no_grad():
        dense.model.layers[0].mlp.experts.down_proj[[1, 3]] *= 1e-3
    arch = describe(dense)
    axes = keep_experts(arch, Pruning(experts=3, min_channels=2), score_inputs(arch, None, "magnitude"))
    assert next(axis for axis in axes if axis.usage_key).kept == (0, 2, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"experts": 1},
            r"layer 0 experts: 1 of 5 would stay, but the router sends every token to 2; keep from 2 to 5",
        ),
        ({"experts": 9}, r"layer 0 experts: 9 of 5 would stay"),
        ({"experts": 0}, r"--experts 0: must be at least 1"),
        ({"experts": "some"}, r"--experts some: must be a number of experts, auto or keep"),
        ({"experts": 2, "sparsity": 0.2}, r"--experts 2 alone removes 0\.\d+ .*more than --sparsity 0\.2"),
        ({"experts": 3, "axes": ("kv_groups",)}, r"add expert_channels to --axes"),
        ({"axes": ("channels",)}, r"--axes channels: this model has none, only kv_groups, expert_channels"),
        ({"round_to": 0}, r"--round-to auto doesn't know mixtures of experts such as mixtral yet"),
        ({"allocate": "damage", "cost": "milliseconds"}, r"--cost milliseconds doesn't know mixtures"),
    ],
)
def test_what_can_not_be_is_refused_before_any_work(options: dict[str, Any], message: str) -> None:
    dense = model("mixtral")
    with pytest.raises(UserError, match=message):
        seap.prune(dense, tokenizer(), task={"toy": TEXTS}, method="seap-paper", **(FEW | options))
    assert not hasattr(dense.config, "seap")


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "olmoe", "gpt_oss"])  # experts in all layers, no other MLP
def test_one_width_for_all_layers_is_a_stock_model(name: str, tmp_path: Path) -> None:
    dense = model(name)
    statistics = {"toy": measured(name)}
    few = FEW | {"method": "seap-paper", "sparsity": 0.4, "round_to": 8}
    report = seap.prune(dense, statistics=statistics, allocate="one-width", experts=4, **few)
    assert all(layer == report.layers[0] for layer in report.layers) and report.layers[0]["experts"] == 4
    stock, _ = stock_model(dense, pad=False)
    assert type(stock) is type(model(name))
    stock.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(ids()).logits, dense(ids()).logits)
    with pytest.raises(UserError, match="--to padded doesn't know mixtures of experts"):
        stock_model(dense, pad=True)
    differing = model(name)
    seap.prune(differing, statistics=statistics, **few)
    with pytest.raises(UserError, match="the layers keep"):
        stock_model(differing, pad=False)


def test_one_width_of_several_kinds_of_channels_is_refused() -> None:
    with pytest.raises(UserError, match="doesn't know layers with channels and expert_channels yet"):
        seap.prune(model("qwen2_moe"), method="magnitude", allocate="one-width", **FEW)


def test_masks_that_the_router_or_the_fused_tensors_can_not_follow_are_refused() -> None:
    arch = describe(model("mixtral"))
    masks = {axis.key: torch.ones(axis.entries, dtype=torch.bool) for axis in arch.axes}
    axis = of_experts(arch)[1]
    masks[axis.key].view(5, 40)[1:] = False
    with pytest.raises(UserError, match="layer 1 experts: 1 of 5 would stay"):
        check_fits(arch, masks)
    masks[axis.key].view(5, 40)[2:4, :7] = True
    masks[axis.key].view(5, 40)[4, :8] = True
    with pytest.raises(UserError, match=r"keeps \[40, 0, 7, 7, 8\] channels of the experts"):
        check_fits(arch, masks)


def test_models_without_experts_say_that_the_option_does_nothing() -> None:
    report = seap.prune(model("llama"), method="magnitude", experts=3, **FEW)
    assert "--experts has no effect: this model has none" in report.notes
