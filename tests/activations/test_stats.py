"""Moments are the same however the rows are split, merged or typed; files give back what was written."""

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seap.activations import accumulator, stats
from seap.activations.accumulator import Accumulator
from seap.activations.moments import Moments
from seap.activations.stats import Statistics, load_statistics, merge, save_statistics
from seap.errors import UserError

SIZE = 5


def rows(count: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Far from zero, so that a naive sum of squares would lose digits."""
    generator = torch.Generator().manual_seed(seed)
    return (1000 + torch.randn(count, SIZE, generator=generator, dtype=torch.float64)).to(dtype)


def assert_moments(found: Moments, data: torch.Tensor) -> None:
    data = data.double()
    assert found.count == len(data)
    torch.testing.assert_close(found.mean, data.mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(found.variance, data.var(0), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.mean_square, data.square().mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(found.norm, data.norm(dim=0), rtol=1e-12, atol=0)


@given(
    cuts=st.lists(st.integers(0, 40), max_size=6),
    seed=st.integers(0, 99),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)
@settings(max_examples=60, deadline=None)
def test_any_split_gives_the_moments_of_all_rows(cuts: list[int], seed: int, dtype: torch.dtype) -> None:
    data = rows(40, seed, dtype)
    edges = [0, *sorted(cuts), 40]
    whole, parts = Accumulator(SIZE, blocks=1), []
    for start, end in itertools.pairwise(edges):
        whole.update_(data[start:end])
        part = Accumulator(SIZE, blocks=1)
        part.update_(data[start:end])
        parts.append(Statistics({"layers.0.channels": part.moments()}))
    streamed = whole.moments()
    merged = merge(parts)["layers.0.channels"]
    covariance = torch.cov(data.double().t()) * 39
    for found in (streamed, merged):
        assert_moments(found, data)
        assert found.co is not None
        torch.testing.assert_close(found.co, covariance, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(found.co.diagonal(), found.m2, rtol=1e-9, atol=1e-9)


def test_the_first_batch_counts() -> None:
    """Trap: the published running variance starts with the second batch."""
    found = Accumulator(1)
    found.update_(torch.tensor([[0.0], [2.0]]))
    found.update_(torch.tensor([[1.0]]))
    moments = found.moments()
    # mean 1; (0−1)² + (2−1)² + (1−1)² = 2; unbiased variance 2 / 2 = 1; mean square (0 + 4 + 1) / 3
    assert moments.mean.item() == 1
    assert moments.variance.item() == 1
    assert moments.mean_square.item() == pytest.approx(5 / 3)


def test_merging_leaves_the_parts_as_they_are() -> None:
    """Trap: FLAP's running mean aliases the tensor that it updates."""
    first, second = Moments.of(rows(7, 0)), Moments.of(rows(5, 1))
    before = first.mean.clone(), first.m2.clone(), second.mean.clone()
    merge([(Statistics({"a": first})), (Statistics({"a": second}))])
    assert torch.equal(first.mean, before[0]) and torch.equal(first.m2, before[1])
    assert torch.equal(second.mean, before[2])


def test_merging_different_axes_or_kinds_is_refused() -> None:
    with pytest.raises(ValueError, match="different axes"):
        merge([Statistics({"a": Moments.zeros(2)}), Statistics({"b": Moments.zeros(2)})])
    one, other = Moments.of(rows(3, 0), second=True), Moments.of(rows(3, 0))
    with pytest.raises(ValueError, match="second moments"):
        one.add_(other)


@pytest.mark.parametrize("second", [False, True])
def test_files_give_back_what_was_written(tmp_path: Path, second: bool) -> None:
    written = Statistics({"layers.0.channels": Moments.of(rows(9, 0), second=second)}, ((1, 2, 3), (4, 5)))
    save_statistics(tmp_path / "a.safetensors", written, {"task": "t"})
    read, about = load_statistics(tmp_path / "a.safetensors")
    found, expected = read["layers.0.channels"], written["layers.0.channels"]
    assert about == {"task": "t"} and found.count == 9 and read.rows == ((1, 2, 3), (4, 5))
    assert torch.equal(found.mean, expected.mean) and torch.equal(found.m2, expected.m2)
    assert (found.co is None) == (not second) and (not second or torch.equal(found.co, expected.co))


def test_damaged_and_foreign_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_statistics(path, Statistics({"layers.0.channels": Moments.of(rows(9, 0))}), {"task": "t"})
    content = path.read_bytes()
    path.write_bytes(content[:-20])
    with pytest.raises(UserError, match=r"a\.safetensors is truncated"):
        load_statistics(path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="truncated"):
        load_statistics(path)
    with pytest.raises(UserError, match="no such file"):
        load_statistics(tmp_path / "missing.safetensors")


@pytest.mark.parametrize("blocks", [1, 2, 4])
def test_blocks_are_the_matrix_s_own(blocks: int) -> None:
    generator = torch.Generator().manual_seed(0)
    data, more = torch.randn(30, 8, generator=generator) + 3, torch.randn(11, 8, generator=generator)
    found, whole = (Moments.of(data, second=True, blocks=count) for count in (blocks, 1))
    for moments in (found, whole):
        moments.add_(Moments.of(more, second=True, blocks=moments.num_blocks))
        moments.held = Moments.of(more, second=True, blocks=moments.num_blocks)
    assert whole.co is not None and found.num_blocks == blocks == len(found.split())
    fit = whole.without_held()
    for i, (part, left) in enumerate(zip(found.split(), found.without_held().split(), strict=True)):
        place = slice(i * 8 // blocks, (i + 1) * 8 // blocks)
        torch.testing.assert_close(part.covariance, whole.covariance[place, place])
        torch.testing.assert_close(left.covariance, fit.covariance[place, place], atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(part.mean, whole.mean[place])
    if blocks > 1:
        with pytest.raises(UserError, match="blocks of different size"):
            whole.copy().add_(found)


def test_matrices_on_disk_are_what_was_set_and_go_with_the_statistics() -> None:
    moments = Moments.of(rows(9, 0), second=True)
    moments.held = Moments.of(rows(3, 1), second=True)
    kept = Statistics({"a": moments}, ((1, 2),), on_disk=True)
    folder = kept._folder
    assert folder is not None and [path.name for path in folder.iterdir()] == ["a.safetensors"]
    found = kept["a"]
    assert found is not kept["a"] and found.co is not None and found.held is not None and found.held.co is not None
    assert torch.equal(found.co, moments.co) and torch.equal(found.held.co, moments.held.co)  # type: ignore[arg-type]
    assert kept.has_second_moments and list(kept) == ["a"] and len(kept) == 1
    both = merge([kept, Statistics({"a": moments})])
    assert both.on_disk and both["a"].count == 18 and both.rows == ((1, 2),)
    del kept
    assert not folder.exists()


def test_a_large_file_is_read_axis_by_axis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = Statistics(
        {"a": Moments.of(rows(9, 0), second=True), "b": Moments.of(rows(4, 1), second=True)}, ((1, 2),)
    )
    save_statistics(tmp_path / "a.safetensors", written, {"task": "t"})
    monkeypatch.setattr(stats, "IN_MEMORY_BYTES", 0)
    read, _ = load_statistics(tmp_path / "a.safetensors")
    assert read["b"] is not read["b"] and read.rows == ((1, 2),)
    for key, moments in written.items():
        assert moments.co is not None and torch.equal(read[key].co, moments.co)  # type: ignore[arg-type]
    save_statistics(tmp_path / "b.safetensors", read, {"task": "t"})
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


@pytest.mark.parametrize(("size", "blocks"), [(6, 1), (6, 3), (1, 1), (264, 1), (600, 1), (600, 2), (900, 3), (560, 2)])
def test_tiles_pieces_and_folds_make_the_matrix_of_all_rows(
    size: int, blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every limit is crossed: several pieces an update, updates of few rows, products in float32 folded meanwhile."""
    monkeypatch.setattr(accumulator, "PIECE", 7 * size)
    monkeypatch.setattr(accumulator, "GATHERED", 30)
    monkeypatch.setattr(accumulator, "FOLDED", 60)
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(200, size, generator=generator) * torch.linspace(0.1, 9, size) + torch.linspace(-50, 50, size)
    data[150:] += 30  # the mean moves
    keep = torch.rand(200, generator=generator) < 0.8
    found = Accumulator(size, blocks=blocks)
    for start, end in ((0, 3), (3, 4), (4, 90), (90, 90), (90, 200)):
        found.update_(data[start:end], keep[start:end])
    moments, expected = found.moments(), Moments.of(data[keep], second=True, blocks=blocks)
    assert moments.co is not None and expected.co is not None and moments.co.dtype == torch.float64
    assert moments.count == expected.count == int(keep.sum())
    torch.testing.assert_close(moments.mean, expected.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(moments.m2, expected.m2, rtol=1e-10, atol=0)
    deviations = torch.stack([part.diagonal() for part in expected.co.view(blocks, size // blocks, -1)]).sqrt()
    scale = deviations[:, :, None] * deviations[:, None, :]
    error = ((moments.co - expected.co).view_as(scale) / scale).abs().max()
    assert error < (1e-11 if size // blocks <= 256 else 2e-6)
    assert torch.equal(moments.co, moments.co.transpose(-1, -2))


def test_rows_are_left_as_they_are_and_nothing_is_nothing() -> None:
    data = rows(9, 0)
    before = data.clone()
    found = Accumulator(SIZE, blocks=1)
    found.update_(data)
    assert torch.equal(data, before)
    empty = Accumulator(SIZE, blocks=1)
    empty.update_(data[:0])
    moments = empty.moments()
    assert moments.count == 0 and moments.co is not None and not moments.co.any() and not moments.m2.any()
