"""How fast the networks of runs/quality/equal_bytes.py write beside the dense model, in transformers and llama.cpp.

    pip install "seap[gguf]" llama-cpp-python
    python runs/engines/equal_bytes_speed.py MODEL MADE TASK=PATH [TASK=PATH …] --out FILE

MADE has the masks that `equal_bytes.py --made` kept. Each is cut out of the model anew, with as many tokens of the
vocabulary and without repairs, which change no shape; dense and cut take turns. Networks that the file has aren't
measured again.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from engine_speed import FORMS, row_of
from opened import installed

import seap
from seap.environment import provenance
from seap.errors import UserError
from seap.files import write_json
from seap.models import loader
from seap.models.sizes import dtype_on_disk
from seap.selection.mask import load_masks


def cut_to(folder: Path, given: Any, masks_file: Path, specs: dict[str, str]) -> None:
    """The network of these masks as a checkpoint."""
    masks, about = load_masks(masks_file)
    model, tokenizer = loader.load(given.model, device="cpu")
    dtype, tokens = dtype_on_disk(model), about["vocabulary"]
    how: dict[str, Any] = {"measure_damage": False, "progress": False}
    if all(mask.all() for mask in masks.values()):  # the vocabulary alone went, and the class stays the stock one
        how |= {"sparsity": 0}
    else:
        how |= {"masks": masks, "compensate": "none"}
    if tokens:
        how |= {"task": specs[about["row"]["task"]], "vocabulary": tokens}
    seap.prune(model.float(), tokenizer, **how)
    model.to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("made", type=Path)
    parser.add_argument("tasks", nargs="+", metavar="TASK=PATH")
    parser.add_argument("--forms", nargs="+", default=["transformers float32, prepacked", "llama.cpp q8_0"])
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=Path("results/engines/equal_bytes_speed.json"))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    name = Path(given.model).name
    specs = {spec.partition("=")[0]: spec for spec in given.tasks}
    rows = json.loads(given.out.read_text())["rows"] if given.out.is_file() else []
    for file in sorted(given.made.glob(f"{name}-*.safetensors")):
        key = load_masks(file)[1]["row"]
        there = {row["form"] for row in rows if all(row[part] == value for part, value in key.items())}
        forms = [form for form in given.forms if form not in there and not FORMS[form].missing]
        if key["task"] not in specs or not forms:
            continue
        with tempfile.TemporaryDirectory() as folder:
            cut_to(Path(folder), given, file, specs)
            for form in forms:
                try:
                    found = row_of(form, FORMS[form], {"dense": Path(given.model), "pruned": Path(folder)}, given)
                except UserError as error:
                    found = {"form": form, "refused": str(error)}
                rows.append(key | found)
                print(key["task"], key["axes"], form, found.get("ratio", found.get("refused")), flush=True)
                about = {"kind": "equal bytes: speed", "threads": given.threads, "new": given.new}
                write_json(given.out, about | {"engines": installed(), "rows": rows} | provenance())


if __name__ == "__main__":
    main()
