"""Whether every export of a pruned model says what transformers says, and how fast: dense and pruned, in one run.

    pip install "seap[gguf,openvino,onnx,torchao]" onnxruntime-genai compressed-tensors  # and, where they can be had,
    pip install llama-cpp-python "mlx[cpu]" mlx-lm
    python runs/engines/exports_real.py MODEL… --task arc_easy=TASKS/arc_easy --out results/engines/exports_real.json

Of every model a float32 copy is made and one cut by --method; each form of both is then fed 20 prompts and writes 32
greedy tokens after each. A row says how many texts are those of transformers in float32, token by token; where one
differs, at which token and by how much transformers preferred its own (`gap`, in logits); the largest difference of any
of its 64 largest logits up to there; and the tokens per second of both, taken in turn. Forms in float32 compute in
float32 throughout; the others have fewer bits and are there to see what that costs. A form that refuses a model has the
reason in place of figures. The file is written after every row, and a second run makes the rows that aren't there.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from opened import (
    Form,
    Opened,
    in_genai,
    in_llama_cpp,
    in_mlx,
    in_onnxruntime,
    in_openvino,
    in_stock_class,
    in_transformers,
    in_turn,
    installed,
    of_transformers,
)

from seap.disk.whole import written_whole
from seap.environment import commit, provenance
from seap.errors import UserError
from seap.files import write_json
from seap.models import loader
from seap.pruning.commands import prune_to_folder

KIND, TOP, DENSE, PRUNED = "exports of real models", 64, "dense", "pruned"
FORMS = {
    "transformers": Form(in_transformers),
    "transformers, prepacked": Form(partial(in_transformers, prepacked=True)),
    "transformers, padded": Form(partial(in_stock_class, to="padded")),
    "openvino": Form(partial(in_openvino, kind="float", exact=True), ("openvino", "openvino_tokenizers")),
    "onnxruntime": Form(in_onnxruntime, ("onnx", "onnxruntime")),
    "onnxruntime-genai": Form(in_genai, ("onnx", "onnxruntime_genai")),
    "llama.cpp f32": Form(partial(in_llama_cpp, kind="f32", exact=True), ("gguf", "llama_cpp")),
    "mlx": Form(partial(in_mlx, to="mlx"), ("mlx", "mlx_lm")),
    "nemotron-nas in mlx": Form(partial(in_mlx, to="nemotron-nas"), ("mlx", "mlx_lm")),
    "llama.cpp q8_0": Form(partial(in_llama_cpp, kind="q8_0", exact=True), ("gguf", "llama_cpp")),
    "openvino int8": Form(partial(in_openvino, kind="int8", exact=True), ("openvino", "nncf")),
    "openvino int4": Form(partial(in_openvino, kind="int4", exact=True), ("openvino", "nncf")),
    "compressed-tensors int8": Form(
        partial(in_stock_class, to="compressed-tensors", weights="int8"), ("compressed_tensors",)
    ),
    "compressed-tensors int4": Form(
        partial(in_stock_class, to="compressed-tensors", weights="int4"), ("compressed_tensors",)
    ),
    "torchao int8": Form(partial(in_stock_class, to="torchao", weights="int8"), ("torchao",)),
}
PROMPTS = (
    "The capital of France is",
    "Water boils at a temperature of",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):\n",
    "The three primary colours are",
    "Q: What is 17 plus 25?\nA:",
    "Photosynthesis is the process by which plants",
    "import numpy as np\n\ndef normalise(rows):\n",
    "A train leaves the station at nine and travels at sixty miles an hour. After two hours",
    "The most important thing about writing is",
    "SELECT name, age FROM people WHERE",
    "In the year 1969, two men",
    "Dear Sir or Madam,\n\nI am writing to",
    "The difference between weather and climate is that",
    "# Shopping list\n\n- eggs\n- flour\n-",
    "class Stack:\n    def __init__(self):\n",
    "She opened the letter, read it twice, and",
    "Iron rusts because",
    "for (int i = 0; i < n; i++) {\n",
    "Q: Who wrote Romeo and Juliet?\nA:",
)


@dataclass(frozen=True)
class Settings:
    """What all rows of a file have in common."""

    task: str
    method: str
    sparsity: float
    round_to: int
    num_texts: int
    new: int
    threads: int
    repeats: int


def made(folder: Path, place: Path, settings: Settings) -> dict[str, Path]:
    """The float32 copies of a model, dense and pruned, of an earlier run where they are there."""
    found = {which: place / folder.name / which for which in (DENSE, PRUNED)}
    if not found[DENSE].is_dir():
        model, tokenizer = loader.load(str(folder), dtype="float32", device="cpu")
        found[DENSE].parent.mkdir(parents=True, exist_ok=True)
        with written_whole(found[DENSE], "checkpoint") as draft:
            model.save_pretrained(draft)
            tokenizer.save_pretrained(draft)
    if not found[PRUNED].is_dir():
        own = {"method": settings.method, "sparsity": settings.sparsity, "round_to": settings.round_to}
        texts = {"tasks": [settings.task], "num_texts": settings.num_texts}
        prune_to_folder(str(found[DENSE]), found[PRUNED], loading={"device": "cpu"}, progress=False, **texts, **own)
    return found


def reference(folder: Path, new: int) -> list[dict[str, Any]]:
    """Of each prompt its tokens, and of each token that transformers writes after it the largest logits and their ids.

    Kept beside the folder, for later runs.
    """
    file = folder.parent / f"{folder.name}-{new}.json"
    if file.is_file():
        return json.loads(file.read_text())["texts"]  # type: ignore[no-any-return]
    model, tokenizer = loader.load(str(folder), dtype="float32", device="cpu")
    found = []
    for prompt in PROMPTS:
        opened, ids, steps = of_transformers(model, 0), tokenizer(prompt)["input_ids"], []
        given = ids
        for _ in range(new):
            logits = torch.from_numpy(opened.step(given))
            top = logits.topk(min(TOP, len(logits)))
            steps.append({"ids": top.indices.tolist(), "logits": top.values.tolist()})
            given = steps[-1]["ids"][:1]
        found.append({"prompt": ids, "steps": steps})
    write_json(file, {"kind": "texts of transformers", "texts": found} | provenance())
    return found


def compared(opened: Opened, wanted: list[dict[str, Any]]) -> dict[str, Any]:
    """How many texts are the same to the last token; where the others part, and how far logits are away up to there."""
    same, parted, worst = 0, [], 0.0
    for number, text in enumerate(wanted):
        opened.reset()
        given = text["prompt"]
        for place, step in enumerate(text["steps"]):
            logits = opened.step(given)
            worst = max(worst, float(np.abs(logits[step["ids"]] - np.array(step["logits"])).max()))
            chosen = int(np.argmax(logits))
            if chosen != step["ids"][0]:
                known = dict(zip(step["ids"], step["logits"], strict=True))
                gap = step["logits"][0] - known.get(chosen, step["logits"][-1])  # at least, where it isn't among them
                parted.append({"prompt": number, "token": place, "gap": gap})
                break
            given = [chosen]
        else:
            same += 1
    return {"same_texts": same, "of": len(wanted), "parted": parted, "largest_difference": worst}


def row_of(name: str, folders: dict[str, Path], settings: Settings) -> dict[str, Any]:
    """A form of both models: what they say, then how fast, in turn. Raises UserError where the form refuses one."""
    torch.set_num_threads(settings.threads)
    loader.quiet_transformers()
    with tempfile.TemporaryDirectory() as room:
        ready = {}
        for which, folder in folders.items():
            (own := Path(room, which)).mkdir()
            ready[which] = FORMS[name].open(folder, own, settings.threads)
        texts = {which: reference(folder, settings.new) for which, folder in folders.items()}
        said = {which: compared(opened, texts[which]) for which, opened in ready.items()}
        fast = in_turn(ready, max((text["prompt"] for text in texts[DENSE]), key=len), settings.new, settings.repeats)
        del ready
    row: dict[str, Any] = {which: said[which] | fast[which] for which in folders}
    return row | {"ratio": fast[PRUNED]["tokens_per_second"] / fast[DENSE]["tokens_per_second"]}


def tried(name: str, folders: dict[str, Path], settings: Settings) -> dict[str, Any]:
    """`row_of` in a process of its own, whose memory goes with it and which an engine may take down."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(row_of, name, folders, settings).result()
        except UserError as error:
            return {"refused": str(error)}
        except Exception as error:
            return {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


def there(out: Path, settings: Settings) -> list[dict[str, Any]]:
    """The rows of an earlier run, but for those that failed. Raises UserError for one with other settings."""
    if not out.is_file():
        return []
    found = json.loads(out.read_text())
    if found.get("settings") != asdict(settings):
        raise UserError(f"{out} is of other settings, {found.get('settings')}; give another --out")
    return [row for row in found["rows"] if "failed" not in row]


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL", help="folders")
    parser.add_argument("--task", required=True, metavar="NAME=PATH", help="the text that the cut is calibrated on")
    parser.add_argument("--method", default="flap")
    parser.add_argument("--sparsity", type=float, default=0.3)
    parser.add_argument("--round-to", type=int, default=32, help="of widths, so that 4 and 8 bits fit")
    parser.add_argument("--num-texts", type=int, default=64)
    parser.add_argument("--new", type=int, default=32, help="tokens that are written after each prompt")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=5, help="of the timing")
    parser.add_argument("--only", default="", help="forms, or parts of their names, separated by commas")
    parser.add_argument("--made", type=Path, default=Path("out/exports_real"), help="where copies are kept")
    parser.add_argument("--again", action="store_true", help="make the copies again first")
    parser.add_argument("--out", type=Path, default=Path("results/engines/exports_real.json"))
    return parser.parse_args()


def main() -> None:
    a = parsed()
    settings = Settings(a.task, a.method, a.sparsity, a.round_to, a.num_texts, a.new, a.threads, a.repeats)
    torch.set_num_threads(a.threads)
    loader.quiet_transformers()
    rows, failed, kinds = there(a.out, settings), 0, [part for part in a.only.split(",") if part]
    for folder in a.models:
        if a.again and (a.made / folder.name).is_dir():
            shutil.rmtree(a.made / folder.name)
        done = {row["form"] for row in rows if row["model"] == folder.name}
        todo = [name for name in FORMS if name not in done and (not kinds or any(meant(kind, name) for kind in kinds))]
        folders = made(folder, a.made, settings) if todo else {}
        for path in folders.values():
            reference(path, a.new)
        for name in todo:
            if FORMS[name].missing:
                print(f"{folder.name}, {name}: left out, {FORMS[name].missing[0]} isn't installed", flush=True)
                continue
            row = {"model": folder.name, "form": name, "commit": commit()} | tried(name, folders, settings)
            rows.append(row)
            about = {"kind": KIND, "settings": asdict(settings), "engines": installed()}
            write_json(a.out, about | {"rows": rows} | provenance())
            failed += "failed" in row
            print(told(row), flush=True)
    if failed:
        sys.exit(1)


def meant(kind: str, name: str) -> bool:
    """Whether a part of --only means this form: a form's whole name means that one alone."""
    return kind == name if kind in FORMS else kind in name


def told(row: dict[str, Any]) -> str:
    """A row in a line."""
    start = f"{row['model']}, {row['form']}: "
    if DENSE not in row:
        return start + str(row.get("refused") or row.get("failed"))
    parts = [
        f"{which} {one['same_texts']}/{one['of']} the same, {one['tokens_per_second']:.1f} tokens/s"
        for which, one in ((which, row[which]) for which in (DENSE, PRUNED))
    ]
    return start + "; ".join([*parts, f"×{row['ratio']:.2f}"])


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"error: {error}") from error
