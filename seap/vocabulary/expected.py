"""Tokens that a task's text may have beyond those that it was seen to have: those that the model expects there.

A few hundred texts use few of the rare words of their subject. But at every place of them the model gives all tokens a
probability, and the sum of these over places is how often it expects each: words of the task's kind and language come
first, whatever the tokenizer was trained on.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from seap.models.modes import evaluation
from seap.text.items import Item
from seap.text.options import Calibration
from seap.vocabulary.counts import LONGEST, row_of, shortened
from seap.vocabulary.measuring import scored

TOKENS = 4096  # of each task's text that are looked at


def expected_uses(
    model: Any, tokenizer: Any, texts: Mapping[str, Sequence[Item]], reading: Calibration, progress: bool
) -> Tensor:
    """float64 (V,): the probability of each token at the places of the tasks' texts, the mean over places, then tasks.

    Zeros where no text has a place to look at.
    """
    total = torch.zeros(model.config.vocab_size, dtype=torch.float64)
    with evaluation(model):
        for items in texts.values():
            rows = looked_at(tokenizer, items, reading)
            own, places = torch.zeros_like(total), 0
            for batch in scored(model, rows, "expected tokens", progress):
                own += batch.logits.softmax(-1).sum(0, dtype=torch.float64).cpu()
                places += len(batch.logits)
            total += own / max(places, 1) / len(texts)
    return total


def looked_at(tokenizer: Any, items: Sequence[Item], reading: Calibration) -> list[tuple[int, ...]]:
    """Texts drawn by seed until they have `TOKENS`, none longer than `LONGEST`."""
    rows: list[tuple[int, ...]] = []
    left = TOKENS
    for item in random.Random(reading.seed).sample(list(items), len(items)):
        if left <= 0:
            break
        row = row_of(tokenizer, shortened(item), reading)
        if 1 < len(row) <= LONGEST:
            rows.append(row)
            left -= len(row)
    return rows
