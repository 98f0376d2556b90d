"""What a consumer reads as the norm behind it sees it: each row over the size of what the consumer writes.

Where a norm stands between a consumer and the stream (Gemma 2 and 3, OLMo 2, EXAONE 4), an error e of the output
y = W h reaches the stream as about e / rms(y), and the loss's gradient g at y is in proportion to 1 / rms(y). Tokens
differ in rms(y) by far, so that E[eᵀ g gᵀ e] is not what E[g gᵀ] and E[e eᵀ] say. Of h / rms(y) and g · rms(y) it
nearly is: least squares, scores and damage go by these there. They are about zero, without a bias, which would have to
be over rms(y) too.
Shapes: N tokens, C inputs and O outputs of the consumer, B blocks of inputs.
"""

import torch
from torch import Tensor

from seap.activations.accumulator import Accumulator
from seap.activations.moments import Moments

LEAST = 1e-6  # size of an output, so that nothing is divided by 0


def sizes_of(outputs: Tensor) -> Tensor:
    """rms(y) float32 (…, 1) of outputs (…, O)."""
    return outputs.float().square().mean(-1, keepdim=True).sqrt().clamp_min(LEAST)


class NormedAccumulator:
    """Takes in rows with the outputs made of them: their moments as they are, and second moments of them normed.

    blocks: of the co-moment matrix (see `Moments`).
    """

    def __init__(self, size: int, *, blocks: int, device: torch.device | str = "cpu") -> None:
        self._plain = Accumulator(size, device=device)
        self._normed = Accumulator(size, blocks=blocks, device=device)

    @property
    def is_finite(self) -> Tensor:
        """A bool () on the device."""
        return self._plain.is_finite & self._normed.is_finite

    def update_(self, rows: Tensor, outputs: Tensor, keep: Tensor | None = None) -> None:
        """Take in rows (N, C) and what the consumer makes of them (N, O), or those that keep, bool (N,), marks."""
        self._plain.update_(rows, keep)
        self._normed.update_(rows.float() / sizes_of(outputs), keep)

    def moments(self) -> Moments:
        """Of all rows, without co-moments."""
        return self._plain.moments()

    def normed(self) -> Moments:
        """Of all rows normed, about zero. Ends the accumulation."""
        return self._normed.moments().about_zero()
