"""GISP's steps: what goes never comes back, each step has scores of its own, and the target is met at the end."""

from typing import Any

import pytest
import torch
from tiny import ALL, model
from toy import TEXTS, tokenizer

import seap
from seap.errors import UserError
from seap.models.arch import Arch, describe
from seap.models.axes import Masks
from seap.scoring.score import Scores, score_inputs, unit_scores
from seap.selection.allocate import allocate
from seap.selection.mask import choose_units
from seap.selection.options import Pruning
from seap.selection.steps import removal_order


def random_scores(arch: Arch, seed: int) -> Scores:
    return score_inputs(arch, None, "random", seed=seed)


def order(arch: Arch, options: Pruning, seen: list[Masks]) -> Scores:
    """Scores that change with every step."""

    def rescore(masks: Masks) -> Scores:
        seen.append({key: mask.clone() for key, mask in masks.items()})
        return random_scores(arch, len(seen))

    return removal_order(arch, arch.axes, options, rescore)


def chosen(arch: Arch, options: Pruning, scores: Scores) -> Masks:
    return choose_units(arch.axes, scores, allocate(arch, options, scores))


@pytest.mark.parametrize("name", ["llama", "phi3", "gpt2"])
def test_masks_are_nested_and_each_step_removes_its_share(name: str) -> None:
    arch = describe(model(name, num_hidden_layers=4))
    options = Pruning(method="gisp", sparsity=0.3, steps=6, min_channels=4, protect_last=0)
    seen: list[Masks] = []
    scores = order(arch, options, seen)
    assert len(seen) == 6 and all(mask.all() for mask in seen[0].values())
    final = chosen(arch, options, scores)
    steps = [*seen, final]
    unit = max(axis.unit_params for axis in arch.axes if axis.name == "channels")
    for step, masks in enumerate(steps):
        removed = sum(int((~masks[axis.key]).sum()) * axis.unit_params for axis in arch.axes)
        assert abs(removed - step / 6 * 0.3 * arch.prunable_params) <= unit
        assert all(bool((steps[step - 1][key] | ~mask).all()) for key, mask in masks.items() if step)


def test_each_step_takes_the_lowest_of_what_is_left_by_the_scores_of_that_step() -> None:
    arch = describe(model("llama"))
    options = Pruning(method="gisp", sparsity=0.2, steps=3, min_channels=4, protect_last=0)
    seen: list[Masks] = []
    order(arch, options, seen)
    for step, (before, after) in enumerate([(seen[0], seen[1]), (seen[1], seen[2])], start=1):
        scores = random_scores(arch, step)
        gone, left = [], []
        for axis in arch.axes:
            if axis.name == "channels":  # of one size, and far from their least
                values = unit_scores(axis, scores[axis.key])
                gone += values[before[axis.key] & ~after[axis.key]].tolist()
                left += values[after[axis.key]].tolist()
        assert gone and max(gone) <= min(left)


def test_one_step_is_one_list_of_the_scores() -> None:
    arch = describe(model("llama"))
    one = Pruning(method="gisp", sparsity=0.4, steps=1, min_channels=4, protect_last=0)
    scores = random_scores(arch, 1)
    found = chosen(arch, one, removal_order(arch, arch.axes, one, lambda masks: scores))
    at_once = Pruning(method="gisp", allocate="global", sparsity=0.4, min_channels=4, protect_last=0)
    expected = chosen(arch, at_once, scores)
    assert all(torch.equal(found[key], mask) for key, mask in expected.items())


@pytest.mark.parametrize("name", sorted(ALL))
def test_gisp_prunes_every_family_to_the_unit(name: str) -> None:
    dense = model(name, num_hidden_layers=4)
    arch = describe(dense)
    unit = max(axis.unit_params for axis in arch.axes if axis.name == "channels")
    prunable, whole = arch.prunable_params, {axis.key: axis.units for axis in arch.axes}
    asked = 0.1 if name == "nemotron_h-dense" else 0.15  # it has one MLP, whose channels are 0.12 of what can go
    report = seap.prune(
        dense, tokenizer(), task={"toy": TEXTS[:6]}, method="gisp", sparsity=asked, steps=2, min_channels=4,
        progress=False,
    )  # fmt: skip
    assert abs(report.realised_sparsity - asked) * prunable <= unit
    assert all(report.layers[3][name] == whole[f"layers.3.{name}"] for name in report.layers[3])  # the last is spared
    assert report.provenance["options"]["steps"] == 2
    assert "units went in 2 steps, each with gradients of its own" in report.notes
    assert torch.isfinite(dense(torch.tensor([[5, 6, 7]])).logits).all()


def test_what_the_method_spares_can_be_said_otherwise() -> None:
    assert Pruning(method="gisp").protected(32) == (3, 1)
    assert Pruning(method="llm-pruner").protected(32) == (4, 2)
    assert Pruning(method="gisp", protect_first=0, protect_last=2).protected(32) == (0, 2)
    assert Pruning().protected(32) == (0, 0) and Pruning(protect_first=5).protected(32) == (5, 0)


def test_steps_need_gradients_and_are_said_where_they_have_no_effect() -> None:
    with pytest.raises(UserError, match="--allocate iterative measures gradients anew"):
        Pruning(allocate="iterative")
    assert "--steps" in Pruning(method="flap", steps=3).unused()
    given: Any = {"method": "gisp", "steps": 3}
    assert "--steps" not in Pruning(**given).unused()
    assert "--effort" not in Pruning(method="gisp", effort="quick").unused()
    with pytest.raises(UserError, match="steps"):
        Pruning(steps=0)
