"""`seap bench --calibration`: what calibration costs beside a bare forward pass, and beside one prompt at a time.

One prompt at a time, with hooks that copy to the host what linears read, is how SEAP's published code calibrates.
"""

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from seap.activations.calibration import calibrate
from seap.activations.layerwise import model_inputs
from seap.environment import clock, provenance
from seap.models import loader
from seap.models.arch import describe
from seap.models.families import refuse_experts
from seap.models.modes import evaluation
from seap.models.shapes import is_shape, random_model
from seap.text.corpus import Corpus, batches
from seap.text.options import Calibration

PROMPT_TOKENS = 64  # of the prompts that are taken one at a time
COLLECTED = 8  # prompts after which garbage is collected; that alone may take a second


def model_or_shape(name: str, loading: Mapping[str, Any]) -> Any:
    """A model by its folder or Hub id, or one of a public shape with random weights (`llama-2-7b`, `llama:0.5b`)."""
    if Path(name).exists() or not is_shape(name):
        return loader.load_for_work(name, **loading)[0]
    device = loader.check_device(loading.get("device", "auto"))
    return random_model(name, dtype=loading.get("dtype", "auto"), device=device)


def bench_calibration(model: Any, *, tokens: int = 8192, length: int = 256, repeats: int = 3) -> dict[str, Any]:
    """Tokens per second of a bare forward pass and of calibration on packed rows, and of both ways on short prompts.

    All are interleaved, after one run of each as a warm-up; medians.
    """
    packed, prompts = random_corpus(model, tokens, length), random_corpus(model, tokens, PROMPT_TOKENS)
    few = replace(prompts, rows=prompts.rows[:COLLECTED])
    plain, second = Calibration(), Calibration(second_moments=True)
    runs: dict[str, Callable[[], Any]] = {
        "forward": lambda: forward(model, packed, plain),
        "calibration": lambda: calibrate(model, packed, plain, progress=False),
        "second_moments": lambda: calibrate(model, packed, second, progress=False),
        "prompts": lambda: calibrate(model, prompts, plain, progress=False),
        "one_by_one": lambda: one_by_one(model, few),
        "one_by_one_uncollected": lambda: one_by_one(model, prompts, collect=False),
    }
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            started = clock(model.device)
            run()
            taken[name].append(clock(model.device) - started)
    seconds = {name: median(times[1:]) for name, times in taken.items()}
    seconds["one_by_one"] *= prompts.num_tokens / few.num_tokens
    return {
        "kind": "bench-calibration",
        "num_tokens": packed.num_tokens,
        "prompt_tokens": PROMPT_TOKENS,
        **{f"{name}_tokens_per_s": packed.num_tokens / value for name, value in seconds.items()},
        **{f"{name}_cost": seconds[name] / seconds["forward"] for name in ("calibration", "second_moments")},
        **{f"times_{name}": seconds[name] / seconds["prompts"] for name in ("one_by_one", "one_by_one_uncollected")},
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


@dataclass
class HostSums:
    """Mean, variance and mean square of rows on the host, in float32, each update in the passes of SEAP's own code."""

    count: int = 0
    mean: Tensor | None = None
    m2: Tensor | None = None
    mean_square: Tensor | None = None

    def update_(self, rows: Tensor) -> None:
        rows = rows.to(torch.float32)
        assert not torch.isinf(rows).any() and not torch.isnan(rows).any()
        count, mean, square = self.count + len(rows), rows.mean(0), rows.square().mean(0)
        if self.mean is None or self.m2 is None or self.mean_square is None:
            self.mean, self.m2, self.mean_square = mean, torch.zeros_like(mean), square
            before = mean
        else:
            before, share = self.mean.clone(), len(rows) / count
            self.mean = (1 - share) * self.mean + share * mean
            self.mean_square = (1 - share) * self.mean_square + share * square
        self.m2 += ((rows - self.mean) * (rows - before)).sum(0)
        self.count = count


@torch.no_grad()
def one_by_one(model: Any, corpus: Corpus, *, collect: bool = True) -> dict[str, HostSums]:
    """One prompt after the other through the whole model, every hook copying to the host: SEAP's published calibration.

    As `src/activations.py` at commit 33b91f4 does it: what four linears of each layer read (of q_proj, o_proj,
    gate_proj and down_proj in a Llama), the output layer computed, garbage collected after each prompt (not with
    collect=False). Unlike there the first prompt's variance counts. Returns axis key → statistics of the consumer's
    input.
    """
    refuse_experts(model.config, "seap bench --calibration", "time seap calibrate itself")
    arch = describe(model)
    read = {axis.key: HostSums() for axis in arch.axes}
    wrote = {axis.key: HostSums() for axis in arch.axes}

    def copying(into: HostSums) -> Callable[[nn.Module, tuple[Tensor, ...], Any], None]:
        return lambda _, inputs, output: into.update_(inputs[0].detach().cpu().view(-1, inputs[0].shape[-1]))

    handles = []
    for axis in arch.axes:
        handles.append(arch.consumer(axis).register_forward_hook(copying(read[axis.key])))
        producer = arch.linear(axis.layer, axis.producers[0])
        handles.append(producer.register_forward_hook(copying(wrote[axis.key])))
    try:
        with evaluation(model):
            for row in corpus.rows:
                model(torch.tensor([row], device=model.device))
                if collect:
                    gc.collect()
                if collect and model.device.type == "cuda":
                    torch.cuda.empty_cache()
    finally:
        for handle in handles:
            handle.remove()
    return read
