"""How the cost of calibration and reconstruction grows: measured on this machine, and computed for models up to 405 B.

    python runs/speed/scaling.py [--out results/speed/scaling.json]

Measured: seconds of a calibration against tokens, layers, width, tasks, and processes under torchrun, on random models;
each beside one base setting. Computed: operations and bytes of each stage from the shapes alone (`stages`), with the
formulas in docs/scaling.md. A few minutes; run it on a quiet machine.
"""

import argparse
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from random_folder import make_model

from seap.activations.accumulator import TILE
from seap.activations.calibration import calibrate
from seap.bench.calibration import random_corpus
from seap.environment import provenance
from seap.files import write_json
from seap.text.options import Calibration

BASE = {"tokens": 4096, "layers": 4, "hidden": 512}
TOKENS = 65536  # of the computed calibrations


@dataclass(frozen=True)
class Shape:
    """A Llama's sizes: L layers, D hidden, C channels, A inputs of o_proj, G·K of k and v, V vocabulary."""

    name: str
    layers: int
    hidden: int
    channels: int
    attention: int
    keys: int
    vocabulary: int

    @property
    def layer_params(self) -> int:
        return self.hidden * (2 * self.attention + 2 * self.keys + 3 * self.channels)

    @property
    def params(self) -> int:
        return self.layers * self.layer_params + 2 * self.vocabulary * self.hidden


SHAPES = (
    Shape("llama-3.2-1b", 16, 2048, 8192, 2048, 512, 128256),
    Shape("llama-2-7b", 32, 4096, 11008, 4096, 4096, 32000),
    Shape("llama-3-8b", 32, 4096, 14336, 4096, 1024, 128256),
    Shape("llama-2-13b", 40, 5120, 13824, 5120, 5120, 32000),
    Shape("llama-3-70b", 80, 8192, 28672, 8192, 1024, 128256),
    Shape("llama-3.1-405b", 126, 16384, 53248, 16384, 1024, 128256),
)


def products(size: int) -> float:
    """Entries of a matrix of moments that are computed: tiles from the diagonal on, the rest is their mirror image."""
    tile = max(TILE, size // 16)
    return sum(min(tile, size - i) * (size - i) for i in range(0, size, tile))


def stages(shape: Shape, tokens: int = TOKENS) -> dict[str, float]:
    """Operations and bytes of each stage at 50%, bfloat16 weights, float64 moments (block: of 1024 inputs)."""
    axes, block = (shape.attention, shape.channels), 1024
    kept = [size / 2 for size in axes]
    return {
        "params": shape.params,
        "forward_flops": 2.0 * tokens * shape.layers * shape.layer_params,
        "second_moments_flops": 2.0 * tokens * shape.layers * sum(products(size) for size in axes),
        "block_moments_flops": 2.0 * tokens * shape.layers * sum(size / block * products(block) for size in axes),
        "ridge_flops": shape.layers * sum(k**3 / 3 + 4 * shape.hidden * k**2 for k in kept),
        "weights_bytes": 2.0 * shape.params,
        "layer_bytes": 2.0 * shape.layer_params,
        "hidden_bytes": 2.0 * tokens * shape.hidden,
        "moments_bytes_of_a_layer": 20.0 * sum(size**2 for size in axes),
        "moments_bytes_on_disk": 8.0 * shape.layers * sum(size**2 for size in axes),
        "block_moments_bytes_on_disk": 8.0 * shape.layers * sum(size * block for size in axes),
        "mean_and_variance_bytes": 16.0 * shape.layers * sum(axes),
    }


def random_llama(layers: int, hidden: int) -> Any:
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=8 * hidden // 3 // 64 * 64,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        vocab_size=1000,
    )
    return AutoModelForCausalLM.from_config(config).eval()


def measured(repeats: int) -> list[dict[str, Any]]:
    """Seconds of calibration, with and without second moments, one size changed at a time."""
    rows = []
    for name, values in (("tokens", (2048, 4096, 8192)), ("layers", (2, 4, 8)), ("hidden", (256, 512, 1024))):
        for value in values:
            sizes = BASE | {name: value}
            model = random_llama(sizes["layers"], sizes["hidden"])
            corpus = random_corpus(model, sizes["tokens"], 256)
            for second in (False, True):
                options = Calibration(second_moments=second)
                calibrate(model, corpus, options, progress=False)
                taken = []
                for _ in range(repeats):
                    started = time.perf_counter()
                    calibrate(model, corpus, options, progress=False)
                    taken.append(time.perf_counter() - started)
                rows.append({"varied": name, **sizes, "second_moments": second, "seconds": median(taken)})
    return rows


def workers(shape: str, tokens: int) -> list[dict[str, Any]]:
    """Seconds of `seap calibrate` on a random model by one process, and by two under torchrun and in Ray.

    Processes of one thread each, start-up included; also with 256 tokens, which is nearly all start-up.
    """
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "seap"]
    ways = {"one process": ["-m", "seap"], "torchrun, two": torchrun, "Ray, two": ["-m", "seap"]}
    rows = []
    with tempfile.TemporaryDirectory() as place:
        model, out = f"{place}/model", f"{place}/out"
        make_model(shape, Path(model), dtype=torch.float32, num_texts=tokens // 64)
        for num, (name, launcher) in itertools.product((256, tokens), ways.items()):
            words = ["calibrate", model, "--task", f"words={model}/words.txt", "--num-texts", "100000", "--pack"]
            words += ["--max-tokens", str(num), "--seq-len", "256", "--device", "cpu", "--out", out]
            words += ["--ray", "2"] if name.startswith("Ray") else []
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            started = time.perf_counter()
            subprocess.run([sys.executable, *launcher, *words], check=True, capture_output=True, env=environment)
            seconds = time.perf_counter() - started
            rows.append({"varied": "workers", "workers": name, "model": shape, "tokens": num, "seconds": seconds})
            shutil.rmtree(out)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--worker-shape", default="llama:0.1b")
    parser.add_argument("--worker-tokens", type=int, default=16384)
    parser.add_argument("--out", type=Path, default=Path("results/speed/scaling.json"))
    arguments = parser.parse_args()
    rows = measured(arguments.repeats) + workers(arguments.worker_shape, arguments.worker_tokens)
    computed = {shape.name: stages(shape) for shape in SHAPES}
    found = {"kind": "scaling", "rows": rows, "computed": computed, "computed_tokens": TOKENS}
    write_json(arguments.out, found | {"threads": torch.get_num_threads()} | provenance())
    for row in rows:
        print(
            ", ".join(
                f"{name} {value:.2f}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items()
            )
        )
    for name, values in computed.items():
        print(name, {key: f"{value:.2e}" for key, value in values.items()})


if __name__ == "__main__":
    main()
