"""Peak memory and time of pruning a model layer by layer from its files, beside the same in memory.

    python runs/stream_memory.py [--shape llama-2-7b] [--tokens 2048] [--folder DIR] [--in-memory] [--out FILE]

Makes a model of a public shape with random weights in --folder (it and the result must fit there), prunes it by half in
a process of its own, and takes that process's peak. The disk's copy speed is that of the weights'
largest file, written through.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from seap.environment import provenance
from seap.files import write_json
from seap.shapes import shape_config

CHILD = """
import json, re, sys, time
from pathlib import Path
from seap import pruning
from seap.commands import prune_to_folder
from seap.config_streaming import Streaming
name, out, tokens, stream, method = sys.argv[1:]
cut, begun = pruning.cut_streamed_, []
def timed(*args, **kwargs):
    begun.append(time.perf_counter())
    return cut(*args, **kwargs)
pruning.cut_streamed_ = timed
started = time.perf_counter()
report = prune_to_folder(
    name, Path(out), tasks=[f"words={name}/words.txt"], streaming=Streaming(stream=stream == "1"), progress=False,
    method=method, max_tokens=int(tokens), seq_len=256, pack=True, loading={"dtype": "bfloat16", "device": "cpu"},
)
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
now = time.perf_counter()
told = {"peak_bytes": peak, "seconds": now - started, "sparsity": report.realised_sparsity}
print(json.dumps(told | {"cut_and_save_seconds": now - begun[0] if begun else None}))
"""


def make_model(shape: str, folder: Path) -> int:
    """A model folder with random bfloat16 weights, one file per layer. Returns its bytes."""
    from transformers import AutoModelForCausalLM

    config = shape_config(shape)
    config.dtype = torch.bfloat16
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(config)
    config.architectures = [type(built).__name__]
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    where: dict[str, str] = {}
    groups: dict[str, dict[str, Any]] = {}
    for name, value in built.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        groups.setdefault(name.split(".")[2] if ".layers." in name else name, {})[name] = value
    generator = torch.Generator().manual_seed(0)
    for number, (_, tensors) in enumerate(groups.items()):
        file = f"model-{number + 1:05}-of-{len(groups):05}.safetensors"
        drawn = {n: (torch.randn(t.shape, generator=generator) * 0.02).bfloat16() for n, t in tensors.items()}
        save_file(drawn, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(drawn, file)
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(1000)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0", eos_token="w1").save_pretrained(folder)
    drawn_words = torch.randint(2, 1000, (400, 64), generator=generator).tolist()
    (folder / "words.txt").write_text("\n\n".join(" ".join(f"w{i}" for i in row) for row in drawn_words))
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def copy_speed(folder: Path) -> float:
    """Bytes per second of copying the largest file, until it is on disk."""
    file = max(folder.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    target = folder / "copy"
    started = time.perf_counter()
    shutil.copyfile(file, target)
    with target.open("rb") as opened:
        os.fsync(opened.fileno())
    seconds = time.perf_counter() - started
    target.unlink()
    return file.stat().st_size / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="llama-2-7b")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--method", default="flap")
    parser.add_argument("--folder", type=Path, default=Path("out/stream"))
    parser.add_argument("--in-memory", action="store_true", help="also in memory, where it fits")
    parser.add_argument("--out", type=Path, default=Path("results/stream_memory.json"))
    arguments = parser.parse_args()
    dense, out = arguments.folder / "dense", arguments.folder / "pruned"
    try:
        size = make_model(arguments.shape, dense)
        speed = copy_speed(dense)
        runs = {}
        for name, stream in [("streamed", "1"), *([("in memory", "0")] if arguments.in_memory else [])]:
            command = [sys.executable, "-c", CHILD, str(dense), str(out), str(arguments.tokens), stream]
            made = subprocess.run([*command, arguments.method], check=True, stdout=subprocess.PIPE, text=True)
            runs[name] = json.loads(made.stdout.splitlines()[-1])
            shutil.rmtree(out)
    finally:
        shutil.rmtree(arguments.folder, ignore_errors=True)
    about = {"shape": arguments.shape, "model_bytes": size, "tokens": arguments.tokens, "method": arguments.method}
    found = {"kind": "stream", **about, "copy_bytes_per_s": speed, "runs": runs, **provenance()}
    write_json(arguments.out, found)
    for name, run in runs.items():
        share = run["peak_bytes"] / size
        after = run["cut_and_save_seconds"]
        if after:
            print(f"cut and saved in {after:.0f} s, ×{size / after / speed:.2f} of the disk's copy speed")
        print(f"{name}: peak {run['peak_bytes'] / 1e9:.2f} GB ({share:.0%} of the model), {run['seconds']:.0f} s")


if __name__ == "__main__":
    main()
