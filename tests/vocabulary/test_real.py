"""Real tokenizers cut to a task: any text comes back, seen text is read as before, little of unseen text changes."""

from typing import Any

import pytest
from paths import REAL, SHARED
from transformers import AutoTokenizer

from seap.text.options import Calibration
from seap.text.tasks import load_items
from seap.vocabulary.closure import closed_order
from seap.vocabulary.counts import counted
from seap.vocabulary.described import describe_tokenizer
from seap.vocabulary.rewriting import SAMPLES, Source

MOST = 300
TASKS = SHARED / "data" / "tasks"
# share of the tokens that the training text uses at most, and of unseen text's that stay at least
FIGURES = {
    ("smollm2-135m", "arc_easy"): (0.2, 0.93),
    ("smollm2-135m", "gsm8k"): (0.35, 0.98),
    ("qwen2.5-coder-0.5b", "gsm8k"): (0.12, 0.98),
    ("gemma-3-270m", "arc_easy"): (0.06, 0.92),
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "task"), FIGURES)
def test_a_real_tokenizer_is_cut_to_a_task(name: str, task: str) -> None:
    if not (REAL / name).is_dir() or not (TASKS / task).is_dir():
        pytest.skip(f"needs {REAL / name} and {TASKS / task}: set SEAP_REAL and SEAP_SHARED")
    whole: Any = AutoTokenizer.from_pretrained(REAL / name)
    described, reading = describe_tokenizer(whole), Calibration(template="none")
    seen, unseen = (load_items(f"{task}={TASKS / task}", split) for split in ("train", "test"))
    used, other = (counted(whole, items, reading) for items in (seen, unseen[:MOST]))
    most, least = FIGURES[name, task]
    assert len(used) / len(described.ids) < most
    assert sum(number for token, number in other.items() if token in used) / other.total() > least
    needed = described.foundation - described.placeholders
    kept = sorted(closed_order(sorted(needed), used, described.parts))
    made = Source(whole, described).smaller(kept)
    for text in [item.text for item in (*seen[:MOST], *unseen[:MOST])] + list(SAMPLES):
        old, new = whole(text)["input_ids"], made(text)["input_ids"]
        assert made.decode(new) == whole.decode(old)
        if set(old) <= set(kept):
            assert [kept[i] for i in new] == old
