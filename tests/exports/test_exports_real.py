"""What the run over exports of real models counts, and that it goes on where it stopped."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from paths import ROOT

from seap.errors import UserError


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "runs" / "engines"))
    import exports_real

    return exports_real


def said(*rows: list[float]) -> Any:
    """A model that answers with these logits, one row after the other, whatever it reads."""
    import opened

    left = [list(rows)]

    def reset() -> None:
        left[0] = list(rows)

    return opened.Opened(lambda ids: np.array(left[0].pop(0), dtype=np.float32), reset, 1)


def step(*logits: float) -> dict[str, list[Any]]:
    order = sorted(range(len(logits)), key=lambda i: -logits[i])
    return {"ids": order, "logits": [logits[i] for i in order]}


def test_texts_are_the_same_or_part_somewhere_by_so_much(run: ModuleType) -> None:
    wanted = [{"prompt": [5, 6], "steps": [step(0.0, 3.0, 1.0), step(2.0, 0.0, 1.75)]}] * 2
    same = run.compared(said([0, 3.25, 1], [2, 0, 1.75]), wanted)
    assert same == {"same_texts": 2, "of": 2, "parted": [], "largest_difference": 0.25}
    other = run.compared(said([0, 3, 1], [1.5, 0, 1.75]), wanted)
    assert other["same_texts"] == 0 and other["largest_difference"] == 0.5
    assert other["parted"] == [{"prompt": number, "token": 1, "gap": 0.25} for number in range(2)]


def test_rows_that_are_there_stay_but_for_those_that_failed(run: ModuleType, tmp_path: Path) -> None:
    settings, out = run.Settings("t", "flap", 0.3, 32, 8, 4, 1, 1), tmp_path / "rows.json"
    assert run.there(out, settings) == []
    rows = [{"model": "m", "form": "a", "ratio": 1.0}, {"model": "m", "form": "b", "failed": "x"}]
    out.write_text(json.dumps({"settings": vars(settings), "rows": rows}))
    assert run.there(out, settings) == rows[:1]
    with pytest.raises(UserError, match="other settings"):
        run.there(out, run.Settings("t", "flap", 0.5, 32, 8, 4, 1, 1))
