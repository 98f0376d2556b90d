"""The output layer of a task's network: the rows of the tokens that it writes, of the dense model's one.

The embedding is shared: every token can be read. Logits have the dense model's size, so that ids mean the same in all
networks; those of tokens that a network doesn't write are so low that no probability is left for them.
Shapes: V vocabulary, W tokens that stay, D hidden size.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from seap.models.layouts import Layouts
from seap.models.prepack import product_of
from seap.serving.networks.network import Network
from seap.serving.networks.placement import Assignments

NEVER = -1e4  # a logit that every dtype has, from which exp is 0 in all of them


def output_bytes(model: Any, network: Network) -> int:
    """What the rows of a network's tokens take while it is resident."""
    if network.vocabulary is None:
        return 0
    weight = model.get_output_embeddings().weight
    return len(network.vocabulary) * int(weight.shape[1]) * int(weight.element_size())


@torch.no_grad()
def output_of(model: Any, network: Network, layouts: Layouts) -> Assignments:
    """What to set in the output layer's dict for a network with fewer tokens: its forward over a copy of their rows."""
    if network.vocabulary is None:
        return []
    layer = model.get_output_embeddings()
    kept = network.vocabulary.to(layer.weight.device)
    weight = layer.weight.detach().index_select(0, kept)
    bias = None if layer.bias is None else layer.bias.detach().index_select(0, kept)
    laid_out = product_of(weight, bias) if type(layer) is nn.Linear and layouts.pays(weight) else None
    product = laid_out or (lambda rows: functional.linear(rows, weight, bias))
    return [(vars(layer), "forward", _among(product, kept, int(layer.weight.shape[0])))]


def _among(product: Callable[[Tensor], Tensor], kept: Tensor, size: int) -> Callable[[Tensor], Tensor]:
    """(…, D) → (…, V) of a product (N, D) → (N, W)."""

    def forward(x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        found = rows.new_full((len(rows), size), NEVER)
        return found.index_copy_(1, kept, product(rows)).view(*x.shape[:-1], size)

    return forward
