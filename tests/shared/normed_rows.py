"""Second moments behind a norm, held against the rows that they are of."""

from typing import Any

import torch

from seap.activations.moments import Moments


def check_normed(found: Moments, activations: torch.Tensor, consumer: Any) -> None:
    """They are of h / rms(W h), about zero."""
    with torch.no_grad():
        outputs = consumer(activations.to(consumer.weight)).double()
    rows = activations / outputs.square().mean(1, keepdim=True).sqrt()
    assert found.co is not None and found.count == len(rows) and not found.mean.any()
    torch.testing.assert_close(found.co, rows.t() @ rows, atol=1e-4 * float(found.m2.max()), rtol=1e-3)
    torch.testing.assert_close(found.co.diagonal(), found.m2, atol=1e-4 * float(found.m2.max()), rtol=1e-3)
