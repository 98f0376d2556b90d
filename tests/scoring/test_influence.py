"""Block influence against cosines of the states that each layer is given and gives."""

from typing import Any

import pytest
import torch
from tiny import model

from seap.activations.stats import Statistics
from seap.models.arch import describe
from seap.scoring.influence import block_influence
from seap.scoring.score import score_inputs

ROWS = tuple(tuple(range(3 + i, 9 + 2 * i)) for i in range(5))


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "mixtral"])
def test_it_is_one_less_the_mean_cosine(name: str) -> None:
    dense: Any = model(name)
    arch = describe(dense)
    states: list[list[torch.Tensor]] = [[] for _ in arch.layers]
    for layer, into in zip(arch.layers, states, strict=True):
        layer.register_forward_hook(lambda _, args, out, into=into: into.append(torch.stack([args[0][0], out[0]])))
    with torch.no_grad():
        for row in ROWS:
            dense(torch.tensor([row]), use_cache=False)
    pairs = [torch.cat(into, 1) for into in states]
    expected = [float(1 - ((a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))).mean()) for a, b in pairs]
    assert block_influence(arch, ROWS, batch_tokens=40) == pytest.approx(expected, abs=1e-5)


def test_a_layer_scores_its_influence_over_all_its_inputs() -> None:
    arch = describe(model("llama"))
    found = block_influence(arch, ROWS, batch_tokens=4096)
    scores = score_inputs(arch, Statistics(rows=ROWS), "block-influence")
    for layer, influence in enumerate(found):
        own = sum(float(scores[axis.key].sum()) for axis in arch.layer_axes(layer))
        assert own == pytest.approx(influence, rel=1e-6)
