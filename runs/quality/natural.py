"""One kind of text as these scripts measure with it: its calibration text, and the test of a model's loss on it."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from seap.activations.calibration import calibrate
from seap.activations.stats import Statistics
from seap.evaluation.evaluate import Exam, evaluate, load_test, prepare
from seap.evaluation.options import Evaluation
from seap.pruning.prune import build_corpora
from seap.text.corpus import Corpus
from seap.text.options import Calibration

TESTING = Evaluation(metric="loss", num_items=16, window=256)


def calibration(tokens: int, seed: int = 0) -> Calibration:
    return Calibration(num_texts=2000, seq_len=256, pack=True, max_tokens=tokens, second_moments=True, seed=seed)


def test_of(kind: str, folder: Path, dense: Any, tokenizer: Any, items: int = TESTING.num_items) -> Exam:
    testing = replace(TESTING, num_items=items)
    return prepare(load_test(f"{kind}={folder}", testing), dense, tokenizer, testing)


@dataclass(frozen=True)
class Measured:
    """What a dense model does on one kind of text."""

    kind: str
    corpus: Corpus
    statistics: dict[str, Statistics]
    exam: Exam
    loss: float

    @classmethod
    def of(
        cls, kind: str, folder: Path, dense: Any, tokenizer: Any, options: Calibration, items: int = TESTING.num_items
    ) -> "Measured":
        [corpus] = build_corpora(dense, tokenizer, f"{kind}={folder}", options).values()
        found = {kind: calibrate(dense, corpus, options, progress=False)}
        exam = test_of(kind, folder, dense, tokenizer, items)
        return cls(kind, corpus, found, exam, evaluate(dense, exam)["loss"])

    def row(self, model: Any, realised_sparsity: float, **about: Any) -> dict[str, Any]:
        """A result: a network's loss, and what it adds to the dense model's."""
        loss = evaluate(model, self.exam)["loss"]
        found = {"kind": self.kind, **about, "loss": loss, "added_loss": loss - self.loss}
        text = {"calibration_tokens": self.corpus.num_tokens, "data_hash": self.corpus.data_hash}
        return found | {"realised_sparsity": realised_sparsity} | text
