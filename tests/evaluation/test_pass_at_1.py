"""pass@1: which program an answer holds, what is asked for before any runs, and the figure of a task."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from tiny import model
from toy import WORDS, tokenizer

from seap.errors import UserError
from seap.evaluation import answers
from seap.evaluation.code import names_asked, program_of
from seap.evaluation.evaluate import evaluate, load_test, prepare
from seap.evaluation.generations import Written
from seap.evaluation.options import Evaluation
from seap.text.items import Item

HEAD = "import math\n\n\ndef helper(x):\n    return x\n\n\ndef twice(x):\n    '''Double it.'''\n"
ASKED = Item(text="", prompt="p", answer="def twice(x):\n    return 2 * x\n", checks="assert twice(1) == 2")
HEADED = Item(text="", prompt=HEAD, answer="    return 2 * x\n", head=HEAD, checks="assert twice(1) == 2")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Sure:\n```python\nx = 1\n```\nand\n```python\ny = 2\n```", "x = 1"),  # the first block
        ("```py\nx = 1\n  ```", "x = 1"),
        ("```\nx = 1", "x = 1"),  # one that isn't closed
        ("x = 1\nassert x == 1\ny", "x = 1"),
        ('x = 1\n"""\nanother task', "x = 1"),
        ("def f():\n    print(1)\n\nprint(f())", "def f():\n    print(1)\n"),
    ],
)
def test_the_program_of_an_answer(text: str, expected: str) -> None:
    assert program_of(text, ASKED) == expected


def test_a_head_is_gone_on_with_or_written_anew() -> None:
    assert program_of("    return 2 * x\n\nprint(twice(3))\n", HEADED) == f"{HEAD}    return 2 * x\n"
    anew = "```python\ndef twice(x):\n    return helper(2 * x)\n```"
    assert program_of(anew, HEADED) == f"{HEAD}\n    pass\n\ndef twice(x):\n    return helper(2 * x)"
    assert program_of("```python\n    return 2 * x\n```", HEADED) == f"{HEAD}    return 2 * x"
    assert names_asked(HEADED) == ("helper", "twice") and names_asked(ASKED) == ("twice",)
    assert names_asked(Item(text="", answer=" def f(x):\n    return x")) == ("f",)  # joined to its prompt by a space
    assert names_asked(Item(text="", answer="def broken(")) == ()


@pytest.fixture
def spec(tmp_path: Path) -> str:
    rows = [
        {"prompt": WORDS[i], "answer": f"def f{i}(x):\n    return {i} * x", "checks": f"assert f{i}(2) == {2 * i}"}
        for i in range(20)
    ]
    (tmp_path / "code.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return f"code={tmp_path / 'code.jsonl'}"


def test_no_program_runs_unasked(spec: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UserError, match=r"pass@1 runs the programs .* needs --run-generated-code; read docs/security"):
        load_test(spec, Evaluation(metric="pass@1"))
    with caplog.at_level(logging.WARNING):
        assert load_test(spec, Evaluation()).metric == "loss"
    assert "--run-generated-code; without it the loss alone is measured" in caplog.text
    assert load_test(spec, Evaluation(run_generated_code=True)).metric == "pass@1"


def test_pass_at_1_of_a_task(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options, dense = Evaluation(run_generated_code=True, num_items=4, max_new_tokens=3, window=10), model("llama")
    exam = prepare(load_test(spec, options), dense, tokenizer(), options)
    row: dict[str, Any] = evaluate(dense, exam, details=True)
    assert (row["acc"], row["acc_metric"], row["n"]) == (0.0, "pass@1", 4) and "endless" in row

    def gold(model: Any, tokenizer: Any, items: list[Item], options: Evaluation) -> list[Written]:
        good = [Written((1, 2), f"```python\n{(item.answer or '').strip()}\n```", True) for item in items]
        return [*good[:3], Written((1, 2), "while True: pass", True)]

    monkeypatch.setattr(answers, "written_answers", gold)
    row = evaluate(dense, prepare(exam.test, dense, tokenizer(), Evaluation(**vars(options) | {"program_seconds": 3})))
    assert row["acc"] == 0.75 and row["endless"] == 0
