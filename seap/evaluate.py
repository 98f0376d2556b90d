"""What a model can do: loss per token on text, and answers that it generates.

Shapes: B rows, T tokens, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from tqdm import tqdm

from seap.corpus import batches
from seap.tasks import Item


@dataclass(frozen=True)
class Figure:
    """A mean with its standard error over n texts or items."""

    value: float
    stderr: float
    n: int


def mean_of(values: Sequence[float]) -> Figure:
    data = torch.tensor(values, dtype=torch.float64)
    spread = float(data.std() / math.sqrt(len(values))) if len(values) > 1 else math.nan
    return Figure(float(data.mean()), spread, len(values))


@torch.inference_mode()
def text_losses(model: Any, rows: Sequence[Sequence[int]], *, batch_tokens: int = 8192) -> list[tuple[float, int]]:
    """Summed cross-entropy (nats) and number of predicted tokens of each row, longest row first."""
    device = next(model.parameters()).device
    found: list[tuple[float, int]] = []
    for batch in batches(rows, batch_tokens=batch_tokens):
        ids, mask = batch.ids.to(device), batch.mask.to(device)
        logits = model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits.float()
        losses = functional.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
        real = mask[:, 1:]
        found += list(zip((losses * real).double().sum(1).tolist(), real.sum(1).tolist(), strict=True))
    return found


def loss(model: Any, rows: Sequence[Sequence[int]], *, batch_tokens: int = 8192) -> Figure:
    """Mean loss per predicted token over all rows (nats); n is the number of rows.

    The standard error is that of the ratio of sums, by linearisation over rows.
    """
    sums = torch.tensor(text_losses(model, rows, batch_tokens=batch_tokens), dtype=torch.float64)
    value = float(sums[:, 0].sum() / sums[:, 1].sum())
    n = len(sums)
    residuals = sums[:, 0] - value * sums[:, 1]
    stderr = float(residuals.square().sum().sqrt() / sums[:, 1].sum() * math.sqrt(n / (n - 1))) if n > 1 else math.nan
    return Figure(value, stderr, n)


def generated_answers(
    model: Any,
    tokenizer: Any,
    items: Sequence[Item],
    *,
    max_new_tokens: int = 24,
    batch_size: int = 64,
    progress: bool = False,
) -> list[str]:
    """Greedy answers to the items' prompts, up to the first line break, stripped; in the items' order."""
    prompts = [tokenizer(item.prompt or "", verbose=False)["input_ids"] for item in items]
    order = sorted(range(len(items)), key=lambda i: len(prompts[i]))
    answers = [""] * len(items)
    for start in tqdm(range(0, len(order), batch_size), disable=not progress, leave=False, desc="answers"):
        chosen = order[start : start + batch_size]
        text = _generate(model, tokenizer, [prompts[i] for i in chosen], max_new_tokens)
        for i, answer in zip(chosen, text, strict=True):
            answers[i] = answer.strip().split("\n")[0].strip()
    return answers


@torch.inference_mode()
def _generate(model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[str]:
    width = max(len(prompt) for prompt in prompts)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    device = next(model.parameters()).device
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    made = model.generate(ids, attention_mask=mask, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=pad)
    return tokenizer.batch_decode(made[:, width:], skip_special_tokens=True)


def answer_accuracy(model: Any, tokenizer: Any, items: Sequence[Item], **options: Any) -> Figure:
    """Share of items whose generated answer equals the gold one exactly."""
    answers = generated_answers(model, tokenizer, items, **options)
    return mean_of([float(got == (item.answer or "").strip()) for got, item in zip(answers, items, strict=True)])
