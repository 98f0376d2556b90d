"""HumanEval and MBPP: what a model is asked, the checks, and which rows of one file may calibrate."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from paths import SHARED
from toy import tokenizer

from seap.errors import UserError
from seap.text.encode import prompt_ids
from seap.text.items import Item
from seap.text.options import Reading
from seap.text.tasks import load_items

HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": 'import math\n\n\ndef twice(x):\n    """Double it."""\n',
    "canonical_solution": "    return 2 * x\n",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n",
    "entry_point": "twice",
}


def mbpp(number: int, **changes: Any) -> dict[str, Any]:
    row = {
        "text": "Write a function to double. ",
        "code": f"def twice{number}(x):\r\n\treturn 2 * x",
        "task_id": number,
        "test_setup_code": "",
        "test_list": [f"assert twice{number}(1) == 2", f"assert twice{number}(2) == 4"],
        "challenge_test_list": [],
    }
    return row | changes


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_humaneval_is_gone_on_with_or_asked_for(tmp_path: Path) -> None:
    [item] = load_items(f"humaneval={jsonl(tmp_path / 'h.jsonl', [HUMANEVAL])}", "test")
    assert item.prompt == item.head == HUMANEVAL["prompt"] and item.answer == HUMANEVAL["canonical_solution"]
    assert item.text == HUMANEVAL["prompt"] + HUMANEVAL["canonical_solution"]
    assert item.checks == f"{HUMANEVAL['test']}\n\ncheck(twice)\n"
    asked, answered = item.turns
    assert asked.role == "user" and f"```python\n{HUMANEVAL['prompt'].rstrip()}\n```" in asked.content
    assert answered.content == f"```python\n{item.text.rstrip()}\n```" and answered.content.startswith(item.lead)


def test_in_a_chat_the_answer_is_begun_for_the_model(tmp_path: Path) -> None:
    [item] = load_items(f"humaneval={jsonl(tmp_path / 'h.jsonl', [HUMANEVAL])}", "test")
    words = tokenizer()
    words.add_tokens(["```python", "<ask>"])
    words.chat_template = "{{ messages[0]['content'] }} {% if add_generation_prompt %}<ask> {% endif %}"
    chat, plain = (words.decode(prompt_ids(words, item, Reading(template=kind))) for kind in ("chat", "none"))
    assert chat.rstrip().endswith("<ask> ```python") and "```python" not in plain


def test_humaneval_never_calibrates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = jsonl(tmp_path / "h.jsonl", [HUMANEVAL] * 5)
    with pytest.raises(UserError, match="'humaneval' has a test part alone, which never calibrates"):
        load_items(f"humaneval={path}", "train")
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=lambda *_, **__: [HUMANEVAL]))
    with pytest.raises(UserError, match="has a test part alone"):
        load_items("humaneval", "train")
    assert len(load_items("humaneval", "test")) == 1


def test_mbpp_is_parted_by_the_numbers_of_its_tasks(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "m.jsonl", [mbpp(n) for n in (1, 10, 11, 510, 511, 600, 601, 974)])
    train, test = (load_items(f"mbpp={path}", split) for split in ("train", "test"))
    assert [item.checks.split("(")[0] for item in train] == ["assert twice601", "assert twice974"]
    assert [item.checks.split("(")[0] for item in test] == ["assert twice11", "assert twice510"]
    item = test[0]
    assert item.answer == "def twice11(x):\n    return 2 * x\n" and item.text == f"{item.prompt}{item.answer}"
    assert item.prompt == ('"""\nWrite a function to double.\nassert twice11(1) == 2\nassert twice11(2) == 4\n"""\n')
    assert "assert twice11(2) == 4" in item.turns[0].content
    assert item.turns[1].content == "```python\ndef twice11(x):\n    return 2 * x\n```"
    setup = jsonl(tmp_path / "s.jsonl", [mbpp(n, test_setup_code="root = 1") for n in (20, 21)])
    assert load_items(f"mbpp={setup}", "test")[0].checks.startswith("root = 1\nassert twice20")


def test_other_files_under_these_names_are_split_like_any_other(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "m.jsonl", [{"prompt": f"p{i}", "answer": "a"} for i in range(10)])
    assert len(load_items(f"mbpp={path}", "train")) == 8 and len(load_items(f"mbpp={path}", "test")) == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [({"test_list": []}, "test_list is empty"), ({"task_id": "x"}, "task_id 'x'; MBPP's are numbers")],
)
def test_bad_rows_are_named(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "m.jsonl", [mbpp(20), mbpp(21) | change])
    with pytest.raises(UserError, match=f"m.jsonl.* 2: {said}"):
        load_items(f"mbpp={path}", "test")


def test_checks_of_ones_own_data(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Double {i}.", "answer": "def f(x): …", "checks": f"assert f({i}) == {2 * i}"} for i in range(5)
    ]
    items = load_items(f"mine={jsonl(tmp_path / 'a.jsonl', rows)}", "train")
    assert {item.checks for item in items} < {row["checks"] for row in rows}
    assert all(isinstance(item, Item) and not item.head for item in items)


@pytest.mark.skipif(not (SHARED / "data" / "code").is_dir(), reason="the workshop's data isn't here")
def test_the_real_files() -> None:
    code = SHARED / "data" / "code"
    assert len(load_items(f"humaneval={code / 'humaneval.jsonl'}", "test")) == 164
    test, train = (load_items(f"mbpp={code / 'mbpp.jsonl'}", split) for split in ("test", "train"))
    assert (len(test), len(train)) == (500, 374) and not {i.text for i in test} & {i.text for i in train}
