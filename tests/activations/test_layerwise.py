"""A model run layer by layer against the model itself."""

import pytest
import torch
from tiny import ALL, ids, model

from seap.activations.layerwise import Walk, resume
from seap.models.arch import describe
from seap.text.corpus import Batch


@pytest.mark.parametrize("name", sorted(ALL))
def test_a_model_runs_layer_by_layer_as_it_does_whole(name: str) -> None:
    dense = model(name)
    arch, tokens = describe(dense), ids()
    batch = Batch(tokens, torch.ones_like(tokens, dtype=torch.bool), torch.ones_like(tokens, dtype=torch.bool))
    with torch.no_grad():
        whole = dense(tokens).logits
        walk = Walk.start(arch, [row.tolist() for row in tokens], batch_tokens=999)
        hidden = walk.hidden[0]
        assert len(walk.batches) == 1
        for layer in range(len(arch.layers)):
            torch.testing.assert_close(resume(arch, batch, layer, hidden) if layer else whole, whole)
            hidden = walk.run(layer, 0, hidden)
        torch.testing.assert_close(resume(arch, batch, len(arch.layers), hidden), whole)
