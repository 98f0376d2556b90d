"""The order of units in which every network of several is few contiguous slices.

Units that the same networks keep lie together (they are a block, and have one signature: which networks keep them).
Between two neighbouring blocks, a slice begins or ends for every network that keeps one and not the other: the sum of
those over the whole row is twice the number of slices. The blocks are therefore put on a short path, by Hamming
distance, from nothing to nothing: nearest neighbour, then 2-opt. For two networks one slice each is always reached.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

MOST_IMPROVED = 128  # blocks up to which 2-opt is tried


def slices_of(indices: Tensor) -> list[tuple[int, int]]:
    """Runs of consecutive numbers: [4, 5, 6, 9] → [(4, 7), (9, 10)]."""
    if not len(indices):
        return []
    breaks = (indices.diff() != 1).nonzero().flatten() + 1
    bounds = [0, *breaks.tolist(), len(indices)]
    return [(int(indices[a]), int(indices[b - 1]) + 1) for a, b in pairwise(bounds)]


def unit_order(masks: Sequence[Tensor]) -> Tensor:
    """A permutation (units,) of one axis; masks: bool (units,), one per network. Ties keep the dense order."""
    kept = torch.stack([*masks]).t()
    signatures, block = torch.unique(kept, dim=0, return_inverse=True)
    path = _short_path(signatures)
    rank = torch.empty(len(path), dtype=torch.long)
    rank[torch.tensor(path)] = torch.arange(len(path))
    return torch.sort(rank[block], stable=True).indices


def _short_path(signatures: Tensor) -> list[int]:
    """An order of the blocks (bool (blocks, networks)), short from and to the signature of nothing."""
    nothing = torch.zeros(1, signatures.shape[1])
    points = torch.cat([nothing, signatures.float()])
    far = torch.cdist(points, points, p=1).long().tolist()
    left, path = list(range(1, len(points))), [0]
    while left:
        nearest = min(left, key=lambda place: far[path[-1]][place])
        left.remove(nearest)
        path.append(nearest)
    if len(path) <= MOST_IMPROVED:
        path = _untangled(path, far)
    return [place - 1 for place in path[1:]]


def _untangled(path: list[int], far: list[list[int]]) -> list[int]:
    """2-opt: parts turned round as long as that makes the round trip shorter."""
    improved = True
    while improved:
        improved = False
        for i in range(1, len(path) - 1):
            for j in range(i + 1, len(path)):
                before, after = path[i - 1], path[(j + 1) % len(path)]
                if far[before][path[j]] + far[path[i]][after] < far[before][path[i]] + far[path[j]][after]:
                    path[i : j + 1] = path[i : j + 1][::-1]
                    improved = True
    return path
