"""The search: tilted curves first, then single moves, within the trials that it was given."""

from typing import Any

import pytest
import torch
from test_curves import measured
from tiny import model

from seap.models.arch import describe
from seap.selection import search as searching
from seap.selection.options import Pruning
from seap.selection.ranking import Ranking, rank
from seap.selection.search import directions


def ranked(**changes: Any) -> Ranking:
    arch, statistics, _ = measured("llama")
    options = Pruning(min_channels=4, probe_tokens=64, fisher_tokens=64, **changes)
    return rank(arch.model, {"toy": statistics}, options)


def test_directions_set_kinds_and_layers_against_each_other() -> None:
    arch = describe(model("llama"))
    kinds, depth, middle = directions(arch.axes)
    for axis in arch.axes:
        assert kinds[axis.key] == (0.5 if axis.name == "kv_groups" else -0.5)
        assert depth[axis.key] == pytest.approx(axis.layer / 2 - 0.5)
        assert middle[axis.key] == (0.5 if axis.layer == 1 else -0.5)
    assert len(directions([axis for axis in arch.axes if axis.name == "channels"])) == 2
    assert directions(arch.axes[:1]) == []


@pytest.mark.parametrize("progress", [False, True])
@pytest.mark.parametrize("trials", [1, 2, 7])
def test_it_ends_after_its_trials_and_is_never_worse(
    trials: int, progress: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranking, seen = ranked(search_evaluations=trials), []
    measure = searching.divergence_of

    def counted(*given: Any) -> float:
        seen.append(measure(*given))
        return seen[-1]

    monkeypatch.setattr(searching, "divergence_of", counted)
    masks = ranking.masks(0.4, progress=progress)
    assert 2 <= len(seen) <= trials + 1  # the start, and as many
    monkeypatch.undo()
    budgets = {axis.key: int(masks[axis.key].sum()) for axis in ranking.arch.axes}
    assert ranking.judge is not None and ranking.repair_to is not None
    with torch.no_grad():
        again = measure(ranking.judge, ranking.arch.axes, budgets, ranking.repair_to)
    assert again == pytest.approx(min(seen), rel=1e-5)


def test_quick_runs_no_probe_and_measured_curves_are_still_to_be_had() -> None:
    quick, measured_ = ranked(effort="quick"), ranked(curves="measured", allocate="damage")
    assert quick.judge is None and quick.curves is not None and measured_.judge is not None
    assert quick.masks(0.3).keys() == measured_.masks(0.3).keys()
