"""How fast a dense and a pruned model write, and how large they are, in transformers, llama.cpp and OpenVINO: one run.

    pip install "seap[gguf,openvino]" llama-cpp-python
    python runs/engines/engine_speed.py DENSE PRUNED --out results/engines/engine_speed.json

Greedy tokens after a prompt, one request, as many threads for all. Each form of both models is loaded once; then they
take turns (dense, pruned, dense, …), and the median of the repeats stands. Q4_K_M is llama.cpp's own quantization of
our f16 file. Engines that aren't installed are left out, and said. The file is written after every form; forms that it
has stay as they are when others are measured with --only.
"""

import argparse
import json
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from opened import Form, in_llama_cpp, in_openvino, in_transformers, in_turn, installed

from seap.environment import provenance
from seap.files import write_json

FORMS = {
    "transformers float32": Form(in_transformers),
    "transformers float32, prepacked": Form(partial(in_transformers, prepacked=True)),
    **{
        f"llama.cpp {kind}": Form(partial(in_llama_cpp, kind=kind), ("llama_cpp", "gguf"))
        for kind in ("f32", "f16", "q8_0", "q4_k_m")
    },
    **{f"openvino {kind}": Form(partial(in_openvino, kind=kind), ("openvino", "nncf")) for kind in ("float", "int8")},
}


def row_of(name: str, form: Form, models: dict[str, Path], a: Any) -> dict[str, Any]:
    """One form of both models, in turn."""
    with tempfile.TemporaryDirectory() as room:
        ready = {}
        for which, folder in models.items():
            (own := Path(room, which)).mkdir()
            ready[which] = form.open(folder, own, a.threads)
        found = in_turn(ready, list(range(100, 100 + a.prompt)), a.new, a.repeats)
    ratio = found["pruned"]["tokens_per_second"] / found["dense"]["tokens_per_second"]
    return {"form": name, **found, "ratio": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dense", type=Path)
    parser.add_argument("pruned", type=Path)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--only", default="", help="parts of the forms' names, separated by commas")
    parser.add_argument("--out", type=Path, default=Path("results/engines/engine_speed.json"))
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    kinds = [part for part in a.only.split(",") if part]
    chosen = {name: form for name, form in FORMS.items() if not kinds or any(kind in name for kind in kinds)}
    rows = [row for row in rows_there(a.out) if row["form"] not in chosen]
    for name, form in chosen.items():
        if form.missing:
            print(f"{name}: left out, {form.missing[0]} isn't installed", flush=True)
            continue
        rows.append(row_of(name, form, {"dense": a.dense, "pruned": a.pruned}, a))
        print({k: v if not isinstance(v, dict) else round(v["tokens_per_second"], 1) for k, v in rows[-1].items()})
        about = {"kind": "engine speed", "threads": a.threads, "prompt": a.prompt, "new": a.new}
        write_json(a.out, about | {"engines": installed(), "rows": rows} | provenance())


def rows_there(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text())["rows"] if path.is_file() else []  # type: ignore[no-any-return]


if __name__ == "__main__":
    main()
