"""The knapsack against brute force."""

import ctypes
import itertools

import pytest
import torch

from seap.selection.knapsack import choose_options, silent


def test_the_knapsack_equals_brute_force() -> None:
    generator = torch.Generator().manual_seed(3)
    options = [
        [(float(i * (k + 1)), float(torch.rand((), generator=generator)) * i) for i in range(4)] for k in range(4)
    ]
    for target in (3.0, 11.0, 22.0):
        chosen = choose_options(options, target)
        assert sum(axis[i][0] for axis, i in zip(options, chosen, strict=True)) >= target
        best = min(
            sum(axis[i][1] for axis, i in zip(options, places, strict=True))
            for places in itertools.product(range(4), repeat=4)
            if sum(axis[i][0] for axis, i in zip(options, places, strict=True)) >= target
        )
        assert sum(axis[i][1] for axis, i in zip(options, chosen, strict=True)) == pytest.approx(best, rel=1e-3)
    with pytest.raises(ValueError, match="more than all options"):
        choose_options(options, 1e6)


@pytest.mark.parametrize("seed", range(8))
def test_of_convex_and_other_curves_nothing_better_is_left_out(seed: int) -> None:
    """Few coarse axes beside fine ones, as heads beside channels; at targets from nothing to nearly all."""
    generator = torch.Generator().manual_seed(seed)
    heights = torch.rand(4, generator=generator).square().tolist()
    powers = (1 + 2 * torch.rand(4, generator=generator)).tolist()
    options = [
        [(unit * i, height * (i / (count - 1)) ** power + 0.02 * (i % 3)) for i in range(count)]
        for (count, unit), height, power in zip(
            ((3, 10.0), (12, 1.5), (3, 10.0), (12, 1.5)), heights, powers, strict=True
        )
    ]
    for share in (0.0, 0.1, 0.5, 0.9, 1.0):
        target = share * sum(axis[-1][0] for axis in options)
        chosen = choose_options(options, target)
        assert sum(axis[i][0] for axis, i in zip(options, chosen, strict=True)) >= target * (1 - 1e-12)
        best = min(
            sum(axis[i][1] for axis, i in zip(options, places, strict=True))
            for places in itertools.product(*(range(len(axis)) for axis in options))
            if sum(axis[i][0] for axis, i in zip(options, places, strict=True)) >= target * (1 - 1e-12)
        )
        assert sum(axis[i][1] for axis, i in zip(options, chosen, strict=True)) <= best * (1 + 1e-3) + 1e-12


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e9])
def test_the_target_is_reached_in_every_unit(scale: float) -> None:
    """Milliseconds of a small model are far below 1, bytes far above; HiGHS has tolerances of its own."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        removed = (torch.rand(6, 8, generator=generator, dtype=torch.float64).cumsum(1) * scale).tolist()
        damage = torch.rand(6, 8, generator=generator, dtype=torch.float64).cumsum(1).tolist()
        options = [[(0.0, 0.0), *zip(gone, lost, strict=True)] for gone, lost in zip(removed, damage, strict=True)]
        target = 0.4 * sum(axis[-1][0] for axis in options)
        chosen = choose_options(options, target)
        assert sum(axis[i][0] for axis, i in zip(options, chosen, strict=True)) >= target * (1 - 1e-12)


def test_what_the_solver_prints_is_not_on_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    say = ctypes.CDLL(None).puts
    with silent():
        say(b"a solver's own words")
    say(b"ours")
    ctypes.CDLL(None).fflush(None)
    assert capfd.readouterr().out == "ours\n"
