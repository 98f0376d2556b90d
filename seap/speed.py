"""Tokens per second of really sliced models: reading whole sequences (prefill) and writing token by token (decode).

Models are timed in turn within every repeat, after one repeat of warm-up, so that a busy machine slows all alike.
"""

import time
from collections.abc import Callable, Mapping
from statistics import median, quantiles
from typing import Any

import torch

PHASES = ("prefill", "decode")


def tokens_per_second(
    models: Mapping[str, Any], *, rows: int = 16, length: int = 256, repeats: int = 7
) -> dict[str, float]:
    """Tokens read per second (a forward over whole sequences, without the output layer), the median of repeats."""
    return _speeds(models, lambda model: prefill(model, rows, length), rows * length, repeats)


def compare_speed(
    models: Mapping[str, Any], *, batch: int = 1, length: int = 256, new_tokens: int = 32, repeats: int = 7
) -> dict[str, dict[str, dict[str, float]]]:
    """phase → name → `tokens_per_s`, and `ratio` to the first model: the median over repeats, and quartiles."""
    lengths = {name: getattr(model.config, "max_position_embeddings", None) for name, model in models.items()}
    room = min([length + new_tokens, *[value for value in lengths.values() if value]])
    new_tokens = min(new_tokens, room // 2)
    length = min(length, room - new_tokens)
    runs: dict[str, tuple[Callable[[Any], float], int]] = {
        "prefill": (lambda model: prefill(model, batch, length), batch * length),
        "decode": (lambda model: decode(model, batch, length, new_tokens), batch * new_tokens),
    }
    found = {}
    for phase, (run, count) in runs.items():
        times = _times(models, run, repeats)
        first = next(iter(times.values()))
        found[phase] = {name: _figures(first, taken, count) for name, taken in times.items()}
    return found


def _figures(first: list[float], taken: list[float], count: int) -> dict[str, float]:
    ratios = [one / own for one, own in zip(first, taken, strict=True)]
    low, middle, high = quantiles(ratios, method="inclusive") if len(ratios) > 1 else ratios * 3
    ratio = {"ratio": middle, "ratio_low": low, "ratio_high": high}
    return {"tokens_per_s": count / median(taken)} | ratio


def _times(models: Mapping[str, Any], run: Callable[[Any], float], repeats: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(repeats + 1):
        for name, model in models.items():
            times[name].append(run(model))
    return {name: taken[1:] for name, taken in times.items()}


def _speeds(models: Mapping[str, Any], run: Callable[[Any], float], count: int, repeats: int) -> dict[str, float]:
    return {name: count / median(taken) for name, taken in _times(models, run, repeats).items()}


def _ids(model: Any, rows: int, length: int) -> torch.Tensor:
    high = min(200, model.config.vocab_size)
    ids = torch.randint(min(10, high - 1), high, (rows, length), generator=torch.Generator().manual_seed(0))
    return ids.to(next(model.parameters()).device)


def clock(device: torch.device) -> float:
    """Seconds, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@torch.inference_mode()
def prefill(model: Any, rows: int, length: int) -> float:
    """Seconds that a forward pass over whole sequences takes."""
    ids = _ids(model, rows, length)
    started = clock(ids.device)
    model.base_model(ids, use_cache=False)
    return clock(ids.device) - started


@torch.inference_mode()
def decode(model: Any, rows: int, length: int, new_tokens: int) -> float:
    """Seconds that `new_tokens` greedy steps take after a prompt of `length` tokens, whose own time isn't counted."""
    found = model(_ids(model, rows, length), use_cache=True)
    name = "cache" if "cache" in found else "past_key_values"  # as transformers calls it from 5.24 on, and before
    ids = found.logits[:, -1:].argmax(-1)
    started = clock(ids.device)
    for _ in range(new_tokens):
        found = model(ids, use_cache=True, **{name: found[name]})
        ids = found.logits[:, -1:].argmax(-1)
    return clock(ids.device) - started
