"""Whether two statistics files are of the same sums."""

from pathlib import Path

import torch

from seap.activations.stats import load_statistics

SAME = {"rtol": 1e-5, "atol": 1e-5}  # the model's own float32 rounding, which depends on how rows are batched


def assert_same(one: Path, other: Path) -> None:
    first, second = (load_statistics(path)[0] for path in (one, other))
    assert first.keys() == second.keys() and sorted(first.rows) == sorted(second.rows)
    for key, moments in first.items():
        found = second[key]
        assert moments.count == found.count
        for name in ("mean", "m2", "co"):
            torch.testing.assert_close(getattr(moments, name), getattr(found, name), **SAME)
        assert moments.held is not None and found.held is not None and moments.held.count == found.held.count
        torch.testing.assert_close(moments.held.co, found.held.co, **SAME)
