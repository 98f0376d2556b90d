"""Tokens per second of really sliced models: reading whole sequences (prefill) and writing token by token (decode).

Models are timed in turn within every repeat, after one repeat of warm-up, so that a busy machine slows all alike.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median, quantiles
from typing import Any

import torch

from seap.bench.graphs import GraphedStep
from seap.environment import clock
from seap.models.layouts import Layouts
from seap.models.modes import cache_name
from seap.models.prepack import prepacked

# how the compiler is set while compiled models run: weights prepacked as constants, and C++ between the kernels
ON_CPU = {"freezing": True, "cpp_wrapper": True}


def tokens_per_second(
    models: Mapping[str, Any], *, rows: int = 16, length: int = 256, repeats: int = 7
) -> dict[str, float]:
    """Tokens read per second (a forward over whole sequences, without the output layer), the median of repeats."""
    return _speeds(models, lambda model: prefill(model, rows, length), rows * length, repeats)


def compare_speed(
    models: Mapping[str, Any],
    *,
    batch: int = 1,
    length: int = 256,
    new_tokens: int = 32,
    repeats: int = 7,
    mode: str = "eager",
    phases: Sequence[str] = ("prefill", "decode"),
) -> dict[str, dict[str, dict[str, float]]]:
    """phase → name → `tokens_per_s`, and `ratio` to the first model: the median over repeats, and quartiles.

    mode: eager; prepacked (see `prepack_`), with a cache that isn't copied; or compile, whose decoding has a static
    cache (and CUDA graphs on a GPU, prepacked weights on a CPU); graphs, whose decoding is eager's kernels in a CUDA
    graph (`graphs.py`); auto, as prepacked, but only the weights that are faster so for this batch (`layouts.py`), and
    eager where no model is on a CPU.
    """
    if mode == "auto" and all(model.device.type != "cpu" for model in models.values()):
        mode = "eager"
    lengths = {name: getattr(model.config, "max_position_embeddings", None) for name, model in models.items()}
    room = min([length + new_tokens, *[value for value in lengths.values() if value]])
    new_tokens = min(new_tokens, room // 2)
    length = min(length, room - new_tokens)
    runs: dict[str, tuple[Callable[[Runner], float], int]] = {
        "prefill": (lambda runner: runner.prefill(batch, length), batch * length),
        "decode": (lambda runner: runner.decode(batch, length, new_tokens), batch * new_tokens),
    }
    found = {}
    with contextlib.ExitStack() as stack:
        if mode in ("prepacked", "auto"):
            pays = partial(Layouts().pays, rows=(batch,)) if mode == "auto" else lambda weight: True
            for model in models.values():
                stack.enter_context(prepacked(model, pays=pays))
        made = {name: Runner.of(model, mode, length + new_tokens) for name, model in models.items()}
        for phase in phases:
            run, count = runs[phase]
            times = _times(made, run, repeats)
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


@dataclass
class Runner:
    """A model as it is run: its forward pass, eager or compiled, and what makes the cache, where it isn't its own."""

    model: Any
    forward: Callable[..., Any]
    read: Callable[..., Any]
    cache: Callable[[], Any] | None = None

    @classmethod
    def of(cls, model: Any, mode: str = "eager", room: int = 0, **compiling: Any) -> "Runner":
        """room: tokens that a compiled model's cache has space for. compiling: for `torch.compile`."""
        if mode == "eager":
            return cls(model, model, model.base_model)
        if mode in ("prepacked", "auto"):
            from seap.models.cache import cache_for

            return cls(model, model, model.base_model, lambda: cache_for(model))
        from transformers import StaticCache

        static = StaticCache(config=model.config, max_cache_len=room)

        def emptied() -> StaticCache:
            static.reset()
            return static

        if mode == "graphs":
            return cls(model, GraphedStep(model, static), model.base_model, emptied)
        import torch._inductor.config as inductor

        on_gpu = model.device.type == "cuda"
        decoding = compiling or {"mode": "reduce-overhead" if on_gpu else "default"}
        torch._dynamo.reset()  # or the models before this one count towards its limit of recompilations
        compiled = torch.compile(model, dynamic=False, **decoding)
        read = torch.compile(model.base_model, dynamic=False, **compiling)
        if not (compiling or on_gpu):
            compiled, read = (inductor.patch(ON_CPU)(run) for run in (compiled, read))
        return cls(model, compiled, read, emptied)

    @torch.no_grad()
    def prefill(self, rows: int, length: int) -> float:
        """Seconds that a forward pass over whole sequences takes, without the output layer."""
        ids = _ids(self.model, rows, length)
        started = clock(ids.device)
        self.read(ids, use_cache=False)
        return clock(ids.device) - started

    def decode(self, rows: int, length: int, new_tokens: int) -> float:
        """Seconds of `new_tokens` greedy steps after a prompt of `length` tokens, whose own time isn't counted."""
        return self.write(_ids(self.model, rows, length), new_tokens)[1]

    @torch.no_grad()
    def write(self, ids: torch.Tensor, new_tokens: int) -> tuple[torch.Tensor, float]:
        """Greedy tokens after the first one that follows the prompt, and the seconds that they took."""
        name = cache_name(self.model)
        known = {} if self.cache is None else {name: self.cache()}
        found = self.model(ids, use_cache=True, logits_to_keep=1, **known)
        ids, made = found.logits[:, -1:].argmax(-1), []
        started = clock(ids.device)
        for _ in range(new_tokens):
            found = self.forward(ids, use_cache=True, **{name: found[name]})
            ids = found.logits[:, -1:].argmax(-1)
            made.append(ids)
        return torch.cat(made, 1), clock(ids.device) - started


def prefill(model: Any, rows: int, length: int) -> float:
    """Seconds that a forward pass over whole sequences takes."""
    return Runner.of(model).prefill(rows, length)


def decode(model: Any, rows: int, length: int, new_tokens: int) -> float:
    """Seconds that `new_tokens` greedy steps take after a prompt of `length` tokens."""
    return Runner.of(model).decode(rows, length, new_tokens)
