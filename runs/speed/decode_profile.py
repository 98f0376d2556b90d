"""Where a decode step's time goes on this processor, dense and pruned, and how near that comes to what memory gives.

    python runs/speed/decode_profile.py [--shape llama:0.1b] [--dtype float32] [--out results/speed/decode_profile.json]

For one request and for eight, in every mode of `seap bench`: tokens per second, dense and half pruned, in turn; the
kernels that take most of a step; and at how many bytes a second each shape of linear is read. Beside it what memory
gives: the sum over an array larger than the caches.
"""

import argparse
from pathlib import Path
from statistics import median
from typing import Any

import torch

from seap.bench.bench import measure, models_for
from seap.bench.options import Bench
from seap.bench.profile import linear_rates, profile_phase
from seap.environment import clock, provenance
from seap.files import write_json

MODES = ("eager", "prepacked", "auto", "compile")
BATCHES = (1, 8)
LENGTH = 128


def memory_rate(size: int = 1 << 28, repeats: int = 7) -> float:
    """Bytes a second at which a sum reads an array of so many float32 numbers."""
    values, taken = torch.ones(size), []
    for _ in range(repeats):
        started = clock(values.device)
        values.sum()
        taken.append(clock(values.device) - started)
    return values.nbytes / median(taken)


def profiles(models: dict[str, Any], modes: tuple[str, ...]) -> list[dict[str, Any]]:
    """Kernels of a decode step; prepacked weights change models, so `measure` alone tells of them."""
    told = [mode for mode in modes if mode in ("eager", "compile")]
    return [
        {"model": name} | profile_phase(model, "decode", batch=batch, length=LENGTH, mode=mode)
        for mode in told
        for batch in BATCHES
        for name, model in models.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="llama:0.1b")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--modes", nargs="+", default=MODES, choices=MODES)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("results/speed/decode_profile.json"))
    a = parser.parse_args()
    options = Bench(
        random_weights=a.shape,
        sparsity=0.5,
        mode=tuple(a.modes),
        batch=BATCHES,
        phase=("decode",),
        prompt_length=LENGTH,
        new_tokens=a.new_tokens,
        repeats=a.repeats,
    )
    models = dict(models_for((), options, {"device": "cpu", "dtype": a.dtype}))
    found = measure(models, options, a.shape)
    rates = [
        {"model": name} | rate
        for b in BATCHES
        for name, model in models.items()
        for rate in linear_rates(model, batch=b)
    ]
    more = {"memory_bytes_per_s": memory_rate(), "linears": rates, "profiles": profiles(models, tuple(a.modes))}
    write_json(a.out, found | more | {"kind": "decode profile"} | provenance())
    for row in found["rows"]:
        print({name: row[name] for name in ("mode", "batch", "ratio", "ceiling") if name in row})


if __name__ == "__main__":
    main()
