"""Choices scored with their question read once: the figures of whole rows, for every family, and who falls back."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tiny import EVERY, ids, model
from toy import ByHand

from seap.evaluation import shared_prompts
from seap.evaluation.metrics import Row, log_likelihoods
from seap.evaluation.shared_prompts import likelihoods_of_choices

PROMPTS = [tuple(ids(1, length, seed=length)[0].tolist()) for length in (9, 14, 21, 12)]


def choices() -> tuple[list[Row], list[int]]:
    """Items of unlike length and number of choices; the last one's question is too short to be worth sharing."""
    rows, sizes = [], []
    for number, prompt in enumerate([*PROMPTS, PROMPTS[0][:3]]):
        ends = [tuple(ids(1, 1 + (number + i) % 4, seed=50 + i)[0].tolist()) for i in range(2 + number % 3)]
        rows += [Row((*prompt, *end), len(prompt)) for end in ends]
        sizes.append(len(ends))
    return rows, sizes


class Counted:
    """A model that notes how many tokens it is given, padding included."""

    def __init__(self, dense: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tokens, forward = 0, dense.forward

        def noted(*args: Any, **kwargs: Any) -> Any:
            self.tokens += kwargs["input_ids"].numel()
            return forward(*args, **kwargs)

        noted.__wrapped__ = forward  # type: ignore[attr-defined]
        monkeypatch.setattr(dense, "forward", noted)


@pytest.mark.parametrize("name", EVERY)
def test_the_figures_are_those_of_whole_rows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = model(name)
    rows, sizes = choices()
    whole = [total for total, _ in log_likelihoods(dense, rows)]
    tried: list[Sequence[Any]] = []
    real = shared_prompts._shared

    def noted(*given: Any) -> Any:
        tried.append(given[1])
        return real(*given)

    monkeypatch.setattr(shared_prompts, "_shared", noted)
    for limit in (40, 1000):
        assert likelihoods_of_choices(dense, rows, sizes, batch_tokens=limit) == pytest.approx(
            whole, rel=1e-6, abs=1e-5
        )
    # the trial, then all that are worth it, where it says the same: RecurrentGemma hands no cache out, Jamba goes on
    # from one token by token alone
    assert [len(asked) for asked in tried] == ([1, 1] if name in ("recurrent_gemma", "jamba") else [1, 4, 1, 4])


def test_fewer_tokens_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = model("llama")
    prompt = tuple(ids(1, 40, seed=3)[0].tolist())
    rows = [Row((*prompt, *ids(1, 2, seed=i)[0].tolist()), len(prompt)) for i in range(96)]
    counted = Counted(dense, monkeypatch)
    log_likelihoods(dense, rows)
    whole, counted.tokens = counted.tokens, 0
    likelihoods_of_choices(dense, rows, [4] * 24)
    assert counted.tokens < whole / 2


def test_a_model_without_a_cache_reads_whole_rows() -> None:
    table = torch.rand(97, 97, generator=torch.Generator().manual_seed(0)).softmax(-1).tolist()
    rows, sizes = choices()
    expected = [total for total, _ in log_likelihoods(ByHand(table), rows)]
    assert likelihoods_of_choices(ByHand(table), rows, sizes) == expected


def test_a_model_whose_cache_changes_what_it_says_reads_whole_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = model("llama")
    rows, sizes = choices()
    expected = [total for total, _ in log_likelihoods(dense, rows)]
    real = shared_prompts._shared
    wrong = lambda *given: {place: total + 0.1 for place, total in real(*given).items()}  # noqa: E731
    monkeypatch.setattr(shared_prompts, "_shared", wrong)
    assert likelihoods_of_choices(dense, rows, sizes) == expected


def test_half_precision_shares_too() -> None:
    dense = model("llama", dtype=torch.bfloat16)
    rows, sizes = choices()
    whole = [total for total, _ in log_likelihoods(dense, rows)]
    assert likelihoods_of_choices(dense, rows, sizes) == pytest.approx(whole, rel=0.05, abs=0.05)
