"""The refit between two streams: closed forms against arithmetic, and what is simulated against what is cut."""

from dataclasses import replace

import pytest
import torch
from tiny import ALL, ids, model

from seap.compensation.compensate import Repair, kept_inputs
from seap.compensation.cross import CrossMoments, corrected_inputs, refit
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
    assert moments.judging()(weight, bias) == pytest.approx(float((left - bias).square().sum(1).mean()), rel=1e-5)


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
