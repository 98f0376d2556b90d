"""The piece of work by which a number of threads is chosen: a step that writes, or a batch that is read."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import model
from torch import nn

from seap.models import loader, trial


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], float] | None]:
    """What threads would have been chosen by."""
    found: list[Callable[[], float] | None] = []
    monkeypatch.setattr(trial, "settle", found.append)
    return found


def rows_read(module: nn.Module, run: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every product with a weight of the model."""
    seen, real = list[int](), trial.linear
    places = {weight.data_ptr() for weight in module.parameters()}

    def linear(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        assert weight.data_ptr() in places
        seen.append(len(rows))
        return real(rows, weight)

    monkeypatch.setattr(trial, "linear", linear)
    run()
    return seen


def test_a_step_runs_the_model_on_some_tokens(asked: list[Any]) -> None:
    own, seen = model("llama"), list[int]()
    own.base_model.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    trial.settle_threads(own)
    [seconds] = asked
    assert seconds() > 0 and seen == [trial.BATCH]  # so small a model reads many at a time


def test_text_is_read_in_batches_by_as_many_linears_as_take_a_moment(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = model("llama")
    trial.settle_threads(own, in_batches=True)
    rows = rows_read(own, asked[0], monkeypatch)
    assert {*rows} == {trial.BATCH} and len(rows) == sum(isinstance(m, nn.Linear) for m in own.modules())
    asked.clear()
    monkeypatch.setattr(trial, "OPERATIONS", 1)
    trial.settle_threads(own, in_batches=True)
    assert rows_read(own, asked[0], monkeypatch) == [trial.BATCH]


def test_large_models_and_those_without_linears_take_all_that_is_free(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert trial.batch_of([]) is None
    monkeypatch.setattr(trial, "SURE_PARAMS", 1)
    trial.settle_threads(model("llama"), in_batches=True)
    trial.settle_threads(model("llama"))
    assert asked == [None, None]


def test_reading_and_writing_commands_ask_for_what_they_do(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[bool] = []
    monkeypatch.setattr(loader, "settle_threads", lambda model, in_batches=False: told.append(in_batches))
    loader.load_for_work(loader.BUILTIN, in_batches=True)
    loader.load_for_work(loader.BUILTIN)
    loader.load(loader.BUILTIN)
    assert told == [True, False, False]
