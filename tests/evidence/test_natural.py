"""A real language model: task masks beat chance, and lose less than another task's. Skipped where it isn't at hand."""

from pathlib import Path
from typing import Any

import pytest
from paths import SHARED

import seap
from seap.evaluation.metrics import Row, loss
from seap.pruning.prune import build_corpora
from seap.text.options import Calibration

pytestmark = pytest.mark.skipif(
    not (SHARED / "models/natural-7m").is_dir(), reason="needs ../shared, the workshop's data"
)
CALIBRATION: dict[str, Any] = {"num_texts": 400, "seq_len": 256, "pack": True, "max_tokens": 24 * 256}
QUICK: dict[str, Any] = {"batch_tokens": 2048, "probe_tokens": 256, "search_evaluations": 10, "fisher_tokens": 1024}


def test_pruned_for_a_kind_of_text_it_loses_least_on_that_kind() -> None:
    specs = {kind: f"{kind}={SHARED}/data/natural/{kind}" for kind in ("gsm8k", "code")}
    losses: dict[tuple[str, str], float] = {}
    for made_for in (*specs, "random"):
        model, tokenizer = seap.load(str(SHARED / "models/natural-7m"), device="cpu", dtype="float32")
        if made_for == "random":
            report = seap.prune(model, method="random", sparsity=0.5, progress=False)
        else:
            report = seap.prune(
                model, tokenizer, task=specs[made_for], sparsity=0.5, progress=False, **QUICK, **CALIBRATION
            )
        assert report.realised_sparsity == pytest.approx(0.5, abs=1e-3)
        for kind, spec in specs.items():
            losses[made_for, kind] = loss(model, _test_rows(model, tokenizer, spec)).value
    for kind, other in (("gsm8k", "code"), ("code", "gsm8k")):
        assert losses[kind, kind] < losses[other, kind] - 0.3
        assert losses[kind, kind] < losses["random", kind] - 0.5


def _test_rows(model: Any, tokenizer: Any, spec: str) -> list[Row]:
    name, path = spec.split("=")
    options = Calibration(**(CALIBRATION | {"max_tokens": 8 * 256, "seed": 1}))
    corpora = build_corpora(model, tokenizer, f"{name}={next(Path(path).glob('test.*'))}", options)
    return [Row(ids) for ids in corpora[name].rows]
