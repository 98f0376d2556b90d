"""Likeness to the dense model: against plain arithmetic, and the same whether its states are kept or not."""

import math
from typing import Any

import pytest
import tiny
import torch
from torch.nn import functional
from toy import ByHand

from seap.evaluation.likeness import Reference, logits_of, loss_and_likeness
from seap.evaluation.metrics import Row, loss

FAIR = [[0.5, 0.25, 0.25]] * 3
SURE = [[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.25, 0.25, 0.5]]
TEXTS = [*tiny.ids(5, 12).tolist(), tiny.ids(1, 5, seed=4)[0].tolist()]
ROWS = [Row(tuple(text), start) for text, start in zip(TEXTS, (1, 1, 4, 1, 11, 1), strict=True)]


def test_by_hand() -> None:
    """After token 0 the reference has (0.5, ¼, ¼), the model (0.8, 0.1, 0.1): KL = ½ ln(5/8) + ½ ln(5/2)."""
    found, kl, same = loss_and_likeness(ByHand(SURE), Reference(ByHand(FAIR)), [Row((0, 0))] * 2)
    assert kl.value == pytest.approx(0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(0.25 / 0.1), rel=1e-5)
    assert found.value == pytest.approx(-math.log(0.8)) and same.value == 1
    _, kl, same = loss_and_likeness(ByHand(SURE), Reference(ByHand(FAIR)), [Row((0, 1, 0, 1)), Row((1, 0))])
    assert same.value == 0.5  # after 0 both say 0; after 1 they differ: rows count 2 of 3 and 0 of 1
    _, kl, _ = loss_and_likeness(ByHand(SURE), Reference(ByHand(SURE)), [Row((0, 1, 2))] * 2)
    assert kl.value == pytest.approx(0, abs=1e-7)


def figures(model: Any, reference: Reference, **options: Any) -> list[float]:
    return [part for one in loss_and_likeness(model, reference, ROWS, **options) for part in (one.value, one.stderr)]


@torch.no_grad()
@pytest.mark.parametrize("name", tiny.ALL)
def test_kept_states_give_the_dense_logits_of_every_family(name: str) -> None:
    dense, other = tiny.model(name), tiny.model(name, seed=1)
    reference = Reference(dense)
    kept = figures(other, reference)
    assert reference.kept[tuple(ROWS)] is not None
    assert kept == pytest.approx(figures(other, Reference(dense, limit=0)), rel=1e-5)
    assert kept[0] == pytest.approx(loss(other, ROWS).value, rel=1e-6)
    total, agreed, count = 0.0, 0, 0
    for row in ROWS:  # one at a time, without padding
        ids = torch.tensor([row.ids])
        wanted, got = (m(ids).logits[0, row.start - 1 : -1] for m in (dense, other))
        log_p, log_q = wanted.log_softmax(-1), got.log_softmax(-1)
        total += float(functional.kl_div(log_q, log_p, reduction="sum", log_target=True))
        agreed += int((wanted.argmax(-1) == got.argmax(-1)).sum())
        count += len(wanted)
    assert kept[2] == pytest.approx(total / count, rel=1e-4) and kept[4] == pytest.approx(agreed / count)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_whatever_the_batch_size_and_a_model_is_like_itself(dtype: torch.dtype) -> None:
    dense, other = tiny.model("gemma2", dtype=dtype), tiny.model("gemma2", seed=1, dtype=dtype)
    reference = Reference(dense)
    found = [figures(other, reference, batch_tokens=limit) for limit in (1, 30, 1000)]
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    assert found[0] == pytest.approx(found[1], rel=tolerance) and found[0] == pytest.approx(found[2], rel=tolerance)
    _, kl, same = loss_and_likeness(dense, reference, ROWS)
    assert kl.value == pytest.approx(0, abs=1e-6) and same.value == 1


def test_the_dense_model_reads_a_test_once_and_no_more_is_kept_than_allowed() -> None:
    dense, other = tiny.model("llama"), tiny.model("llama", seed=1)
    read: list[int] = []
    dense.model.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    size = sum(len(row.ids) - row.start for row in ROWS) * dense.config.hidden_size * 4
    reference = Reference(dense, limit=size)
    first = figures(other, reference)
    once = sum(read)
    assert reference.room == 0 and figures(other, reference) == first
    assert sum(read) == once + 1  # the one token whose logits are replaced
    assert figures(other, Reference(dense, limit=size - 1)) == pytest.approx(first, rel=1e-5)
    more = [Row(tuple(tiny.ids(1, 9, seed=7)[0].tolist()))] * 2
    loss_and_likeness(other, reference, more)
    assert reference.kept[tuple(more)] is None  # no room left: read every time


def test_logits_that_do_not_follow_from_the_states_are_not_made_of_them() -> None:
    """A model that adds to its logits what it saw at its input: kept states can't tell."""
    dense, other = tiny.model("llama"), tiny.model("llama", seed=1)
    plain = dense.forward

    def forward(input_ids: torch.Tensor, **options: Any) -> Any:
        out = plain(input_ids, **options)
        out.logits = out.logits + input_ids[..., None] % 3
        return out

    dense.forward = forward
    reference = Reference(dense)
    assert figures(other, reference) == figures(other, Reference(dense, limit=0))
    assert reference.kept[tuple(ROWS)] is None
    states = torch.zeros(4, dense.config.hidden_size)
    assert logits_of(dense, states).shape == (4, dense.config.vocab_size)
