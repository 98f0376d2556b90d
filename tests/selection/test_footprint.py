"""What a whole model takes: bytes, memory, milliseconds; and budgets within it."""

from typing import Any

import pytest
import torch
from tiny import ALL, OTHER_CACHES, model

from seap.errors import UserError
from seap.models.arch import describe
from seap.models.blocks import cached_tokens
from seap.models.heads import size_of_key
from seap.scoring.score import score_inputs
from seap.selection.damage import Curve
from seap.selection.footprint import Footprint, Line, footprint_of, settled
from seap.selection.options import Pruning
from seap.selection.within import budgets_for, in_params

SMALL: dict[str, Any] = {"min_channels": 4}


@pytest.mark.parametrize("name", sorted(ALL.keys() - OTHER_CACHES))
def test_memory_is_weights_and_cache(name: str) -> None:
    """Counted by hand: two bytes a parameter, and two numbers a token, group and place of the head."""
    dense = model(name)
    arch = describe(dense)
    if any(axis.usage_key for axis in arch.axes):
        pytest.skip("experts are counted in bytes alone")
    options = Pruning(cost="memory", context=10, batch=3, **SMALL)
    found = footprint_of(dense, options, torch.bfloat16)
    groups = getattr(dense.config, "num_key_value_heads", None) or dense.config.num_attention_heads
    cached = sum(
        2 * groups * size_of_key(arch) * cached_tokens(dense.config, layer, 10) * 3 * 2
        for layer in range(len(arch.layers))
    )
    held = found.of({}) - cached
    weights = 2 * sum(p.numel() for p in dense.parameters())
    assert weights <= held < weights * 1.2 + 20_000 and found.dense == found.of({})


def test_a_sliding_window_bounds_the_cache() -> None:
    config: Any = model("gemma3_text").config
    kinds = {kind: cached_tokens(config, layer, 10) for layer, kind in enumerate(config.layer_types)}
    assert kinds == {"sliding_attention": 6, "full_attention": 10} or kinds == {"sliding_attention": 6}
    assert cached_tokens(model("mistral").config, 0, 10) == 6 and cached_tokens(model("llama").config, 0, 10) == 10


def test_a_line_counts_units_and_once_a_bias() -> None:
    assert Line(4, 10.0, bias=3.0).at([4, 2, 0]) == [40.0, 23.0, 3.0]


def test_a_target_is_a_share_of_what_the_dense_model_takes() -> None:
    whole = Footprint("bytes", 1000.0, 100.0, 300.0, {})
    assert settled(Pruning(target_size=400), whole).sparsity == pytest.approx(0.6)
    assert settled(Pruning(target_speed="1.6x"), whole).sparsity == pytest.approx(0.375)
    with pytest.raises(UserError, match=r"--target-size 2 kB: the model's weights take 1 kB already; ask for less"):
        settled(Pruning(target_size="2kB"), whole)


@pytest.mark.parametrize("allocate", ["uniform", "one-width", "logistic", "adaptive", "global", "damage"])
@pytest.mark.parametrize("cost", ["bytes", "memory"])
def test_every_allocation_fits_and_takes_no_unit_too_many(allocate: str, cost: str) -> None:
    """Within the target, and not by more than the steps that the allocation goes in."""
    dense = model("llama")
    arch = describe(dense)
    options = Pruning(allocate=allocate, cost=cost, sparsity=0.3, context=64, compensate="none", **SMALL)
    whole = footprint_of(dense, options)
    scores = score_inputs(arch, None, "random")
    curves = {
        a.key: Curve(tuple(range(1, a.units + 1)), tuple((a.units - w) ** 2.0 for w in range(1, a.units + 1)))
        for a in arch.axes
    }
    budgets = budgets_for(arch, options, scores, curves if allocate == "damage" else None, whole)
    each = max(curve.at([curve.units])[0] / curve.units for curve in whole.curves.values())
    steps = len(arch.layers) if allocate == "one-width" else 1
    assert whole.most(0.3) - 2.1 * each * steps < whole.of(budgets) <= whole.most(0.3)


def test_the_cache_makes_heads_dearer_than_channels() -> None:
    """Channels cost a hundredth of the damage for a parameter; memory with a long context takes heads all the same."""
    dense = model("llama")
    arch = describe(dense)
    curves = {
        a.key: Curve((1, a.units), ((a.units - 1) * a.unit_params * (1.0 if a.unit_inputs > 1 else 0.01), 0.0))
        for a in arch.axes
    }
    kept = {}
    for context in (1, 4096):
        options = Pruning(allocate="damage", cost="memory", sparsity=0.2, context=context, **SMALL)
        budgets = budgets_for(arch, options, score_inputs(arch, None, "random"), curves, footprint_of(dense, options))
        kept[context] = sum(budgets[axis.key] for axis in arch.axes if axis.name == "kv_groups")
    assert kept[4096] < kept[1]


def test_what_can_not_be_met_is_refused_with_the_nearest() -> None:
    dense = model("llama")
    arch = describe(dense)
    options = Pruning(target_size=1000, **SMALL)
    whole = footprint_of(dense, options)
    options = settled(options, whole)
    with pytest.raises(UserError, match=r"--target-size 1 kB can't be met: .* at least (\S+) kB stays.* ask for at le"):
        in_params(arch, options, whole)
    least = {a.key: 1 if a.name == "kv_groups" else 4 for a in arch.axes}
    nearest = settled(Pruning(target_size=whole.of(least) * 1.02, **SMALL), whole)
    assert in_params(arch, nearest, whole).sparsity < 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_size": "small"}, "expected a size, such as 200MB"),
        ({"target_size": "-3MB"}, "expected a size"),
        ({"target_size": "nan"}, "expected a size"),
        ({"target_speed": "0.8x"}, "expected how many times as fast, above 1"),
        ({"target_speed": "fast"}, "expected how many times as fast"),
        ({"target_size": "3MB", "target_speed": "2x"}, "both say how much to remove"),
        ({"target_size": "3MB", "cost": "memory"}, "--target-size counts bytes by itself; leave out --cost memory"),
        ({"cost": "grams"}, "unknown cost 'grams'"),
        ({"cost": "memory", "context": 0}, "--context 0: must be at least 1"),
        ({"method": "seap-reference", "target_size": "3MB"}, "has widths of its own"),
    ],
)
def test_what_means_nothing_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Pruning(**options)


def test_sizes_and_speeds_as_people_write_them() -> None:
    read = [Pruning(target_size=text).target_size for text in ("200MB", "1.5 GiB", "64kib", 300, "2e6")]
    assert read == [2e8, 1.5 * 2**30, 65536, 300, 2e6]
    assert [Pruning(target_speed=text).target_speed for text in ("1.8x", "2×", 1.5)] == [1.8, 2.0, 1.5]
    assert Pruning(target_size="1MB").cost == "bytes" and Pruning(target_speed=2).cost == "milliseconds"
    assert set(Pruning(context=5, batch=2).unused()) == {"--context", "--batch"}
