"""The target is met within one unit, by every allocation, for every family; caps hold; impossible targets say why."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import ALL, EVERY, model

from seap.errors import UserError
from seap.models.arch import Arch, describe
from seap.models.axes import CHANNELS, KV_GROUPS, Axis
from seap.scoring.score import score_inputs
from seap.selection.allocate import allocate, layer_weights, reference_budgets, standardised
from seap.selection.budgets import least_kept, round_steps, water_fill
from seap.selection.mask import choose_units, realised_sparsity
from seap.selection.options import Pruning

TARGETS = [0, 0.01, 0.2, 0.5, 0.8, 0.9]
ARCHS: dict[str, Arch] = {}


def arch_of(name: str) -> Arch:
    if name not in ARCHS:
        ARCHS[name] = describe(model(name, num_hidden_layers=4))
    return ARCHS[name]


def realised(arch: Arch, options: Pruning) -> float:
    scores = score_inputs(arch, None, "random")
    return realised_sparsity(arch, choose_units(arch.axes, scores, allocate(arch, options, scores)))


@pytest.mark.parametrize("name", sorted(EVERY))
@pytest.mark.parametrize("method", ["uniform", "logistic", "adaptive"])
@pytest.mark.parametrize("target", TARGETS)
def test_the_target_is_met_within_one_unit(name: str, method: Any, target: float) -> None:
    arch = arch_of(name)
    options = Pruning(sparsity=target, allocate=method, min_channels=1)
    reachable = sum((axis.units - 1) * axis.unit_params for axis in arch.axes) / arch.prunable_params
    if target > reachable:
        with pytest.raises(UserError, match=r"can't be met: at most 0\.\d+ can be removed"):
            realised(arch, options)
        return
    unit = max(axis.unit_params for axis in arch.axes if axis.name != KV_GROUPS)
    found = realised(arch, options)
    assert abs(found - target) * arch.prunable_params <= unit
    if target == 0:
        assert found == 0


UNLIKE = {"gemma3n_text", "gemma4_text-shared"}  # whose MLPs aren't alike to begin with


@pytest.mark.parametrize("name", sorted(UNLIKE))
def test_one_width_of_layers_that_never_had_one_is_refused(name: str) -> None:
    options = Pruning(sparsity=0.2, allocate="one-width", min_channels=1)
    with pytest.raises(UserError, match=r"needs layers that are alike.*--allocate uniform"):
        allocate(arch_of(name), options, score_inputs(arch_of(name), None, "random"))


@pytest.mark.parametrize("name", sorted(ALL.keys() - UNLIKE))
@pytest.mark.parametrize("step", [1, 8])
def test_one_width_for_all_layers_meets_the_target_within_one_unit_of_each(name: str, step: int) -> None:
    arch = arch_of(name)
    channel = next(axis.unit_params for axis in arch.axes if axis.name == CHANNELS)
    first = {axis.name: axis.key for axis in reversed(arch.axes)}  # of the layers that have such an axis
    least = {axis.name: step if axis.name == CHANNELS else 1 for axis in arch.axes}
    most = sum((axis.units - least[axis.name]) * axis.unit_params for axis in arch.axes) / arch.prunable_params
    for target in [target for target in (0.1, 0.2, 0.3) if target <= most]:
        options = Pruning(sparsity=target, allocate="one-width", min_channels=1, round_to=step)
        scores = score_inputs(arch, None, "random")
        budgets = allocate(arch, options, scores)
        for axis in arch.axes:
            assert budgets[axis.key] == budgets[first[axis.name]]
            if axis.name == CHANNELS:
                assert budgets[axis.key] % step == 0 or budgets[axis.key] == axis.units
            else:
                heads = budgets[axis.key] * arch.queries_per_group
                assert arch.model.config.hidden_size % heads == 0 or budgets[axis.key] == axis.units
        assert abs(realised(arch, options) - target) * arch.prunable_params <= channel * step * len(arch.layers)
    with pytest.raises(UserError, match=r"one width|can't be met"):
        allocate(arch, Pruning(sparsity=0.1, allocate="one-width", axes=("channels",), round_to=999), scores)


@given(
    target=st.floats(0, 0.85),
    k=st.floats(-8, 8),
    x0=st.floats(0, 1),
    step=st.sampled_from([1, 4, 8, 16]),
    protect=st.tuples(st.integers(0, 1), st.integers(0, 1)),
)
@settings(max_examples=80, deadline=None)
def test_any_curve_protection_and_rounding(target: float, k: float, x0: float, step: int, protect: Any) -> None:
    arch = arch_of("llama")
    options = Pruning(
        sparsity=target,
        allocate="logistic",
        logistic_k=k,
        logistic_x0=x0,
        round_to=step,
        protect_first=protect[0],
        protect_last=protect[1],
        min_channels=1,
    )
    scores = score_inputs(arch, None, "random")
    try:
        budgets = allocate(arch, options, scores)
    except UserError:
        free = [axis for axis in arch.axes if protect[0] <= axis.layer < 4 - protect[1]]
        most = sum((axis.units - least_kept(axis, options)) * axis.unit_params for axis in free)
        assert target * arch.prunable_params > most
        return
    removed = sum((axis.units - budgets[axis.key]) * axis.unit_params for axis in arch.axes)
    unit = next(axis.unit_params for axis in arch.axes if axis.name == CHANNELS) * step
    assert abs(removed - target * arch.prunable_params) <= unit
    for axis in arch.axes:
        assert least_kept(axis, options) <= budgets[axis.key] <= axis.units
        if axis.name == CHANNELS:
            assert budgets[axis.key] % step == 0 or budgets[axis.key] == axis.units
        if axis.layer < protect[0] or axis.layer >= 4 - protect[1]:
            assert budgets[axis.key] == axis.units


def test_the_logistic_curve_is_the_papers() -> None:
    # L = 3, k = 1, x0 = 0.3: x = 0, 0.5, 1 → 1 / (1 + e^0.3), 1 / (1 + e^−0.2), 1 / (1 + e^−0.7)
    expected = [1 / (1 + math.exp(0.3)), 1 / (1 + math.exp(-0.2)), 1 / (1 + math.exp(-0.7))]
    assert layer_weights(3, Pruning(), "logistic") == pytest.approx(expected)
    assert layer_weights(3, Pruning(protect_first=1), "logistic")[0] == 0
    assert layer_weights(3, Pruning(), "uniform") == [1, 1, 1]


def test_protected_layers_count_in_the_sparsity() -> None:
    """Trap: the published code averages over unprotected layers only, so that its 50% removes less."""
    options = Pruning(sparsity=0.4, allocate="uniform", protect_first=1, protect_last=1, min_channels=1)
    arch = arch_of("llama")
    assert realised(arch, options) == pytest.approx(0.4, abs=1 / 160)


def test_water_filling_raises_the_others_when_one_is_full() -> None:
    """Trap: the published search for Λ saturates in silence."""
    # weights 1, 2, 1 of sizes 10: the second is full at 0.5; the others carry (15 − 5) / 20 = 0.5
    assert water_fill([1, 2, 1], [10, 10, 10], [0.9, 0.5, 0.9], 15) == pytest.approx([0.5, 0.5, 0.5])
    assert water_fill([1, 1], [10, 10], [0.9, 0.9], 100) == [0.9, 0.9]
    assert water_fill([1, 0], [10, 10], [0.9, 0.9], 5) == [0.5, 0]


@given(
    weights=st.lists(st.floats(0.01, 5), min_size=1, max_size=8),
    share=st.floats(0, 1),
    seed=st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_water_filling_meets_the_target_and_the_caps(weights: list[float], share: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    sizes = (1 + 9 * torch.rand(len(weights), generator=generator)).tolist()
    caps = torch.rand(len(weights), generator=generator).tolist()
    target = share * sum(size * cap for size, cap in zip(sizes, caps, strict=True))
    found = water_fill(weights, sizes, caps, target)
    assert sum(f * size for f, size in zip(found, sizes, strict=True)) == pytest.approx(target, abs=1e-6)
    assert all(0 <= f <= cap + 1e-9 for f, cap in zip(found, caps, strict=True))


def test_rounding_gives_the_largest_remainders_first() -> None:
    assert round_steps([1.2, 1.7, 1.1], [0, 0, 0], [3, 3, 3], 1, 4) == [1, 2, 1]
    assert round_steps([1.2, 1.7, 1.1], [0, 0, 0], [3, 3, 3], 1, 5) == [2, 2, 1]
    assert round_steps([30, 50], [0, 0], [70, 70], 32, 82) == [32, 64]  # 96 is as near to 82 as a step of 32 allows


def test_no_layer_loses_every_head() -> None:
    """Trap: the published 0.9 removes every head of a layer."""
    arch = arch_of("llama")
    budgets = allocate(arch, Pruning(sparsity=0.83, min_channels=1), score_inputs(arch, None, "random"))
    assert all(budgets[axis.key] >= 1 for axis in arch.axes)


def test_flaps_comparison_is_a_z_score_of_inputs_averaged_over_the_unit() -> None:
    """Trap: the published "AL" is median and IQR, clipped at 3, which isn't FLAP."""
    axis = Axis(layer=0, name=KV_GROUPS, units=2, unit_inputs=2, unit_params=1, slices=())
    inputs = torch.tensor([1.0, 3.0, 5.0, 111.0], dtype=torch.float64)
    z = (inputs - inputs.mean()) / inputs.std()
    assert standardised(axis, inputs).tolist() == pytest.approx([float(z[:2].mean()), float(z[2:].mean())])


def test_adaptive_takes_from_the_layers_that_matter_least() -> None:
    arch = arch_of("llama")
    scores = score_inputs(arch, None, "random")
    # layer 2's channels: a few tower over the rest, which are then far below the mean of the layer, near z = −0.3
    scores["layers.2.channels"] = torch.full((40,), 1.0, dtype=torch.float64)
    scores["layers.2.channels"][:4] = 100
    budgets = allocate(arch, Pruning(sparsity=0.3, allocate="adaptive", min_channels=1), scores)
    widths = [budgets[f"layers.{i}.channels"] for i in range(4)]
    assert len(set(widths)) > 1, "an adaptive allocation isn't uniform"


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("llama", {"sparsity": 0.9}, "every layer keeps at least 1 KV groups and 32 channels"),
        ("llama", {"sparsity": 0.8, "protect_first": 2, "min_channels": 1}, "2 first and 0 last layers are protected"),
        ("opt", {"sparsity": 0.9, "min_channels": 1}, "heads of opt can't be cut: its attention derives"),
        ("llama", {"sparsity": 0.9, "axes": ("channels",), "min_channels": 1}, "only channels are cut"),
        ("llama-mqa", {"sparsity": 0.9, "min_channels": 1}, "layer 0 kv_groups must keep 1 of 1"),
    ],
)
def test_impossible_targets_say_what_stands_in_the_way(name: str, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        realised(arch_of(name), replace(Pruning(), **changes))


def test_one_axis_alone() -> None:
    arch = arch_of("llama")
    scores = score_inputs(arch, None, "random")
    channels = allocate(arch, Pruning(sparsity=0.2, axes=("channels",), min_channels=1), scores)
    assert all(channels[a.key] == a.units for a in arch.axes if a.name == KV_GROUPS)
    heads = allocate(arch, Pruning(sparsity=0.2, axes=("kv_groups",)), scores)
    assert all(heads[a.key] == a.units for a in arch.axes if a.name == CHANNELS)
    assert sum(heads[a.key] for a in arch.axes if a.name == KV_GROUPS) < 16
    with pytest.raises(UserError, match="heads of olmo2 can't be cut: its q/k norm spans all heads"):
        allocate(arch_of("olmo2"), Pruning(axes=("kv_groups",)), scores)


def block(layer: int, groups: int, group_params: int, channels: int, hidden: int) -> list[Axis]:
    """One Llama layer's axes, without a model."""
    common: dict[str, Any] = {"layer": layer, "unit_inputs": 1, "slices": ()}
    return [
        Axis(name=KV_GROUPS, units=groups, unit_params=group_params, **common),
        Axis(name=CHANNELS, units=channels, unit_params=3 * hidden, **common),
    ]


@pytest.mark.parametrize(
    ("axes", "cut_heads", "expected"),
    [
        # Llama-2-7B: 32 heads of 4 · 128 · 4096 parameters, 11008 channels
        ([a for i in range(32) for a in block(i, 32, 4 * 128 * 4096, 11008, 4096)], True, 0.433),
        # Llama-3-8B: 8 KV groups of (2 · 4 + 2) · 128 · 4096, 14336 channels; GQA leaves the heads whole
        ([a for i in range(32) for a in block(i, 8, 10 * 128 * 4096, 14336, 4096)], False, 0.353),
    ],
)
def test_the_published_convention_removes_less_than_it_names(
    axes: list[Axis], cut_heads: bool, expected: float
) -> None:
    cut = [axis for axis in axes if cut_heads or axis.name == CHANNELS]
    budgets = reference_budgets(cut, 32, Pruning(sparsity=0.5))
    removed = sum((axis.units - budgets[axis.key]) * axis.unit_params for axis in cut)
    assert removed / sum(axis.params for axis in axes) == pytest.approx(expected, abs=5e-4)


def test_the_published_convention_is_a_named_option() -> None:
    arch = arch_of("llama")
    scores = score_inputs(arch, None, "random")
    options = Pruning(sparsity=0.5, sparsity_convention="seap-reference")
    budgets = allocate(arch, options, scores)
    assert all(budgets[axis.key] == axis.units for axis in arch.axes if axis.name == KV_GROUPS)
    assert realised(arch, options) < 0.45 and Pruning(method="seap-reference").resolved().convention == "seap-reference"


@given(
    axes=st.sampled_from([("kv_groups",), ("channels",), None]),
    method=st.sampled_from(["uniform", "logistic", "adaptive"]),
    target=st.floats(0.001, 0.8),
    step=st.sampled_from([1, 7, 8]),
    protect=st.integers(0, 2),
)
@settings(max_examples=150, deadline=None)
def test_any_choice_meets_the_target_or_says_why(
    axes: Any, method: Any, target: float, step: int, protect: int
) -> None:
    arch = arch_of("llama")
    own: dict[str, Any] = {"round_to": step, "protect_first": protect, "min_channels": 1}
    options = Pruning(sparsity=target, axes=axes, allocate=method, **own)
    try:
        found = realised(arch, options)
    except UserError as error:
        assert "can't be met" in str(error)
        return
    cut = [axis for axis in arch.axes if axes is None or axis.name in axes]
    unit = max(axis.unit_params * (1 if axis.name == KV_GROUPS else step) for axis in cut)
    assert abs(found - target) * arch.prunable_params <= unit


def test_heads_alone_are_cut_as_asked() -> None:
    arch = arch_of("llama")
    for target in (0.05, 0.11, 0.3):
        found = realised(arch, Pruning(sparsity=target, axes=("kv_groups",)))
        unit = next(axis.unit_params for axis in arch.axes if axis.name == KV_GROUPS)
        assert abs(found - target) * arch.prunable_params <= unit / 2


def test_extreme_curves_do_not_overflow() -> None:
    found = realised(arch_of("llama"), Pruning(sparsity=0.2, logistic_k=5000, min_channels=1))
    assert found == pytest.approx(0.2, abs=0.01)
    for bad in (math.nan, math.inf):
        with pytest.raises(UserError, match=r"--logistic-k .*: must be a finite number"):
            Pruning(logistic_k=bad)
