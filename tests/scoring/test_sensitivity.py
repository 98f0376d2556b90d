"""The loss's sensitivity to each consumer's output, against one backward pass through the whole model."""

from typing import Any

import pytest
import torch
from tiny import ALL, ids, model
from torch.nn.functional import cross_entropy

from seap.activations.calibration import calibrate
from seap.activations.layerwise import evaluation
from seap.models.arch import describe
from seap.scoring.score import score_inputs
from seap.scoring.sensitivity import FLOOR, fisher, measure_sensitivity, root
from seap.text.corpus import Corpus
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
    sampled = torch.multinomial(logits.detach().softmax(-1), 1, generator=torch.Generator().manual_seed(3)).flatten()
    grads = torch.autograd.grad(cross_entropy(logits, sampled, reduction="sum"), list(outputs.values()))
    assert found.keys() == outputs.keys()
    for key, grad in zip(outputs, grads, strict=True):
        rows = grad.reshape(-1, grad.shape[-1])
        torch.testing.assert_close(found[key], rows.t() @ rows, rtol=1e-3, atol=1e-4 * float(found[key].abs().max()))


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
