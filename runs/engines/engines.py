"""Whether engines compute what transformers computes: exports of a pruned model in llama.cpp and OpenVINO.

    pip install "seap[gguf,openvino]" llama-cpp-python
    python runs/engines/engines.py MODEL --task gsm8k=DIR [--sparsity 0.4] [--out results/engines/engines_natural.json]

For every form of the export: its size, on how many test texts its tokenizer gives the same tokens, the largest
difference of a logit to transformers in float32, and how many greedy continuations are the same to the last token. And
what one width for all layers costs in loss (--allocate one-width), at the same sparsity from the same text.
"""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seap.environment import provenance
from seap.evaluation.commands import evaluate_tasks
from seap.evaluation.options import Evaluation
from seap.exports.export import export
from seap.exports.options import Export
from seap.files import write_json
from seap.models import loader
from seap.models.arch import describe
from seap.pruning.commands import prune_to_folder
from seap.text.tasks import load_items, parse_spec

PROMPT, NEW, CONTEXT = 32, 32, 64
FORMS = [("gguf", {"quantize": kind}) for kind in ("f32", "f16", "bf16", "q8_0")]
FORMS += [("openvino", {"weights": kind}) for kind in ("float", "int8", "int4")]
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}


@dataclass(frozen=True)
class Reference:
    """What transformers says of one text."""

    text: str
    ids: list[int]
    logits: Any  # (T, V)
    greedy: list[int]


def references(model: Any, tokenizer: Any, texts: list[str]) -> list[Reference]:
    found = []
    for text in texts:
        ids = tokenizer(text)["input_ids"][:CONTEXT]
        row = torch.tensor([ids[:PROMPT]])
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0].numpy()
            grown = model.generate(row, attention_mask=torch.ones_like(row), max_new_tokens=NEW, do_sample=False)
        found.append(Reference(text, ids, logits, grown[0, row.shape[1] :].tolist()))
    return found


class LlamaCpp:
    """A GGUF file in llama.cpp, fed tokens."""

    def __init__(self, path: Path) -> None:
        import llama_cpp

        f32 = llama_cpp.GGML_TYPE_F32
        sizes = {"n_ctx": PROMPT + CONTEXT, "type_k": f32, "type_v": f32}
        self.engine = llama_cpp.Llama(str(path), logits_all=True, n_gpu_layers=0, verbose=False, **sizes)

    def tokens(self, text: str) -> list[int]:
        return self.engine.tokenize(text.encode(), special=True)  # type: ignore[no-any-return]

    def reset(self) -> None:
        self.engine.reset()

    def logits(self, ids: list[int]) -> Any:
        start = self.engine.n_tokens
        self.engine.eval(ids)
        return self.engine.scores[start : start + len(ids)].copy()


class OpenVino:
    """An OpenVINO folder, fed tokens."""

    def __init__(self, path: Path) -> None:
        import openvino
        import openvino_tokenizers  # noqa: F401  # its operations

        core = openvino.Core()
        self.request = core.compile_model(path / "openvino_model.xml", "CPU", EXACT).create_infer_request()
        self.tokenizer = core.compile_model(path / "openvino_tokenizer.xml", "CPU")
        self.seen = 0

    def tokens(self, text: str) -> list[int]:
        return self.tokenizer([text])["input_ids"][0].tolist()  # type: ignore[no-any-return]

    def reset(self) -> None:
        self.request.reset_state()
        self.seen = 0

    def logits(self, ids: list[int]) -> Any:
        start, self.seen = self.seen, self.seen + len(ids)
        inputs = {"input_ids": [ids], "attention_mask": [[1] * self.seen], "position_ids": [range(start, self.seen)]}
        arrays = {name: np.array(value, dtype=np.int64) for name, value in inputs.items()}
        self.request.infer(arrays | {"beam_idx": np.zeros(1, dtype=np.int32)})
        return self.request.get_tensor("logits").data[0].copy()


def compared(engine: Any, wanted: list[Reference]) -> dict[str, Any]:
    """Texts with the same tokens, largest difference of a logit, texts with the same greedy continuation."""
    tokens, worst, greedy = 0, 0.0, 0
    for reference in wanted:
        tokens += engine.tokens(reference.text)[:CONTEXT] == reference.ids
        engine.reset()
        half = len(reference.ids) // 2  # in two steps, so that the cache is tested too
        logits = np.concatenate([engine.logits(reference.ids[:half]), engine.logits(reference.ids[half:])])
        worst = max(worst, float(np.abs(logits - reference.logits).max()))
        greedy += grown(engine, reference.ids[:PROMPT], len(reference.greedy)) == reference.greedy
    return {"same_tokens": tokens, "largest_difference": worst, "same_greedy": greedy}


def grown(engine: Any, prompt: list[int], number: int) -> list[int]:
    engine.reset()
    found, ids = [], prompt
    for _ in range(number):
        ids = [int(engine.logits(ids)[-1].argmax())]
        found += ids
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--task", required=True)
    parser.add_argument("--sparsity", type=float, default=0.4)
    parser.add_argument("--num-texts", type=int, default=64)
    parser.add_argument("--texts", type=int, default=20)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    texts = [item.text for item in load_items(parse_spec(arguments.task), "test")[: arguments.texts]]
    engines: dict[str, Callable[[Path], Any]] = {"gguf": LlamaCpp, "openvino": OpenVino}
    with tempfile.TemporaryDirectory() as room:
        loss = {"dense": loss_of(arguments.model, arguments.task)}
        for name, options in (("search", {}), ("one-width", {"allocate": "one-width", "round_to": 32})):
            common = {"tasks": [arguments.task], "sparsity": arguments.sparsity, "num_texts": arguments.num_texts}
            report = prune_to_folder(arguments.model, Path(room, name), **common, **options)
            loss[name] = loss_of(str(Path(room, name)), arguments.task) | {"realised": report.realised_sparsity}
        model, tokenizer = loader.load(str(Path(room, "search")), dtype="float32", device="cpu")
        wanted, rows = references(model, tokenizer, texts), []
        for target, options in FORMS:
            out = Path(room, "-".join([target, *options.values()]) + (".gguf" if target == "gguf" else ""))
            told = export(str(Path(room, "search")), out, target, Export(**options))  # type: ignore[arg-type]
            row = {"target": target, **options, "bytes": told["bytes"], **compared(engines[target](out), wanted)}
            rows.append(row)
            print(row, flush=True)
    packages = {name: version(name) for name in ("gguf", "llama_cpp_python", "openvino", "nncf")}
    about = {"kind": "engines", "texts": len(texts), "largest_logit": max(float(r.logits.max()) for r in wanted)}
    about |= {"layers": [axis.units for axis in describe(model).axes], "engines": packages}
    write_json(arguments.out, about | {"rows": rows, "loss": loss} | provenance())


def loss_of(model: str, task: str) -> dict[str, float]:
    [row] = evaluate_tasks(model, [task], Evaluation(metric="loss", num_items=100))
    return {name: row[name] for name in ("loss", "loss_stderr", "loss_n")}


if __name__ == "__main__":
    main()
