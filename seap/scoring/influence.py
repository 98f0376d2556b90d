"""Block influence: how much a layer turns the hidden state (ShortGPT, Men et al., 2024, arXiv 2403.03853, eq. 1).

BI_l = 1 − E[x_lᵀ x_{l+1} / (‖x_l‖ ‖x_{l+1}‖)], the mean over the tokens that count, x_l the hidden state before layer l
and x_{l+1} the one after it; cosines in float32. ShortGPT measures it on PG-19; here on the text that all methods get.
Shapes: N tokens, D hidden size.
"""

import torch
from torch.nn.functional import cosine_similarity
from tqdm import tqdm

from seap.activations.layerwise import Walk
from seap.activations.stats import Rows
from seap.models.arch import Arch
from seap.models.modes import evaluation


def block_influence(arch: Arch, rows: Rows, *, batch_tokens: int, progress: bool = False) -> list[float]:
    """The influence of every layer, from 0 (the state only grows or shrinks) to 2."""
    found = []
    with evaluation(arch.model):
        walk = Walk.start(arch, rows, batch_tokens=batch_tokens, apart=False)
        layers = range(len(arch.layers))
        for layer in tqdm(layers, desc="block influence", unit="layer", disable=not progress, leave=False):
            total, count = 0.0, 0
            for index, before in enumerate(walk.hidden):
                after = walk.run(layer, index)
                given, turned = (walk.real(index, state).float() for state in (before, after))
                cosines = cosine_similarity(given, turned, dim=-1).cpu()
                total += float(cosines.sum(dtype=torch.float64))
                count += len(cosines)
                walk.hidden[index] = after
            found.append(1 - total / count)
    return found
