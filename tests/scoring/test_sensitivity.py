"""The loss's sensitivity to each consumer's output, against one backward pass through the whole model."""

from typing import Any

import pytest
import torch
from tiny import ALL, ids, model
from torch.nn.functional import cross_entropy

from seap.activations.calibration import calibrate
from seap.models.arch import describe
from seap.models.modes import evaluation
from seap.scoring.score import score_inputs
from seap.scoring.sensitivity import FLOOR, drawn_words, fisher, measure_sensitivity, root
from seap.text.corpus import Corpus, batches
from seap.text.options import Calibration


@pytest.mark.parametrize("name", sorted(ALL))
def test_layer_by_layer_it_is_the_gradient_of_the_whole_model(name: str) -> None:
    dense: Any = model(name).eval()
    arch, tokens = describe(dense), ids()
    with evaluation(dense):
        found = fisher(arch, [row.tolist() for row in tokens], seed=3, batch_tokens=999, progress=False)
    outputs: dict[str, torch.Tensor] = {}
    for axis in arch.axes:
        arch.consumer(axis).register_forward_hook(
            lambda _, args, output, key=axis.key: outputs.__setitem__(key, output)
        )
    logits = dense(tokens).logits.flatten(0, 1)
    [batch] = batches(tokens.tolist(), batch_tokens=999)
    sampled = drawn_words(logits.detach().softmax(-1), batch, 3)
    grads = torch.autograd.grad(cross_entropy(logits, sampled, reduction="sum"), list(outputs.values()))
    assert found.keys() == outputs.keys()
    normed = {axis.key for axis in arch.axes if axis.is_normed}
    for key, grad in zip(outputs, grads, strict=True):
        rows = grad * outputs[key].square().mean(-1, keepdim=True).sqrt() if key in normed else grad
        rows = rows.detach().reshape(-1, grad.shape[-1])
        torch.testing.assert_close(found[key], rows.t() @ rows, rtol=1e-3, atol=1e-4 * float(found[key].abs().max()))


def test_words_are_drawn_by_their_chances_and_by_the_row_alone() -> None:
    rows = [[i % 90, i % 7, *range(3, 3 + i % 5)] for i in range(900)]
    chances = torch.tensor([0.0, 0.6, 0.3, 0.1, 0.0])
    found: dict[tuple[int, ...], list[int]] = {}
    for size in (7, 64):
        for batch in batches(rows, batch_tokens=size):
            words = drawn_words(chances.expand(int(batch.counted.sum()), -1), batch, 5)
            for each, mask, own in zip(batch.ids, batch.mask, words.split(batch.mask.sum(1).tolist()), strict=True):
                row = tuple(each[mask].tolist())
                assert found.setdefault(row, own.tolist()) == own.tolist()  # whatever it is batched with
    drawn = torch.tensor([word for own in found.values() for word in own])
    shares = torch.bincount(drawn, minlength=5) / len(drawn)
    torch.testing.assert_close(shares, chances, rtol=0, atol=0.03)
    [batch] = batches([[5, 6, 7, 8, 9, 10, 11, 12]], batch_tokens=99)
    each = chances.expand(8, -1)
    assert len({tuple(drawn_words(each, batch, seed).tolist()) for seed in range(20)}) > 10


def test_the_root_is_of_the_information_and_its_floor() -> None:
    rows = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    information = rows.t() @ rows
    found = root(information)
    expected = information / information.diagonal().mean() + FLOOR * torch.eye(5)
    torch.testing.assert_close(found.t() @ found, expected)


def test_padding_and_the_number_of_tokens_do_not_matter_but_by_their_content() -> None:
    dense = model("llama")
    rows = tuple(tuple(row) for row in torch.randint(0, 40, (10, 8)).tolist())
    one = measure_sensitivity(describe(dense), rows, num_tokens=1, seed=0, batch_tokens=64, progress=False)
    again = measure_sensitivity(describe(dense), rows, num_tokens=8, seed=0, batch_tokens=64, progress=False)
    other = measure_sensitivity(describe(dense), rows, num_tokens=64, seed=0, batch_tokens=64, progress=False)
    key = "layers.0.channels"
    assert torch.equal(one[key], again[key]) and not torch.allclose(one[key], other[key])
    assert all(parameter.grad is None for parameter in dense.parameters())


def test_scores_weigh_the_error_by_the_sensitivity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seap.scoring.sensitivity.FLOOR", 0.0)
    dense: Any = model("llama")
    arch = describe(dense)
    rows = tuple(
        tuple(row) for row in torch.randint(0, 40, (10, 8), generator=torch.Generator().manual_seed(1)).tolist()
    )
    statistics = calibrate(dense, Corpus("toy", rows, "test"), Calibration(second_moments=True), progress=False)
    outputs = {axis.key: arch.weight(axis.layer, axis.consumer).shape[0] for axis in arch.axes}
    plain = score_inputs(arch, statistics, "obs")
    same = score_inputs(arch, statistics, "obs-fisher", sensitivity={k: torch.eye(n) for k, n in outputs.items()})
    num_outputs = next(iter(outputs.values()))
    first = 1e-9 * torch.eye(num_outputs)
    first[0, 0] = 1  # only the first output matters
    one = score_inputs(arch, statistics, "obs-fisher", sensitivity=dict.fromkeys(outputs, first))
    for key, score in plain.items():
        torch.testing.assert_close(same[key], score, rtol=1e-6, atol=0)
    channels = arch.axes[-1]
    with torch.no_grad():
        arch.weight(channels.layer, channels.consumer)[1:] = 0
    alone = score_inputs(arch, statistics, "obs")[channels.key]
    torch.testing.assert_close(one[channels.key], num_outputs * alone, rtol=1e-3, atol=0)  # weighed over the mean of F
