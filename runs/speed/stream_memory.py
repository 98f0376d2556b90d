"""Peak memory and time of pruning a model layer by layer from its files, beside the same in memory.

    python runs/speed/stream_memory.py [--shape llama-2-7b] [--dtype bfloat16] [--tokens 2048] [--method flap]
        [--options JSON] [--offload] [--folder DIR] [--in-memory] [--out FILE]

Makes a model of a public shape with random weights in --folder (it and the result must fit there), prunes it by half in
a process of its own without running the result, and takes that process's peak, and that of the files it puts into the
temporary folder (with --offload, hidden states too). --options: further ones of seap.prune, such as '{"moments":
"block:1024"}' with --method seap, of which a 7 B shape takes hours on two cores: the solves of the refit alone are some
10^14 operations ('{"sequential": false}' leaves them out). The disk's copy speed is that of some GB of the weights, a
file at a time, read from disk and written through, before and after.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from random_folder import make_model

from seap.environment import provenance
from seap.files import write_json

CHILD = """
import json, re, sys, time
from pathlib import Path
from seap.pruning import prune as pruning
from seap.pruning.commands import prune_to_folder
from seap.models.options import Streaming
name, out, tokens, stream, method, options, offload, dtype = sys.argv[1:]
cut, begun = pruning.cut_streamed_, []
def timed(*args, **kwargs):
    begun.append(time.perf_counter())
    return cut(*args, **kwargs)
pruning.cut_streamed_ = timed
started = time.perf_counter()
report = prune_to_folder(
    name, Path(out), tasks=[f"words={name}/words.txt"], progress=False, verify=False, **json.loads(options),
    streaming=Streaming(stream=stream == "1", offload_dir=Path(offload) if offload else None),
    method=method, max_tokens=int(tokens), seq_len=256, pack=True, loading={"dtype": dtype, "device": "cpu"},
)
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
now = time.perf_counter()
told = {"peak_bytes": peak, "seconds": now - started, "sparsity": report.realised_sparsity}
print(json.dumps(told | {"cut_and_save_seconds": now - begun[0] if begun else None}))
"""


def copy_speed(folder: Path, size: int = 4 << 30) -> float:
    """Bytes per second of copying the first files of a folder, some GB, read from disk and written to it."""
    target, copied, seconds = folder / "copy", 0, 0.0
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        started = time.perf_counter()
        shutil.copyfile(file, target)
        with target.open("rb") as opened:
            os.fsync(opened.fileno())
        seconds += time.perf_counter() - started
        copied += file.stat().st_size
        target.unlink()
        if copied >= size:
            break
    return copied / seconds


def watched(command: list[str], folder: Path) -> tuple[str, dict[str, int]]:
    """What a command printed; and, seen twice a second, the most bytes of files in its temporary folder, and of memory
    of its own: without pages of the model's files, which the system takes back when it needs them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": str(folder)})
    most = {"peak_disk_bytes": 0, "peak_own_bytes": 0}
    while running.poll() is None:
        seen = {"peak_disk_bytes": sum(map(on_disk, folder.rglob("*"))), "peak_own_bytes": own_bytes(running.pid)}
        most = {name: max(value, seen[name]) for name, value in most.items()}
        time.sleep(0.5)
    assert running.stdout is not None
    told = running.stdout.read()
    if running.returncode:
        raise SystemExit(f"the run failed: {told}")
    return told, most


def own_bytes(pid: int) -> int:
    """Resident memory that is no file's."""
    try:
        found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def on_disk(path: Path) -> int:
    """Bytes that a file takes; none where it has just gone."""
    try:
        return path.lstat().st_blocks * 512
    except OSError:
        return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="llama-2-7b")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"], help="of files and arithmetic")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--method", default="flap")
    parser.add_argument("--options", default="{}", help="further ones of seap.prune, as JSON")
    parser.add_argument("--offload", action="store_true", help="all hidden states on disk")
    parser.add_argument("--folder", type=Path, default=Path("out/stream"))
    parser.add_argument("--in-memory", action="store_true", help="also in memory, where it fits")
    parser.add_argument("--out", type=Path, default=Path("results/speed/stream_memory.json"))
    arguments = parser.parse_args()
    dense, out = arguments.folder / "dense", arguments.folder / "pruned"
    try:
        size = make_model(arguments.shape, dense, dtype=getattr(torch, arguments.dtype))
        speeds, runs = [copy_speed(dense)], {}
        for name, stream in [("streamed", "1"), *([("in memory", "0")] if arguments.in_memory else [])]:
            place = arguments.folder / "tmp"
            offload = str(place / "states") if arguments.offload and stream == "1" else ""
            command = [sys.executable, "-c", CHILD, str(dense), str(out), str(arguments.tokens), stream]
            told, seen = watched([*command, arguments.method, arguments.options, offload, arguments.dtype], place)
            runs[name] = json.loads(told.splitlines()[-1]) | seen
            shutil.rmtree(out)
            speeds.append(copy_speed(dense))
    finally:
        shutil.rmtree(arguments.folder, ignore_errors=True)
    settings = ("shape", "dtype", "tokens", "method", "offload")
    about = {name: getattr(arguments, name) for name in settings} | {"options": json.loads(arguments.options)}
    speed = sum(speeds) / len(speeds)
    found = {
        "kind": "stream",
        **about,
        "model_bytes": size,
        "copy_bytes_per_s": speed,
        "copy_speeds": speeds,
        "runs": runs,
        **provenance(),
    }
    write_json(arguments.out, found)
    for name, run in runs.items():
        share = run["peak_bytes"] / size
        after = run["cut_and_save_seconds"]
        if after:
            print(f"cut and saved in {after:.0f} s, ×{size / after / speed:.2f} of the disk's copy speed")
        print(f"{name}: peak {run['peak_bytes'] / 1e9:.2f} GB ({share:.0%} of the model), {run['seconds']:.0f} s")
        print(f"{name}: at most {run['peak_own_bytes'] / 1e9:.2f} GB of memory of its own, seen twice a second")
        print(f"{name}: at most {run['peak_disk_bytes'] / 1e9:.2f} GB of temporary files")


if __name__ == "__main__":
    main()
