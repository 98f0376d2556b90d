"""One dial, --effort, and the options that win over it."""

from typing import Any

import pytest

from seap.errors import UserError
from seap.methods import EFFORTS
from seap.selection.options import Pruning


@pytest.mark.parametrize("effort", list(EFFORTS))
def test_options_win_over_the_dial(effort: Any) -> None:
    assert Pruning(effort=effort).spent == EFFORTS[effort]
    spent = Pruning(effort=effort, search_evaluations=3, curves="measured").spent
    assert spent.search_evaluations == 3 and spent.curves == "measured"
    assert spent.fisher_tokens == EFFORTS[effort].fisher_tokens
    method = Pruning(effort=effort, allocate="search", sequential=True).resolved()
    assert method.allocate == "search" and method.sequential


def test_quick_neither_searches_nor_refits_and_other_methods_stay_as_they_are() -> None:
    quick = Pruning(effort="quick").resolved()
    assert quick.allocate == "damage" and not quick.sequential and quick.compensate == "ridge"
    for method in ("flap", "seap-paper", "wanda-sp", "magnitude"):
        assert Pruning(method=method, effort="quick").resolved() == Pruning(method=method).resolved()
        assert "--effort" in Pruning(method=method, effort="quick").unused()
    assert not Pruning(effort="quick").unused()


def test_more_effort_is_more_of_everything() -> None:
    quick, standard, thorough = (EFFORTS[name] for name in ("quick", "standard", "thorough"))
    for name in ("search_evaluations", "probe_tokens", "fisher_tokens"):
        assert getattr(quick, name) <= getattr(standard, name) < getattr(thorough, name)


def test_what_has_no_effect_is_said() -> None:
    assert Pruning(method="flap", curves="measured", probe_tokens=9).unused() == ["--probe-tokens", "--curves"]
    with pytest.raises(UserError, match="effort"):
        Pruning(effort="much")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="curves"):
        Pruning(curves="guessed")  # type: ignore[arg-type]
