"""`seap bench --calibration`: what calibration costs beside a bare forward pass, and beside one prompt at a time.

One prompt at a time, with hooks that copy each consumer's input to the host, is how the published code calibrates.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from seap import checkpoint
from seap.arch import describe
from seap.calibration import calibrate
from seap.config import Calibration
from seap.corpus import Corpus, batches
from seap.environment import provenance
from seap.layerwise import evaluation, model_inputs
from seap.shapes import is_shape, random_model
from seap.speed import clock

PROMPT_TOKENS = 64  # of the prompts that are taken one at a time


def model_or_shape(name: str, loading: Mapping[str, Any]) -> Any:
    """A model by its folder or Hub id, or one of a public shape with random weights (`llama-2-7b`, `llama:0.5b`)."""
    if Path(name).exists() or not is_shape(name):
        return checkpoint.load_for_work(name, **loading)[0]
    device = checkpoint.check_device(loading.get("device", "auto"))
    return random_model(name, dtype=loading.get("dtype", "auto"), device=device)


def bench_calibration(model: Any, *, tokens: int = 8192, length: int = 256, repeats: int = 3) -> dict[str, Any]:
    """Tokens per second of a bare forward pass and of calibration on packed rows, and of both ways on short prompts.

    All are interleaved, after one run of each as a warm-up; medians.
    """
    packed, prompts = random_corpus(model, tokens, length), random_corpus(model, tokens, PROMPT_TOKENS)
    plain, second = Calibration(), Calibration(second_moments=True)
    runs: dict[str, Callable[[], Any]] = {
        "forward": lambda: forward(model, packed, plain),
        "calibration": lambda: calibrate(model, packed, plain, progress=False),
        "second_moments": lambda: calibrate(model, packed, second, progress=False),
        "prompts": lambda: calibrate(model, prompts, plain, progress=False),
        "one_by_one": lambda: one_by_one(model, prompts),
    }
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            started = clock(model.device)
            run()
            taken[name].append(clock(model.device) - started)
    seconds = {name: median(times[1:]) for name, times in taken.items()}
    return {
        "kind": "bench-calibration",
        "num_tokens": packed.num_tokens,
        "prompt_tokens": PROMPT_TOKENS,
        **{f"{name}_tokens_per_s": packed.num_tokens / value for name, value in seconds.items()},
        **{f"{name}_cost": seconds[name] / seconds["forward"] for name in ("calibration", "second_moments")},
        "times_one_by_one": seconds["one_by_one"] / seconds["prompts"],
        **provenance(),
    }


def random_corpus(model: Any, tokens: int, length: int) -> Corpus:
    """About so many tokens in rows of one length."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(0, model.config.vocab_size, (max(tokens // length, 1), length), generator=generator)
    return Corpus("random", tuple(tuple(row) for row in drawn.tolist()), "random")


@torch.no_grad()
def forward(model: Any, corpus: Corpus, options: Calibration) -> None:
    """A bare forward pass, without the output layer."""
    arch = describe(model)
    for batch in batches(corpus.rows, batch_tokens=options.batch_tokens):
        model.base_model(**model_inputs(arch, batch))


@torch.no_grad()
def one_by_one(model: Any, corpus: Corpus) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and variance of each consumer's input from copies on the host, one prompt after the other.

    axis key → ((C,), (C,)) for C inputs, averaged over prompts as the published code does.
    """
    arch = describe(model)
    copies: dict[str, Tensor] = {}
    sums = {axis.key: (torch.zeros(axis.num_inputs), torch.zeros(axis.num_inputs)) for axis in arch.axes}

    def copying(key: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def copy(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            copies[key] = inputs[0].detach().to("cpu", torch.float32, copy=True)

        return copy

    handles = [arch.consumer(axis).register_forward_pre_hook(copying(axis.key)) for axis in arch.axes]
    try:
        with evaluation(model):
            for row in corpus.rows:
                model(torch.tensor([row], device=model.device))
                for key, (mean, variance) in sums.items():
                    values = copies[key].reshape(-1, mean.numel())
                    mean.add_(values.mean(0))
                    variance.add_(values.var(0, correction=0))
    finally:
        for handle in handles:
            handle.remove()
    count = len(corpus.rows)
    return {key: (mean / count, variance / count) for key, (mean, variance) in sums.items()}
