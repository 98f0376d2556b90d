"""How like a pruned model is to the dense one: loss, KL divergence and the same first token, in one forward pass.

What the dense model says is computed once per test: the inputs of its output layer are kept, and its logits made of
them again. Shapes: B rows, T tokens, N scored tokens of a batch, D hidden size, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import psutil
import torch
from torch import Tensor

from seap.evaluation.metrics import (
    Figure,
    Row,
    fit_batch_tokens,
    halving,
    in_batches,
    predictions,
    ratio_of,
    scored_tokens,
)
from seap.text.corpus import Batch

States = list[Tensor]


class Reference:
    """The dense model that others are compared to, and the inputs of its output layer on the tests seen so far.

    They are kept on the CPU in the model's dtype, D numbers per scored token: `limit` bytes at most over all tests (by
    default a quarter of the memory that is free now). A test beyond that, or a model whose logits can't be made of them
    exactly, gets a forward pass every time; the figures are the same.
    """

    def __init__(self, model: Any, *, limit: int | None = None) -> None:
        self.model = model
        self.room = psutil.virtual_memory().available // 4 if limit is None else limit
        self.kept: dict[tuple[Row, ...], States | None] = {}

    def logits(self, rows: Sequence[Row], places: Sequence[int], batch: Batch, scored: Tensor) -> Tensor:
        """Of the batch's scored tokens, (N, V) in float32. `places`: where the batch's rows are in `rows`."""
        key = tuple(rows)
        if key not in self.kept:
            self.kept[key] = self._states(rows)
        states = self.kept[key]
        if states is None:
            logits, _ = predictions(self.model, batch)
            return logits[scored.to(logits.device)]
        return logits_of(self.model, torch.cat([states[i] for i in places]))

    def _states(self, rows: Sequence[Row]) -> States | None:
        """The states of every row, or None where they can't be kept or used."""
        head = getattr(self.model, "get_output_embeddings", lambda: None)()
        if head is None or self.room <= 0:
            return None
        limit = fit_batch_tokens(self.model) // 2
        found = halving(lambda size: keep_states(self.model, head, rows, size, self.room), limit)
        if found is not None:
            self.room -= sum(part.nbytes for part in found)
        return found


@torch.no_grad()
def keep_states(model: Any, head: Any, rows: Sequence[Row], batch_tokens: int, room: int) -> States | None:
    """Each row's inputs of the output layer at its scored tokens; None where they need more than `room` bytes.

    None, too, where the first batch's logits don't come out of its states bit for bit.
    """
    found: dict[int, Tensor] = {}
    seen: list[Tensor] = []
    num_tokens = sum(len(row.ids) - row.start for row in rows)
    for places, batch in in_batches(rows, batch_tokens):
        handle = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            logits, _ = predictions(model, batch)
        finally:
            handle.remove()
        if not found:
            if len(seen) != 1 or num_tokens * seen[0].shape[-1] * seen[0].element_size() > room:
                return None
            if not torch.equal(logits_of(model, seen[0]), logits):
                return None
        scored = scored_tokens(batch, [rows[i].start for i in places])
        kept = seen.pop()[scored.to(logits.device)].cpu().split(scored.sum(1).tolist())
        found |= dict(zip(places, kept, strict=True))
    return [found[i] for i in range(len(rows))]


@torch.no_grad()
def logits_of(model: Any, states: Tensor) -> Tensor:
    """Float32 logits (…, V) of inputs (…, D) of the output layer, with whatever the model does after that layer.

    They take the place of the one that the model makes of a single token.
    """
    head, device = model.get_output_embeddings(), next(model.parameters()).device
    wanted = states if states.ndim == 3 else states[None]
    handle = head.register_forward_pre_hook(lambda _, inputs: (wanted.to(inputs[0].device), *inputs[1:]))
    try:
        logits = model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device), use_cache=False).logits.float()
    finally:
        handle.remove()
    return logits if states.ndim == 3 else logits[0]


@torch.no_grad()
def loss_and_likeness(
    model: Any, reference: Reference, rows: Sequence[Row], *, batch_tokens: int | None = None
) -> tuple[Figure, Figure, Figure]:
    """Loss and KL(reference ‖ model) per scored token (nats), and the share of tokens where both rank one first.

    The loss is that of `metrics.loss`. n is the number of rows.
    """

    def run(limit: int) -> Tensor:
        sums = torch.zeros(len(rows), 4, dtype=torch.float64)  # loss, KL, same first token, tokens
        for places, batch in in_batches(rows, limit):
            scored = scored_tokens(batch, [rows[i].start for i in places])
            logits, targets = predictions(model, batch)
            inside, counts = scored.to(logits.device), scored.sum(1)
            expected = reference.logits(rows, places, batch, scored).to(logits.device)
            per_token = compare_logits(logits[inside], expected, targets[inside])
            sums[places, :3] = torch.stack([part.sum(0) for part in per_token.split(counts.tolist())])
            sums[places, 3] = counts.double()
        return sums

    sums = halving(run, batch_tokens or fit_batch_tokens(model) // 2)
    loss, kl, same = (ratio_of(sums[:, [i, 3]].tolist()) for i in range(3))
    return loss, kl, same


def compare_logits(logits: Tensor, expected: Tensor, targets: Tensor) -> Tensor:
    """Logits (N, V) against the expected ones → (N, 3) in float64: loss, KL divergence, whether the first is the same.

    targets: token ids (N,).
    """
    same = logits.argmax(-1) == expected.argmax(-1)
    log_q, log_p = logits.log_softmax(-1), expected.log_softmax(-1)
    loss = -log_q.gather(-1, targets[:, None])[:, 0]
    kl = log_p.sub(log_q).mul_(log_p.exp_()).sum(-1)
    return torch.stack([loss, kl, same], dim=-1).cpu().double()
