"""Shows that a change of code changed no result: digests of what the commands write, to be held against another tree's.

    python runs/quality/same_results.py write A.json --tree ../before --shared ../shared
    python runs/quality/same_results.py write B.json --tree .         --shared ../shared
    python runs/quality/same_results.py compare A.json B.json

`write` runs that tree's command line (one thread, so that sums have one order) on natural-7m and the built-in model:
masks and weights of four methods (gsm8k, 50%, 8,192 tokens), a packed folder and its router, a GGUF export, the rows of
`seap demo`. Tensors are hashed by name, type, shape and bytes; metadata that names commits and times is left out.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

METHODS = ("seap", "seap-paper", "flap", "seap-gen")
TASKS = ("gsm8k", "piqa")
TEXT = ["--max-tokens", "8192"]
TIMED = (
    "seconds",
    "tokens_per_s",
    "speed",
    "created",
    "command",
    "versions",
    "commit",
    "checkpoint",
    "machine",
    "page",
)


def digest_of_tensors(file: Path) -> str:
    """Of every tensor of a safetensors file, by name."""
    import torch
    from safetensors import safe_open

    sums = hashlib.sha256()
    with safe_open(file, "pt") as opened:
        for name in sorted(opened.keys()):
            tensor = opened.get_tensor(name).contiguous()
            sums.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            sums.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return sums.hexdigest()


def digest_of_gguf(file: Path) -> str:
    """Of every tensor of a GGUF file."""
    from gguf import GGUFReader

    sums = hashlib.sha256()
    for tensor in sorted(GGUFReader(file).tensors, key=lambda each: each.name):
        sums.update(f"{tensor.name} {tensor.tensor_type} {tensor.shape.tolist()}".encode() + tensor.data.tobytes())
    return sums.hexdigest()


def untimed(value: Any) -> Any:
    """JSON without what differs from run to run."""
    if isinstance(value, dict):
        return {name: untimed(each) for name, each in value.items() if name not in TIMED}
    return [untimed(each) for each in value] if isinstance(value, list) else value


def digest_of_rows(file: Path) -> str:
    rows = json.loads(file.read_text())["rows"]
    return hashlib.sha256(json.dumps(untimed(rows), sort_keys=True).encode()).hexdigest()


def digest_folder(folder: Path, pattern: str, digest: Callable[[Path], str]) -> dict[str, str]:
    return {str(file.relative_to(folder)): digest(file) for file in sorted(folder.rglob(pattern))}


def write(out: Path, tree: Path, shared: Path) -> None:
    """Run everything and store the digests, each as soon as it is there."""
    found: dict[str, Any] = json.loads(out.read_text()) if out.is_file() else {}
    model, data = str(shared / "models/natural-7m"), shared / "data/tasks"
    gsm8k, piqa = (f"{name}={data / name}" for name in TASKS)

    def seap(*words: str) -> None:
        environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, "-m", "seap", *words], cwd=tree, check=True, env=environment)

    def keep(name: str, make: Callable[[Path], dict[str, str]]) -> None:
        if name not in found:
            with tempfile.TemporaryDirectory() as room:
                found[name] = make(Path(room))
            out.write_text(json.dumps(found, indent=2) + "\n")

    def pruned(method: str) -> Callable[[Path], dict[str, str]]:
        def make(room: Path) -> dict[str, str]:
            texts = ["--task", gsm8k] + (["--task", piqa] if method == "seap-gen" else [])
            chosen = ["--sparsity", "0.5", "--method", method, "--out", str(room / "small")]
            seap("prune", model, *texts, *chosen, *TEXT)
            made = digest_folder(room / "small", "*.safetensors", digest_of_tensors)
            if method == "seap-paper":
                seap("export", str(room / "small"), "--to", "gguf", "--out", str(room / "small.gguf"))
                made |= digest_folder(room, "*.gguf", digest_of_gguf)
            return made

        return make

    def packed(room: Path) -> dict[str, str]:
        tasks = ["--task", gsm8k, "--task", piqa]
        seap("pack", model, *tasks, "--sparsity", "0.5", "--method", "seap-paper", "--out", str(room / "tasks"), *TEXT)
        routed = ["--tasks", f"{gsm8k},{piqa}", "--masks", str(room / "tasks")]
        seap("route", "fit", model, *routed, "--out", str(room / "router.safetensors"))
        return digest_folder(room, "*.safetensors", digest_of_tensors)

    def demo(room: Path) -> dict[str, str]:
        seap("demo", "--out", str(room))
        return digest_folder(room, "demo.json", digest_of_rows)

    for method in METHODS:
        keep(method, pruned(method))
    keep("packed", packed)
    keep("demo", demo)


def compare(before: Path, after: Path) -> int:
    """Print each digest's agreement; 1 where any differs or is missing."""
    old, new = (json.loads(file.read_text()) for file in (before, after))
    differing = 0
    for kind in sorted(old.keys() | new.keys()):
        ours, theirs = old.get(kind, {}), new.get(kind, {})
        for name in sorted(ours.keys() | theirs.keys()):
            same = ours.get(name) == theirs.get(name)
            differing += not same
            print(f"{kind:12} {name:40} {'equal' if same else 'DIFFERS'}")
    return int(differing > 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    writing = commands.add_parser("write")
    writing.add_argument("out", type=Path)
    writing.add_argument("--tree", type=Path, default=Path("."))
    writing.add_argument("--shared", type=Path, default=Path("../shared"))
    comparing = commands.add_parser("compare")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    given = parser.parse_args()
    if given.command == "compare":
        return compare(given.before, given.after)
    write(given.out, given.tree.resolve(), given.shared.resolve())
    return 0


if __name__ == "__main__":
    sys.exit(main())
