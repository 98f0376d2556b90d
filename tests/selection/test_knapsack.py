"""The knapsack against brute force."""

import itertools

import pytest
import torch

from seap.selection.knapsack import choose_options


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
