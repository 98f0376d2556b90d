"""Masks from text that the model wrote itself against masks from real text: added loss on held-out text of the kind.

    python runs/quality/self_written.py MODEL DATA --out results/quality/self_written.json

DATA holds one folder per kind, with train.* and test.* (column `text`), and one of general text (--general). Texts are
stretches of at most --tokens tokens. `real`: 200 of the kind; `written`: as many that the model wrote like 8 of them;
`few`: those 8 alone; `mixed`: both; `general`: general text. All but `few` have the same number of tokens.
About 15 minutes on one slow core, most of it writing.
"""

import argparse
import random
import time
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from seap.environment import provenance
from seap.evaluation.metrics import Figure, Row, loss
from seap.files import digest, write_json
from seap.models import loader
from seap.pruning import prune as pruning
from seap.text.corpus import build_corpus
from seap.text.options import Calibration
from seap.text.tasks import load_items
from seap.writing.options import Writing
from seap.writing.writing import Written, write

HELD_OUT = Calibration(num_texts=2000, seq_len=256, pack=True, max_tokens=32 * 256)


def stretches(folder: Path, tokenizer: Any, num: int, *, tokens: int, seed: int) -> list[str]:
    """Texts of the training part, each cut to a random stretch; several of one text only where texts are too few."""
    generator = random.Random(seed)
    texts = [item.text for item in load_items(f"{folder.name}={folder}", "train")]
    generator.shuffle(texts)
    found: list[str] = []
    for place in range(num):
        ids = tokenizer(texts[place % len(texts)], add_special_tokens=False, verbose=False)["input_ids"]
        start = generator.randrange(max(len(ids) - tokens, 0) + 1)
        found.append(tokenizer.decode(ids[start : start + tokens]))
    return found


def held_out(folder: Path, tokenizer: Any) -> list[Row]:
    texts = [item.text for item in load_items(f"{folder.name}={folder}", "test")]
    return [Row(ids) for ids in build_corpus(folder.name, texts, tokenizer, HELD_OUT, source="test").rows]


def num_tokens(texts: list[str], tokenizer: Any) -> int:
    return sum(len(tokenizer(text, verbose=False)["input_ids"]) for text in texts)


def sources(
    model: Any, tokenizer: Any, folder: Path, general: Path, seed: int, a: argparse.Namespace
) -> tuple[dict[str, list[str]], Written]:
    """The calibration texts to be compared, by name."""
    real = stretches(folder, tokenizer, a.num, tokens=a.tokens, seed=seed)
    few = real[: a.few]
    options = Writing(num=a.num, max_new_tokens=a.tokens, context_tokens=2 * a.tokens, batch_size=50, seed=seed)
    written = write(model, tokenizer, options, examples=few)
    own = [text.text for text in written.texts]
    other = stretches(general, tokenizer, 2 * a.num, tokens=a.tokens, seed=seed)
    mixed = few + own[: a.num - a.few]
    return {"real": real, "written": own, "few": few, "mixed": mixed, "general": other}, written


def measure(model: Any, tokenizer: Any, folder: Path, seed: int, a: argparse.Namespace) -> dict[str, Any]:
    """One row per source and sparsity, and what was written."""
    test = held_out(folder, tokenizer)
    dense = loss(model, test)
    texts, written = sources(model, tokenizer, folder, a.data / a.general, seed, a)
    most = min(num_tokens(texts[name], tokenizer) for name in ("real", "written", "mixed"))
    rows = []
    for sparsity in a.sparsity:
        for name, own in texts.items():
            pruned = deepcopy(model)
            report = pruning.prune(
                pruned,
                tokenizer,
                task={folder.name: own},
                sparsity=sparsity,
                method=a.method,
                num_texts=len(own),
                max_tokens=most,
                seq_len=a.tokens,
                seed=seed,
                progress=False,
            )
            figure = loss(pruned, test)
            rows.append(row(folder.name, name, seed, sparsity, report, figure, dense) | {"data_hash": digest(own)})
    told = {"task": folder.name, "seed": seed, "tried": written.tried, "rejected": written.rejected}
    return {"rows": rows, "written": told | {"limits": asdict(written.limits), "first": texts["written"][:3]}}


def row(task: str, source: str, seed: int, target: float, report: Any, figure: Figure, dense: Figure) -> dict[str, Any]:
    return {
        "task": task,
        "source": source,
        "seed": seed,
        "target_sparsity": target,
        "realised_sparsity": report.realised_sparsity,
        "calibration_tokens": report.num_tokens,
        "loss": figure.value,
        "loss_stderr": figure.stderr,
        "n": figure.n,
        "dense_loss": dense.value,
        "added_loss": figure.value - dense.value,
    }


def means(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Added loss by sparsity and source, mean over kinds and seeds."""
    found: dict[str, dict[str, list[float]]] = {}
    for entry in rows:
        of_sparsity = found.setdefault(str(entry["target_sparsity"]), {})
        of_sparsity.setdefault(entry["source"], []).append(entry["added_loss"])
    return {key: {name: sum(v) / len(v) for name, v in value.items()} for key, value in found.items()}


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kinds", nargs="+", default=["gsm8k", "piqa", "code"])
    parser.add_argument("--general", default="wiki")
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.2, 0.5])
    parser.add_argument("--method", default="seap")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--num", type=int, default=200)
    parser.add_argument("--few", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128)
    return parser.parse_args()


def main() -> None:
    arguments = parsed()
    started = time.perf_counter()
    loader.quiet_transformers()
    model, tokenizer = loader.load(arguments.model, dtype="float32", device="cpu")
    runs = [(kind, seed) for kind in arguments.kinds for seed in range(arguments.seeds)]
    made = [
        measure(model, tokenizer, arguments.data / kind, seed, arguments) for kind, seed in tqdm(runs, desc="kinds")
    ]
    rows = [entry for part in made for entry in part["rows"]]
    result = {
        "mean_added_loss": means(rows),
        "rows": rows,
        "written": [part["written"] for part in made],
        "method": arguments.method,
        "num_texts": arguments.num,
        "few": arguments.few,
        "tokens_per_text": arguments.tokens,
        **provenance(),
        "data_hash": digest([entry["data_hash"] for entry in rows]),
        "seeds": arguments.seeds,
        "seconds": time.perf_counter() - started,
    }
    write_json(arguments.out, result)
    for sparsity, values in result["mean_added_loss"].items():
        told = ", ".join(f"{name} {value:.3f}" for name, value in values.items())
        print(f"{sparsity} removed, added loss: {told}")


if __name__ == "__main__":
    main()
