"""Decode speed in OpenVINO: a model with half of its units removed against the dense one, both exported.

    pip install "seap[openvino]"
    python runs/engines/openvino_speed.py --shape llama:0.1b --out results/engines/openvino_speed.json

Random weights of a public shape, since speed doesn't depend on their values; the tokenizer is the built-in model's.
Both models in turn, one token after the other from an empty cache, medians; one thread unless --threads says otherwise.
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import openvino
from opened import request_of

import seap
from seap.environment import provenance
from seap.exports.export import export
from seap.exports.options import Export
from seap.files import write_json
from seap.models import loader
from seap.models.shapes import random_model
from seap.pruning.commands import prune_to_folder

TOKENS, REPEATS = 48, 5


def seconds_per_token(request: Any) -> float:
    """Median over the tokens after the first few."""
    request.reset_state()
    taken = []
    for place in range(TOKENS):
        given = {
            "input_ids": np.array([[5 + place]]),
            "attention_mask": np.ones((1, place + 1), dtype=np.int64),
            "position_ids": np.array([[place]]),
            "beam_idx": np.zeros(1, dtype=np.int32),
        }
        started = time.perf_counter()
        request.infer(given)
        taken.append(time.perf_counter() - started)
    return median(taken[8:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="llama:0.1b")
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("results/engines/openvino_speed.json"))
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as place:
        room = Path(place)
        random_model(arguments.shape, dtype="float32", device="cpu").save_pretrained(room / "dense")
        seap.load("builtin")[1].save_pretrained(room / "dense")
        prune_to_folder(str(room / "dense"), room / "pruned", sparsity=arguments.sparsity, method="magnitude")
        models = {name: loader.load(str(room / name), device="cpu")[0] for name in ("dense", "pruned")}
        sizes = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
        for weights in ("float", "int8"):
            folders = {name: room / f"{name}-{weights}" for name in models}
            for name, folder in folders.items():
                export(str(room / name), folder, "openvino", Export(weights=weights))
            requests = {name: request_of(folder, arguments.threads) for name, folder in folders.items()}
            times: dict[str, list[float]] = {name: [] for name in requests}
            for _ in range(REPEATS + 1):
                for name, request in requests.items():
                    times[name].append(seconds_per_token(request))
            speed = {name: 1 / median(own[1:]) for name, own in times.items()}
            row = {"weights": weights, "dense_tokens_per_s": speed["dense"], "pruned_tokens_per_s": speed["pruned"]}
            rows.append(row | {"ratio": speed["pruned"] / speed["dense"]})
    about = {"shape": arguments.shape, "sparsity": arguments.sparsity, "threads": arguments.threads, "sizes": sizes}
    write_json(arguments.out, about | {"openvino": openvino.__version__, "rows": rows} | provenance())


if __name__ == "__main__":
    main()
