"""How long masks with reconstruction take for a 1 B shape on this machine, stage by stage, and what a 7 B would cost.

    python runs/speed/time_1b.py [--tokens 8192] [--layers 16] [--out results/speed/time_1b.json]

The model has Llama-3.2-1B's shape with random weights (time doesn't depend on their values) and a vocabulary of 32,000,
in float32. What is timed: calibration with second moments in blocks, OBS scores, logistic widths, masks, and ridge
reconstruction with its damping chosen on held-out rows. Not in it: measured damage, search, Fisher weighing and the
refit, each of which runs the model again.
"""

import argparse
import random
import resource
import time
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers

from seap.activations.calibration import calibrate, num_blocks
from seap.compensation.compensate import repair_axes
from seap.environment import provenance
from seap.files import write_json
from seap.models.arch import describe
from seap.pruning.prune import make_masks
from seap.selection.mask import realised_sparsity
from seap.selection.options import Pruning
from seap.text.corpus import Corpus
from seap.text.options import Calibration

SHAPES = {
    "llama-3.2-1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_key_value_heads": 8},
    "llama-2-7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_key_value_heads": 32},
}
OPTIONS = Pruning(sparsity=0.5, score="obs", allocate="logistic", compensate="ridge", sequential=False)
GPU_RATES = {"matrix_flops_per_s": 200e12, "float64_flops_per_s": 30e12}  # what an H100 is assumed to reach in practice


def build(layers: int) -> Any:
    shape = SHAPES["llama-3.2-1b"] | {"num_hidden_layers": layers}
    config = transformers.LlamaConfig(
        **shape, num_attention_heads=32, head_dim=64, vocab_size=32000, tie_word_embeddings=True
    )
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config).eval()


def rows(tokens: int, length: int = 512) -> tuple[tuple[int, ...], ...]:
    drawn = random.Random(0)
    return tuple(tuple(drawn.randrange(3, 32000) for _ in range(length)) for _ in range(tokens // length))


def flops(shape: dict[str, int], tokens: int, block: int) -> dict[str, float]:
    """Of each stage, from the shape alone: matrix products only."""
    hidden, channels, layers = shape["hidden_size"], shape["intermediate_size"], shape["num_hidden_layers"]
    weights = layers * (4 * hidden * hidden + 3 * hidden * channels)
    kept = min(block, channels)
    return {
        "forward": 2.0 * weights * tokens,
        "second_moments": 2.0 * layers * (hidden + channels) * kept * tokens,
        "obs_and_ridge": 12.0 * layers * (channels + hidden) * kept * (kept + hidden),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--layers", type=int, default=16, help="fewer, to see that it runs")
    parser.add_argument("--moments", default="block:1024")
    parser.add_argument("--out", type=Path, default=Path("results/speed/time_1b.json"))
    arguments = parser.parse_args()
    calibration = Calibration(second_moments=True, moments=arguments.moments)
    load = psutil.getloadavg()[0]
    model = build(arguments.layers)
    arch = describe(model)
    seconds, started = {}, time.perf_counter()
    statistics = {"random": calibrate(model, Corpus("random", rows(arguments.tokens), "random"), calibration)}
    seconds["calibration"] = time.perf_counter() - started
    masks, _ = make_masks(model, statistics, OPTIONS)
    seconds["masks"] = time.perf_counter() - started - seconds["calibration"]
    repairs = repair_axes(arch, masks, statistics["random"], "ridge")
    seconds["reconstruction"] = time.perf_counter() - started - sum(seconds.values())
    block = max(axis.num_inputs // num_blocks(axis, arguments.moments) for axis in arch.axes)
    work = flops(SHAPES["llama-2-7b"], 32768, block)
    computed = work["obs_and_ridge"] / GPU_RATES["float64_flops_per_s"]
    computed += (work["forward"] + work["second_moments"]) / GPU_RATES["matrix_flops_per_s"]
    result = {
        "kind": "time",
        "shape": SHAPES["llama-3.2-1b"] | {"num_hidden_layers": arguments.layers},
        "params": sum(p.numel() for p in model.parameters()),
        "tokens": arguments.tokens,
        "seconds": seconds | {"all": sum(seconds.values())},
        "peak_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "weight_bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
        "realised_sparsity": realised_sparsity(arch, masks),
        "repaired_axes": len(repairs),
        "options": {"score": OPTIONS.score, "allocate": OPTIONS.allocate, "compensate": "ridge"} | vars(calibration),
        "threads": torch.get_num_threads(),
        "load_before": load,
        "computed_7b": {"tokens": 32768, "flops": work, "seconds": computed, "assumed": GPU_RATES},
        **provenance(),
    }
    write_json(arguments.out, result)
    print(
        {name: round(value, 1) for name, value in result["seconds"].items()}, f"7 B on a GPU: {computed:.0f} s computed"
    )


if __name__ == "__main__":
    main()
