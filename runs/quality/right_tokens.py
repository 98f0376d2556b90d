"""Which tokens to calibrate on: plain or in the template, all or the answer's, gold or the model's own answers.

    python runs/quality/right_tokens.py NAME=MODEL… --tasks gsm8k=DATA/gsm8k,mbpp=MBPP.jsonl --out FILE

A row per model, task, sparsity and text: `reading` (plain, template), `weigh` (all, answer), `answers` (gold, own).
Every text is cut to the same number of tokens read. Networks are made in closed form (`--method seap --score obs
--allocate logistic --no-sequential`; another score with --score) or, with --default, as `seap prune` makes them; with
--texts of some of the texts alone. Tested, in the template where the model has one: held-out loss on the gold answers'
tokens, and KL and agreement with the dense model on answers that it writes itself to the test's prompts.
Models without a template have no rows `template`. The file is written after every row, and a second run goes on.
"""

import argparse
import json
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from seap.activations.calibration import calibrate
from seap.environment import provenance
from seap.errors import UserError
from seap.evaluation.evaluate import Test, loss_rows
from seap.evaluation.likeness import Reference, loss_and_likeness
from seap.evaluation.metrics import Row, loss
from seap.evaluation.options import Evaluation
from seap.files import digest, write_json
from seap.models import loader
from seap.pruning.prune import prune
from seap.selection.options import Pruning
from seap.selection.ranking import Ranking, rank
from seap.text.corpus import Corpus, build_corpus, longest_sequence
from seap.text.items import Item, to_items
from seap.text.options import Calibration
from seap.text.readers import Row as Source
from seap.text.tasks import load_items, parse_spec
from seap.writing.answering import answer
from seap.writing.options import Answering

CLOSED: dict[str, Any] = {"method": "seap", "allocate": "logistic", "sequential": False}
Key = tuple[str, str, str]  # reading, weigh, answers


@dataclass
class Case:
    """One model on one task: what it may be calibrated on, and what it is tested on."""

    name: str
    task: str
    model: Any
    tokenizer: Any
    gold: list[Item]
    own: list[Item]
    tests: dict[str, list[Row]]  # gold: the loss is of these; own: the likeness to the dense model
    reference: Reference

    def corpora(self, a: argparse.Namespace) -> dict[Key, Corpus]:
        """By (reading, weigh, answers), cut to equal tokens."""
        readings = ("plain", "template") if self.tokenizer.chat_template else ("plain",)
        keys = [(r, w, x) for r in readings for w in ("all", "answer") for x in ("gold", "own")]
        keys = [key for key in keys if not a.texts or "-".join(key) in a.texts]
        most = min(a.tokens, *(self.corpus(key, a.tokens, a).num_tokens for key in keys))
        return {key: self.corpus(key, most, a) for key in keys}

    def corpus(self, key: Key, most: int, a: argparse.Namespace) -> Corpus:
        reading, weigh, answers = key
        template = "none" if reading == "plain" else "auto"
        options = Calibration(
            num_texts=10**6, max_tokens=most, seq_len=a.seq_len, template=template, weigh=weigh, seed=a.seed
        )
        items = self.gold if answers == "gold" else self.own
        length = longest_sequence(self.model, options)
        return build_corpus(self.task, items, self.tokenizer, options, source=answers, seq_len=length)


def own_answers(
    model: Any, tokenizer: Any, items: list[Item], num: int, a: argparse.Namespace, seed: int
) -> list[Item]:
    """Items with the dense model's answers in place of the gold ones."""
    options = Answering(num=num, max_new_tokens=a.new_tokens, batch_size=a.batch_size, seed=seed, separator=a.separator)
    found = answer(model, tokenizer, items, options)
    return to_items([Source(f"answer {i}", one.row) for i, one in enumerate(found.answers, start=1)], "own")


def prepared(name: str, folder: str, spec: str, a: argparse.Namespace) -> Case:
    model, tokenizer = loader.load_for_work(folder, dtype=a.dtype)
    task, longest = parse_spec(spec).name, getattr(model.config, "max_position_embeddings", None)
    gold, test = load_items(spec, "train"), load_items(spec, "test")
    if not all(item.prompt or item.turns for item in (*gold, *test)):
        raise UserError(f"task {task} has texts without a prompt and an answer; mbpp is read so by that name alone")
    own = own_answers(model, tokenizer, gold, a.answers, a, a.seed)
    written = own_answers(model, tokenizer, test, a.test_items, a, a.seed + 1)
    options = Evaluation(num_items=a.test_items, window=a.seq_len, weigh="answer")
    rows = {}
    for kind, items in (("gold", test), ("own", written)):
        rows[kind] = [
            row for _, row in loss_rows(tokenizer, Test(task, tuple(items), "loss"), options, longest=longest)
        ]
    return Case(name, task, model, tokenizer, gold, own, rows, Reference(model))


def method_of(a: argparse.Namespace) -> dict[str, Any]:
    """How networks are made, for `rank` and `prune`."""
    return {"method": "seap"} if a.default else CLOSED | {"score": a.score}


def add_method(parser: argparse.ArgumentParser, *, score: str) -> None:
    parser.add_argument("--default", action="store_true", help="networks as `seap prune` makes them")
    parser.add_argument("--score", default=score, help="of networks in closed form")


def measured(
    case: Case, key: Key, corpus: Corpus, sparsity: float, ranking: Ranking, method: dict[str, Any]
) -> dict[str, Any]:
    pruned = deepcopy(case.model)
    report = prune(pruned, ranking=ranking, sparsity=sparsity, progress=False, **method)
    gold = loss(pruned, case.tests["gold"])
    own, kl, same = loss_and_likeness(pruned, case.reference, case.tests["own"])
    return {
        "model": case.name,
        "task": case.task,
        **dict(zip(("reading", "weigh", "answers"), key, strict=True)),
        "sparsity": sparsity,
        "realised_sparsity": report.realised_sparsity,
        "tokens": corpus.num_tokens,
        "counted": corpus.num_counted,
        "loss_on_answer": gold.value,
        "loss_stderr": gold.stderr,
        "dense_loss_on_answer": loss(case.model, case.tests["gold"]).value,
        "loss_on_own": own.value,
        "kl_on_own": kl.value,
        "kl_stderr": kl.stderr,
        "agreement_on_own": same.value,
        "n": gold.n,
        "n_own": kl.n,
        "data_hash": corpus.data_hash,
    }


def run(case: Case, a: argparse.Namespace, done: dict[str, Any]) -> None:
    """The rows of one model and task that aren't there yet; each is written as soon as it is known."""
    corpora, method = case.corpora(a), method_of(a)
    for key, corpus in tqdm(corpora.items(), desc=f"{case.name} {case.task}"):
        wanted = {sparsity: digest([case.name, case.task, key, sparsity, corpus.data_hash]) for sparsity in a.sparsity}
        if all(found in done["rows"] for found in wanted.values()):
            continue
        statistics = calibrate(case.model, corpus, Calibration(second_moments=True), progress=False)
        ranking = rank(case.model, {case.task: statistics}, Pruning(**method), seed=a.seed)
        for sparsity, name in wanted.items():
            if name not in done["rows"]:
                done["rows"][name] = measured(case, key, corpus, sparsity, ranking, method)
                saved(a, done)


def saved(a: argparse.Namespace, done: dict[str, Any]) -> None:
    told = {"rows": list(done["rows"].values()), "keys": list(done["rows"]), "method": method_of(a)}
    write_json(a.out, told | {"options": {k: str(v) for k, v in vars(a).items()}} | provenance())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="NAME=FOLDER")
    parser.add_argument("--tasks", required=True, help="NAME=PATH,… with prompts and answers, in train and test parts")
    parser.add_argument("--out", type=Path, default=Path("results/quality/right_tokens.json"))
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.2, 0.5])
    add_method(parser, score="obs")
    parser.add_argument(
        "--texts", nargs="+", default=[], help="READING-WEIGH-ANSWERS, of plain, all and gold; all of them"
    )
    parser.add_argument("--tokens", type=int, default=16384, help="read, of each text; fewer where one has fewer")
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--answers", type=int, default=160, help="prompts to answer, to calibrate on")
    parser.add_argument("--test-items", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=200, help="of an answer, at most")
    parser.add_argument("--separator", help="where a model without a template ends an answer")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="float32", help="of the arithmetic, on a GPU too")
    a = parser.parse_args()
    done: dict[str, Any] = {"rows": {}}
    if a.out.is_file():
        there = json.loads(a.out.read_text())
        done["rows"] = dict(zip(there["keys"], there["rows"], strict=True))
    for given in a.models:
        name, _, folder = given.partition("=")
        for spec in a.tasks.split(","):
            try:
                run(prepared(name, folder, spec, a), a, done)
            except UserError as error:
                raise SystemExit(f"{name}, {spec}: {error}") from error


if __name__ == "__main__":
    main()
