"""The refit between two streams: closed forms against arithmetic, and what is simulated against what is cut."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from tiny import ALL, ids, model

from seap.compensation.compensate import Repair, kept_inputs
from seap.compensation.cross import DAMPING, CrossMoments, Fitting, corrected_inputs, refit
from seap.models.arch import describe
from seap.pruning.surgery import cut_
from seap.selection.damage import simulated

GENERATOR = torch.Generator().manual_seed(0)


def split(h: torch.Tensor, t: torch.Tensor) -> tuple[CrossMoments, CrossMoments]:
    """Moments to fit on (four fifths) and held-out ones."""
    fit, held = CrossMoments(), CrossMoments()
    cut = len(h) * 4 // 5
    fit.update_(h[:cut], t[:cut])
    held.update_(h[cut:], t[cut:])
    return fit, held


def test_inputs_are_mapped_back_to_where_they_were() -> None:
    dense = torch.randn(400, 6, generator=GENERATOR)
    drift = torch.eye(6) + 0.3 * torch.randn(6, 6, generator=GENERATOR)
    found = corrected_inputs(*split(dense @ drift.t(), dense))
    assert found is not None
    torch.testing.assert_close(found, torch.linalg.inv(drift.double()), atol=0.03, rtol=0.03)


def test_inputs_that_have_not_moved_or_only_by_noise_stay() -> None:
    dense = torch.randn(100, 6, generator=GENERATOR)
    assert corrected_inputs(*split(dense, dense)) is None
    fit, _ = split(dense, dense @ torch.randn(6, 6, generator=GENERATOR))
    assert corrected_inputs(fit, CrossMoments()) is None  # nothing held out to see whether it helps


def test_moments_give_the_errors_of_the_rows() -> None:
    h, t = torch.randn(50, 4, generator=GENERATOR), torch.randn(50, 3, generator=GENERATOR)
    weight, bias = torch.randn(3, 4, generator=GENERATOR).double(), torch.randn(3, generator=GENERATOR).double()
    moments = CrossMoments()
    moments.update_(h[:20], t[:20])
    moments.update_(h[20:], t[20:])
    left = t.double() - h.double() @ weight.t()
    assert moments.raw_error(weight) == pytest.approx(float(left.square().sum(1).mean()), rel=1e-5)
    assert moments.error(weight, bias) == pytest.approx(float((left - bias).square().sum(1).mean()), rel=1e-5)


def test_dampings_are_chosen_by_some_outputs_and_used_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    h, noise = torch.randn(60, 40, generator=GENERATOR), torch.randn(60, 8, generator=GENERATOR)
    fit, held = split(h, h @ torch.randn(40, 8, generator=GENERATOR) + 3 * noise)
    old = Repair(torch.zeros(8).double(), torch.zeros(8, 40).double())
    weight, tried = old.weight, list[int]()
    assert weight is not None
    real = Fitting.at
    monkeypatch.setattr(Fitting, "at", lambda own, damping: (tried.append(len(own.old)), real(own, damping))[1])
    by_all = refit(old, *deepcopy((fit, held)), weight)
    assert by_all is not None and {*tried} == {8}
    tried.clear()
    monkeypatch.setattr("seap.compensation.compensate.JUDGED", 2)  # every fourth output
    by_some = refit(old, *deepcopy((fit, held)), weight)
    assert by_some is not None and by_some.weight is not None
    assert {*tried[:-1]} == {2} and tried[-1] == 8
    least = {damping: some_error(fit, held, weight, damping) for damping in DAMPING}
    expected = real(Fitting.of(fit.take_(held), weight), float(by_some.about.split()[1]))
    torch.testing.assert_close(by_some.weight, expected.weight)
    assert f"{min(least, key=lambda damping: least[damping]):g}" == by_some.about.split()[1]


def some_error(fit: CrossMoments, held: CrossMoments, weight: torch.Tensor, damping: float) -> float:
    """Of every fourth output on held-out rows, the fit being of all outputs."""
    found = Fitting.of(fit, weight).at(damping)
    assert found.weight is not None
    return held.at(slice(0, None, 4)).error(found.weight[::4], found.bias[::4])


def test_inputs_are_mapped_by_what_helps_some_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = torch.randn(400, 6, generator=GENERATOR)
    drift = torch.eye(6) + 0.3 * torch.randn(6, 6, generator=GENERATOR)
    expected = corrected_inputs(*split(dense @ drift.t(), dense))
    monkeypatch.setattr("seap.compensation.compensate.JUDGED", 2)
    found = corrected_inputs(*split(dense @ drift.t(), dense))
    assert expected is not None and found is not None
    torch.testing.assert_close(found, expected)
    assert corrected_inputs(*split(dense, dense)) is None


def test_a_refit_finds_the_targets_and_is_none_where_it_does_not_help() -> None:
    h = torch.randn(500, 5, generator=GENERATOR)
    truth, old = torch.randn(3, 5, generator=GENERATOR), torch.randn(3, 5, generator=GENERATOR).double()
    better = refit(Repair(torch.zeros(3).double(), old), *split(h, h @ truth.t() + 1), old)
    assert better is not None and better.weight is not None
    torch.testing.assert_close(better.weight, truth.double(), atol=0.02, rtol=0.02)
    torch.testing.assert_close(better.bias, torch.ones(3).double(), atol=0.02, rtol=0.02)
    fit, held = split(h, h @ truth.t())
    assert refit(Repair(torch.zeros(3).double(), truth.double()), fit, held, truth.double()) is None


@pytest.mark.parametrize("name", sorted(ALL))
def test_what_is_simulated_is_what_is_cut(name: str) -> None:
    """Also the map of what the producers read."""
    dense = model(name)
    arch = describe(dense)
    axis = arch.axes[-1]
    masks = {a.key: torch.ones(a.units, dtype=torch.bool) for a in arch.axes}
    masks[axis.key][::2] = False
    keep = kept_inputs(axis, masks[axis.key])
    outputs, hidden = arch.weight(axis.layer, axis.consumer).shape[0], dense.config.hidden_size
    repair = Repair(
        torch.randn(outputs, generator=GENERATOR).double(),
        torch.randn(outputs, int(keep.sum()), generator=GENERATOR).double() * 0.1,
        inputs=torch.eye(hidden).double() + 0.1 * torch.randn(hidden, hidden, generator=GENERATOR).double(),
    )
    with torch.no_grad():
        before = dense(ids()).logits
        with simulated(arch, axis, keep, repair):
            expected = dense(ids()).logits
        with simulated(arch, axis, keep, replace(repair, inputs=None)):
            unmapped = dense(ids()).logits
        torch.testing.assert_close(dense(ids()).logits, before, atol=0, rtol=0)
        cut_(dense, masks, {axis.key: repair})
        torch.testing.assert_close(dense(ids()).logits, expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(expected, unmapped, atol=1e-3)
