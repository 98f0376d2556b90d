"""A model on a task's held-out texts, text by text, and what a pruned one has lost there against the dense one."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from seap.errors import UserError
from seap.evaluation.evaluate import Exam, accuracy
from seap.evaluation.metrics import Figure, fit_batch_tokens, halving, in_batches, predictions, scored_tokens
from seap.evidence.promise import Damage, accuracy_drop, disagreement, loss_increase

KINDS = ("max_loss", "max_acc_drop", "min_agreement")


@dataclass(frozen=True)
class Outcome:
    """One model on one exam. `losses` (nats) and `tokens` are sums of each text, `firsts` the ids of each window."""

    losses: tuple[float, ...]
    tokens: tuple[int, ...]
    firsts: tuple[Tensor, ...]
    right: Figure | None

    @property
    def loss(self) -> float:
        """Per token."""
        return sum(self.losses) / sum(self.tokens)


def observe(model: Any, exam: Exam, kinds: Collection[str] = KINDS) -> Outcome:
    """Run a model on what these kinds of promises need: windows for loss and agreement, questions for accuracy."""
    windows = {"max_loss", "min_agreement"} & set(kinds)
    sums, firsts = _read(model, exam) if windows else ([], [])
    texts = sorted(set(exam.owners))  # in one order, however a tokenizer cuts them into windows
    losses, tokens = dict.fromkeys(texts, 0.0), dict.fromkeys(texts, 0)
    for owner, total, first in zip(exam.owners, sums, firsts, strict=False):
        losses[owner] += total
        tokens[owner] += len(first)
    right = accuracy(model, exam)[0] if "max_acc_drop" in kinds else None
    return Outcome(tuple(losses.values()), tuple(tokens.values()), tuple(firsts), right)


@torch.no_grad()
def _read(model: Any, exam: Exam) -> tuple[list[float], list[Tensor]]:
    """Summed loss of each window, and the token that the model ranks first at each of its scored places."""
    rows = exam.windows

    def run(limit: int) -> tuple[list[float], list[Tensor]]:
        sums, firsts = [0.0] * len(rows), [torch.empty(0, dtype=torch.long)] * len(rows)
        for places, batch in in_batches(rows, limit):
            logits, targets = predictions(model, batch)
            scored = scored_tokens(batch, [rows[i].start for i in places]).to(logits.device)
            losses = functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none").double() * scored
            chosen = logits.argmax(-1)
            for place, total, first, mine in zip(places, losses.sum(1).tolist(), chosen, scored, strict=True):
                sums[place], firsts[place] = total, first[mine].cpu()
        return sums, firsts

    return halving(run, exam.options.test_batch_tokens or fit_batch_tokens(model))


def damage(kind: str, exam: Exam, dense: Outcome, pruned: Outcome) -> Damage:
    """What was lost of one kind, paired text by text (item by item)."""
    if kind == "max_loss":
        return loss_increase(dense.losses, pruned.losses)
    if kind == "max_acc_drop":
        assert dense.right is not None and pruned.right is not None
        return accuracy_drop(dense.right.values, pruned.right.values)
    differing = dict.fromkeys(sorted(set(exam.owners)), 0)
    for owner, before, after in zip(exam.owners, dense.firsts, pruned.firsts, strict=True):
        differing[owner] += int((before != after).sum())
    return disagreement(tuple(differing.values()), dense.tokens)


def check_dense(kind: str, exam: Exam, dense: Outcome, bound: float) -> None:
    """Raise UserError where the dense model is too bad for its damage to mean anything."""
    name = exam.test.name
    if kind == "max_acc_drop":
        assert dense.right is not None
        items = exam.test.items
        choices = {"multiple-choice": sum(1 / len(item.choices or "?") for item in items) / len(items)}
        chance = choices.get(exam.test.metric, 0.25 if exam.test.metric == "continuation" else 0.0)
        if dense.right.value <= chance + bound:
            raise UserError(
                f"task {name}: the dense model itself gets {100 * dense.right.value:.1f}% right, where guessing gets "
                f"{100 * chance:.0f}%; a drop of at most {100 * bound:.3g} points would promise nothing. "
                "Try --max-loss or --min-agreement"
            )
    elif not 0 < dense.loss < float("inf"):
        raise UserError(f"task {name}: the dense model's own loss is {dense.loss}; try --dtype float32")
