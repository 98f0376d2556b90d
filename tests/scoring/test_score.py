"""Scores against arithmetic written out by hand."""

import pytest
import torch
from tiny import model

from seap.activations.moments import Moments
from seap.models.arch import describe
from seap.models.axes import CHANNELS, KV_GROUPS, Axis
from seap.scoring.score import mix, score_inputs, unit_scores


def axis(name: str, units: int, unit_inputs: int) -> Axis:
    return Axis(layer=0, name=name, units=units, unit_inputs=unit_inputs, unit_params=1, slices=())


def by_hand(name: str, axis_name: str) -> list[float]:
    """A consumer with two inputs, two outputs: W = [[1, −2], [3, 4]]; tokens h = (1, 0), (3, 2)."""
    from seap.scoring.score import ACTIVATION_SCORES

    moments = Moments.of(torch.tensor([[1.0, 0.0], [3.0, 2.0]]), second=True)
    weight = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
    return ACTIVATION_SCORES[name](axis(axis_name, 2, 1), weight, moments).tolist()


@pytest.mark.parametrize(
    ("name", "axis_name", "expected"),
    [
        # variances (2, 2); ‖W[:,0]‖₂² = 1 + 9 = 10, ‖W[:,1]‖₂² = 4 + 16 = 20
        ("wifv", CHANNELS, [2 * 10, 2 * 20]),
        ("wifv", KV_GROUPS, [2 * 10, 2 * 20]),
        ("wifv-flap", CHANNELS, [20, 40]),
        ("wifv-flap", KV_GROUPS, [20**2, 40**2]),
        # ‖h_0‖₂² = 1 + 9 = 10, ‖h_1‖₂² = 4; ‖W[:,0]‖₁ = 4, ‖W[:,1]‖₁ = 6
        ("wanda", CHANNELS, [10 * 4, 4 * 6]),
        ("wanda-sp", CHANNELS, [10**0.5 * 4, 2 * 6]),
        # E[h hᵀ] = [[5, 3], [3, 2]], λ = 0.01 · 3.5 = 0.035: C (C + λI)⁻¹ = I − λ (C + λI)⁻¹, whose inverse has the
        # determinant 5.035 · 2.035 − 9 = 1.246225 and the diagonal (2.035, 5.035) over it
        ("leverage", CHANNELS, [1 - 0.035 * 2.035 / 1.246225, 1 - 0.035 * 5.035 / 1.246225]),
    ],
)
def test_scores_by_hand(name: str, axis_name: str, expected: list[float]) -> None:
    assert by_hand(name, axis_name) == pytest.approx(expected, rel=1e-12)


def test_a_unit_scores_the_sum_over_its_inputs() -> None:
    inputs = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    assert unit_scores(axis(KV_GROUPS, 2, 3), inputs).tolist() == [6, 15]


def test_magnitude_is_the_norm_of_the_consumers_column() -> None:
    dense = model("gpt2")  # transposed weights
    arch = describe(dense)
    scores = score_inputs(arch, None, "magnitude")
    weight = dense.transformer.h[1].mlp.c_proj.weight  # (C, O)
    torch.testing.assert_close(scores["layers.1.channels"], weight.double().norm(dim=1))


def test_random_is_seeded_and_per_unit() -> None:
    arch = describe(model("llama"))
    first, again, other = (score_inputs(arch, None, "random", seed=seed) for seed in (0, 0, 1))
    for found in arch.axes:
        assert torch.equal(first[found.key], again[found.key])
        assert not torch.equal(first[found.key], other[found.key])
        units = first[found.key].view(found.units, found.unit_inputs)
        assert torch.equal(units, units[:, :1].expand_as(units))


def test_mixing_normalises_so_that_loud_tasks_do_not_decide_alone() -> None:
    """Trap: the published general mask adds raw scores."""
    loud, quiet = torch.tensor([300.0, 100.0]), torch.tensor([1.0, 9.0])
    scores = {"loud": {"a": loud}, "quiet": {"a": quiet}}
    # means 200 and 5: (1.5, 0.5) + (0.2, 1.8) = (1.7, 2.3)
    assert mix(scores)["a"].tolist() == pytest.approx([1.7, 2.3])
    assert mix(scores, normalise=False)["a"].tolist() == [301, 109]
    # weights 3 and 1: (4.5, 1.5) + (0.2, 1.8)
    assert mix(scores, {"loud": 3})["a"].tolist() == pytest.approx([4.7, 3.3])


def test_scores_that_are_not_finite_name_the_axis() -> None:
    dense = model("llama")
    with torch.no_grad():
        dense.model.layers[1].mlp.down_proj.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="layer 1 channels: score magnitude is not finite"):
        score_inputs(describe(dense), None, "magnitude")
