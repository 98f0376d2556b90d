"""What a model can do: loss, multiple choice, generated answers, true continuations.

Shapes: B rows, T tokens, V vocabulary.
"""

import math
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from seap.errors import UserError
from seap.evaluation.options import Evaluation
from seap.text.corpus import Batch, batches
from seap.text.encode import in_template, prompt_ids
from seap.text.items import Item
from seap.text.options import Reading
from seap.text.rows import CountedRow
from seap.text.tokens import encode

Result = TypeVar("Result")
NUMBER = re.compile(r"[-+]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?(?:[eE][-+]?[0-9]{1,3})?|[-+]?\.[0-9]+")
PLAIN = Reading()  # multiple choice is in no template unless that is asked for


@dataclass(frozen=True)
class Figure:
    """A mean with its standard error over n independent texts or items."""

    value: float
    stderr: float
    n: int
    values: tuple[float, ...] = field(default=(), repr=False, compare=False)  # of each item, where it is a mean


@dataclass(frozen=True)
class Row:
    """Token ids, of which those from `start` on are scored (never the first one: nothing predicts it).

    Of a `CountedRow` only those that a counted place predicts.
    """

    ids: tuple[int, ...]
    start: int = 1


def mean_of(values: Sequence[float]) -> Figure:
    data = torch.tensor(values, dtype=torch.float64)
    spread = float(data.std() / math.sqrt(len(values))) if len(values) > 1 else math.nan
    return Figure(float(data.mean()), spread, len(values), tuple(values))


def ratio_of(sums: Sequence[tuple[float, int]]) -> Figure:
    """Σ a / Σ b over rows, such as loss per token; standard error by linearisation over the rows."""
    data = torch.tensor(sums, dtype=torch.float64)
    total, n = float(data[:, 1].sum()), len(data)
    value = float(data[:, 0].sum()) / total
    residuals = data[:, 0] - value * data[:, 1]
    stderr = float(residuals.square().sum().sqrt()) / total * math.sqrt(n / (n - 1)) if n > 1 else math.nan
    return Figure(value, stderr, n)


def fit_batch_tokens(model: Any) -> int:
    """How many tokens a forward pass may hold: logits in float32, thrice, in a quarter of the free memory."""
    parameter = next(model.parameters())
    if parameter.device.type == "cuda":
        free, most = torch.cuda.mem_get_info(parameter.device)[0], 8192
    else:
        import psutil

        free, most = psutil.virtual_memory().available, 2048  # more is slower on a CPU
    return int(min(max(free / 4 / (12 * model.config.vocab_size), 256), most))


def halving(run: Callable[[int], Result], batch_tokens: int) -> Result:
    """Run with so many tokens a batch, and with half as many whenever the GPU runs out of memory."""
    while True:
        try:
            return run(batch_tokens)
        except torch.cuda.OutOfMemoryError:
            if batch_tokens < 2:
                raise
            torch.cuda.empty_cache()
            batch_tokens //= 2


def windows(ids: Sequence[int], *, length: int, stride: int | None = None) -> Iterator[Row]:
    """Cut a text into windows of `length` tokens; each scores its last `stride` (the first window all of it)."""
    stride = stride or length
    for begin in range(0, max(len(ids) - 1, 1), stride):
        end = min(begin + length, len(ids))
        part = ids[begin:end]
        yield Row(
            part if isinstance(part, CountedRow) else tuple(part),
            1 if begin == 0 or stride == length else length - stride,
        )
        if end == len(ids):
            return


def predictions(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits that predict tokens 1 … T−1, (B, T−1, V) in float32, and the ids they predict (B, T−1)."""
    device = next(model.parameters()).device
    ids, mask = batch.ids.to(device), batch.mask.long().to(device)
    logits = model(input_ids=ids[:, :-1], attention_mask=mask[:, :-1], use_cache=False).logits
    return logits.float(), ids[:, 1:]


def scored_tokens(batch: Batch, starts: Sequence[int]) -> Tensor:
    """Bool (B, T−1): real tokens at or after each row's start that a counted place predicts."""
    positions = torch.arange(1, batch.ids.shape[1])
    return batch.mask[:, 1:] & batch.counted[:, :-1] & (positions[None] >= torch.tensor(starts)[:, None])


def in_batches(rows: Sequence[Row], batch_tokens: int) -> Iterator[tuple[list[int], Batch]]:
    """Batches with the places of their rows in `rows`."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids), reverse=True)
    done = 0
    for batch in batches([rows[i].ids for i in order], batch_tokens=batch_tokens):
        yield order[done : done + len(batch.ids)], batch
        done += len(batch.ids)


@torch.no_grad()
def log_likelihoods(model: Any, rows: Sequence[Row], *, batch_tokens: int | None = None) -> list[tuple[float, int]]:
    """Summed log-likelihood (nats) and number of the scored tokens of each row, in order."""

    def run(limit: int) -> list[tuple[float, int]]:
        found: list[tuple[float, int]] = [(0.0, 0)] * len(rows)
        for places, batch in in_batches(rows, limit):
            logits, targets = predictions(model, batch)
            scored = scored_tokens(batch, [rows[i].start for i in places])
            inside, counts = scored.to(logits.device), scored.sum(1).tolist()
            losses = functional.cross_entropy(logits[inside], targets[inside], reduction="none").cpu().double()
            for place, part in zip(places, losses.split(counts), strict=True):
                found[place] = (-float(part.sum()), len(part))
        return found

    return halving(run, batch_tokens or fit_batch_tokens(model))


def loss(model: Any, rows: Sequence[Row], *, batch_tokens: int | None = None) -> Figure:
    """Mean loss per scored token over all rows (nats); e to its power is the perplexity. n is the number of rows."""
    return ratio_of([(-total, count) for total, count in log_likelihoods(model, rows, batch_tokens=batch_tokens)])


def encode_pair(tokenizer: Any, context: str, continuation: str) -> Row:
    """Context and continuation tokenised together, the continuation scored: as lm-evaluation-harness does it.

    White space at the end of the context counts to the continuation; without a context, the beginning-of-text token
    (or the end-of-text one) stands for it.
    """
    if not context:
        ids = tokenizer(continuation, add_special_tokens=False, verbose=False)["input_ids"]
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        return Row(tuple(ids) if ids[:1] == [start] else (start, *ids))
    spaces = len(context) - len(context.rstrip())
    if spaces:
        context, continuation = context[:-spaces], context[-spaces:] + continuation
    whole = encode(tokenizer, context + continuation)
    start = len(encode(tokenizer, context))
    return Row(tuple(whole), max(start, 1))


def choice_rows(
    tokenizer: Any,
    items: Sequence[Item],
    reading: Reading = PLAIN,
    *,
    longest: int | None = None,
) -> list[Row]:
    """Every item's choices, one after the other, each after its question and a space; cut to `longest` tokens.

    In the chat template, where --template chat asks for it, a choice is what the assistant begins to say.
    """
    if items and in_template(tokenizer, items[0], reading):
        return _cropped([row for item in items for row in _said_choices(tokenizer, item, reading)], longest)
    pairs = [(item.contexts or (item.question or "",) * len(item.choices), item.choices) for item in items]
    asked = [pair for contexts, choices in pairs for pair in zip(contexts, choices, strict=True)]
    return _cropped([encode_pair(tokenizer, context, f" {choice}") for context, choice in asked], longest)


def _said_choices(tokenizer: Any, item: Item, reading: Reading) -> list[Row]:
    asked = prompt_ids(tokenizer, item, reading)
    said = [tokenizer(choice, add_special_tokens=False, verbose=False)["input_ids"] for choice in item.choices]
    return [Row((*asked, *ids), len(asked)) for ids in said]


def multiple_choice(
    model: Any, rows: Sequence[Row], items: Sequence[Item], *, batch_tokens: int | None = None
) -> tuple[Figure, Figure]:
    """Accuracy by log-likelihood of the choice, and by that per character (acc and acc_norm). rows: `choice_rows`."""
    scores = iter(log_likelihoods(model, rows, batch_tokens=batch_tokens))
    plain, normalised = [], []
    for item in items:
        totals = [next(scores)[0] for _ in item.choices]
        per_character = [total / len(choice) for total, choice in zip(totals, item.choices, strict=True)]
        plain.append(float(totals.index(max(totals)) == item.label))
        normalised.append(float(per_character.index(max(per_character)) == item.label))
    return mean_of(plain), mean_of(normalised)


def _cropped(rows: Sequence[Row], longest: int | None) -> list[Row]:
    """Rows cut from the left to what a model can read; the last token is only predicted, so it comes on top."""
    limit = (longest or max(len(row.ids) for row in rows)) + 1
    return [Row(row.ids[-limit:], max(row.start - max(len(row.ids) - limit, 0), 1)) for row in rows]


def continuation_rows(texts: Sequence[Sequence[int]], options: Evaluation) -> list[Row]:
    """Four rows per item: a context with its true continuation, then with three of other texts of the same task.

    Raises UserError when fewer than four texts are long enough.
    """
    length = options.context + options.continuation
    generator = random.Random(options.test_seed)
    long = [text for text in texts if len(text) >= length]
    if len(long) < 4:
        raise UserError(
            f"true continuation among four needs four texts of {length} tokens or more, got {len(long)}; "
            "lower --context or --continuation, or use --metric loss"
        )
    starts = [generator.randrange(len(text) - length + 1) for text in long]
    contexts = [tuple(t[s : s + options.context]) for t, s in zip(long, starts, strict=True)]
    endings = [tuple(t[s + options.context : s + length]) for t, s in zip(long, starts, strict=True)]
    rows: list[Row] = []
    for i in range(min(len(long), options.num_items)):
        others = generator.sample([j for j in range(len(long)) if j != i], 3)
        rows += [Row(contexts[i] + endings[j], options.context) for j in (i, *others)]
    return rows


def continuation_among_four(model: Any, rows: Sequence[Row], *, batch_tokens: int | None = None) -> Figure:
    """Share of contexts whose true continuation is likelier than three others of the same length. Chance is 0.25.

    rows: `continuation_rows`.
    """
    scores = [total for total, _ in log_likelihoods(model, rows, batch_tokens=batch_tokens)]
    fours = [scores[i : i + 4] for i in range(0, len(scores), 4)]
    return mean_of([float(max(four) == four[0]) for four in fours])


def generated_answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str | Sequence[int]],
    *,
    max_new_tokens: int = 24,
    batch_size: int = 64,
) -> list[str]:
    """What the model writes after each prompt (a text or token ids), greedily, in order."""
    encoded: list[Sequence[int]] = [
        encode(tokenizer, prompt) if isinstance(prompt, str) else prompt for prompt in prompts
    ]
    order = sorted(range(len(prompts)), key=lambda i: len(encoded[i]))
    written = [""] * len(prompts)

    def run(size: int) -> None:
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            texts = _generate(model, tokenizer, [encoded[i] for i in chosen], max_new_tokens)
            for i, text in zip(chosen, texts, strict=True):
                written[i] = text

    halving(run, batch_size)
    return written


@torch.no_grad()
def _generate(model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[str]:
    width = max(len(prompt) for prompt in prompts)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    device = next(model.parameters()).device
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    made = model.generate(ids, attention_mask=mask, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=pad)
    return tokenizer.batch_decode(made[:, width:], skip_special_tokens=True)


def extract_answer(text: str, pattern: str | None, gold: str) -> str:
    """The answer in a text: by the user's pattern, after GSM8K's #### where the gold answer has it, or the first line.

    Of a pattern the last match counts. Commas in numbers are dropped after ####.
    """
    if pattern is None and "####" in gold:
        return extract_answer(text, r"####\s*(-?[\d,.]*\d)", "").replace(",", "")
    if pattern is None:
        return text.strip().split("\n")[0].strip()
    found = re.findall(pattern, text)
    if not found:
        return ""
    last = found[-1]
    return (last if isinstance(last, str) else last[0]).strip()


def same_answer(text: str, gold: str) -> bool:
    """Equal as text, or as numbers where both are: 8.0 is 8, and 1,000 is 1000."""
    if text == gold:
        return True
    numbers = [Decimal(one.replace(",", "")) if NUMBER.fullmatch(one) else None for one in (text, gold)]
    return numbers[0] is not None and numbers[0] == numbers[1]


def exact_match(model: Any, tokenizer: Any, items: Sequence[Item], options: Evaluation) -> Figure:
    """Share of items whose generated answer is the gold one, both as `extract_answer` finds them: `same_answer`."""
    prompts = [prompt_ids(tokenizer, item, options) for item in items]
    texts = generated_answers(model, tokenizer, prompts, max_new_tokens=options.max_new_tokens)
    right = []
    for text, item in zip(texts, items, strict=True):
        gold = item.answer or ""
        wanted = extract_answer(gold, options.extract, gold)
        right.append(float(wanted != "" and same_answer(extract_answer(text, options.extract, gold), wanted)))
    return mean_of(right)
