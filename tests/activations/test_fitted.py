"""Wide second moments, of which only what is asked for is made: against the whole of them in float64."""

import pytest
import torch
from tiny import model

from seap.activations.accumulator import Accumulator
from seap.activations.fitted import Fitted
from seap.activations.layerwise import Walk, few_wide
from seap.activations.moments import Moments
from seap.models.arch import describe

SIZE = 272  # more than EXACT_SIZE, so that products are float32


def measured(rows: torch.Tensor, *, blocks: int = 1, is_small: bool = False) -> Moments:
    found = Accumulator(rows.shape[1], blocks=blocks, is_small=is_small)
    for part in rows.split(70):
        found.update_(part)
    return found.moments()


def with_held(*, blocks: int = 1, is_small: bool = False) -> Moments:
    """All rows' moments, with those of the last hundred apart."""
    rows = torch.randn(400, SIZE, generator=torch.Generator().manual_seed(0)) * 3 + 1
    fit, held = (measured(part, blocks=blocks, is_small=is_small) for part in (rows[:300], rows[300:]))
    fit.add_(held)
    fit.held = held
    return fit


@pytest.fixture(autouse=True)
def _parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("seap.activations.moments.ROWS", "seap.activations.fitted.ROWS"):
        monkeypatch.setattr(name, 100)


@pytest.mark.parametrize("is_small", [False, True])
def test_what_is_made_of_the_rows_not_held_out_is_what_they_say(is_small: bool) -> None:
    whole = with_held(is_small=is_small)
    fit, expected = Fitted.of(whole), whole.without_held()
    order = torch.randperm(SIZE, generator=torch.Generator().manual_seed(1))
    some = torch.arange(SIZE) % 3 == 0
    torch.testing.assert_close(fit.mean, expected.mean)
    torch.testing.assert_close(fit.between(order, order), expected.covariance[order][:, order], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(fit.between(~some, some), expected.covariance[~some][:, some], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(whole.between(some, order), whole.covariance[some][:, order], rtol=0, atol=0)


def test_where_none_is_held_out_all_rows_are_fitted() -> None:
    whole = with_held()
    whole.held = None
    everything = torch.arange(SIZE)
    assert torch.equal(Fitted.of(whole).between(everything, everything), whole.covariance)


def test_blocks_are_made_one_by_one() -> None:
    whole = with_held(blocks=2)
    parts, everything = Fitted.of(whole).split(), torch.arange(SIZE // 2)
    assert Fitted.of(whole).num_blocks == len(parts) == 2
    for part, expected in zip(parts, whole.without_held().split(), strict=True):
        torch.testing.assert_close(part.between(everything, everything), expected.covariance, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("blocks", [1, 2])
def test_small_ones_are_rounded_once_and_no_others_change(blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seap.activations.accumulator.EXACT_SIZE", 100)
    small, large = with_held(blocks=blocks, is_small=True), with_held(blocks=blocks)
    assert small.co is not None and large.co is not None and small.held is not None and large.held is not None
    assert small.co.dtype == torch.float32 and large.co.dtype == torch.float64
    assert torch.equal(small.co, large.co.float())
    assert small.held.co is not None and large.held.co is not None
    assert torch.equal(small.held.co.double(), large.held.co)
    assert torch.equal(small.m2, large.m2) and torch.equal(small.mean, large.mean)


def test_small_ones_that_were_added_up_in_float64_stay_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seap.activations.accumulator.FOLDED", 100)
    monkeypatch.setattr("seap.activations.accumulator.GATHERED", 50)
    small = with_held(is_small=True)
    assert small.co is not None and small.co.dtype == torch.float64 and torch.equal(small.co, with_held().co)


def test_wide_layers_are_walked_through_with_fewer_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    arch = describe(model("llama"))
    rows = [[1 + i % 7, 2, 3, 4, 5, 6] for i in range(40)]
    assert few_wide(arch, 96) == 96
    widest = max(axis.num_inputs for axis in arch.axes)
    monkeypatch.setattr("seap.activations.layerwise.WIDE_BYTES", 4 * widest * 12)
    monkeypatch.setattr("seap.activations.layerwise.LOGIT_TOKENS", 1)
    assert few_wide(arch, 96) == 12
    walk = Walk.start(arch, rows, batch_tokens=96)
    assert max(batch.ids.numel() for batch in walk.batches) == 12
