"""A model's own answers to a task's prompts: what is kept, what is dropped, and that a seed decides."""

import json
from pathlib import Path
from typing import Any

import pytest

import seap
from seap.cli.main import main
from seap.errors import UserError
from seap.text import builtin
from seap.text.items import Item
from seap.text.tasks import load_items, load_prompts
from seap.writing.answering import answer, judged
from seap.writing.author import Author
from seap.writing.options import Answering


@pytest.fixture(scope="module")
def loaded() -> Any:
    return seap.load("builtin", dtype="float32")


PROMPTS = [Item(text=item.prompt, prompt=item.prompt) for item in builtin.items("arithmetic", "train", 30)]
OPTIONS = Answering(max_new_tokens=16, batch_size=8)


def test_a_seed_decides_what_is_answered(loaded: Any) -> None:
    one, same, other = (
        answer(*loaded, PROMPTS, Answering(max_new_tokens=16, batch_size=8, seed=seed, temperature=1.0), progress=False)
        for seed in (0, 0, 1)
    )
    rows = [[found.row for found in made.answers] for made in (one, same, other)]
    assert rows[0] == rows[1] != rows[2]
    assert len(rows[0]) > 20 and all(row["answer"].strip().lstrip("-").isdigit() for row in rows[0][:5])
    assert {row["prompt"] for row in rows[0]} <= {item.prompt for item in PROMPTS} and rows[0][0]["generated"]


def test_answers_that_dont_end_loop_or_say_nothing_are_dropped(loaded: Any) -> None:
    author = Author(*loaded, OPTIONS.writing())
    (end,) = author.ends
    words = author.encode(" 12 + 30 = 42")
    assert judged(author, [*words, end, end]) == ("12 + 30 = 42", "")
    assert judged(author, list(words))[1] == "cut off"
    assert judged(author, [end])[1] == "blank"
    assert judged(author, [*(words * 12), end])[1] == "loop"
    parted = Author(*loaded, Answering(separator="\n").writing())
    assert judged(parted, parted.encode(" 42\n 12 + 3 =")) == ("42", "")


def test_where_nothing_is_fit_it_says_why(loaded: Any) -> None:
    with pytest.raises(
        UserError, match=r"none of 4 answers to 2 prompts was fit \(cut off 4\); raise --max-new-tokens"
    ):
        answer(*loaded, PROMPTS[:2], Answering(max_new_tokens=2), progress=False)
    long = [Item(text="12 + 3 = " * 400, prompt="12 + 3 = " * 400)]
    with pytest.raises(UserError, match=r"none of 0 answers to 1 prompts was fit \(prompt too long 1\)"):
        answer(*loaded, long, OPTIONS, progress=False)


def test_only_the_training_part_is_answered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [{"prompt": item.prompt, "answer": item.answer} for item in builtin.items("arithmetic", "train", 40)]
    path, out = tmp_path / "asked.jsonl", tmp_path / "answers.jsonl"
    path.write_text("\n".join(map(json.dumps, asked)))
    assert main(["corpus", "answer", "builtin", "--prompts", str(path), "--out", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    held = {item.prompt for item in load_items(f"asked={path}", "test")}
    assert held and not held & {row["prompt"] for row in rows}
    assert told["num_answers"] == len(rows) and told["prompts"]["source"] == str(path)
    assert told == json.loads((tmp_path / "answers.jsonl.meta.json").read_text()) | {"out": str(out)}
    items = load_items(f"own={out}", "train")
    assert all(item.is_generated and item.answer for item in items)


def test_prompts_need_no_answers(tmp_path: Path) -> None:
    path = tmp_path / "asked.jsonl"
    for rows, prompt in (
        ([{"prompt": f"p{i}"} for i in range(9)], "p"),
        ([{"question": f"p{i}", "context": "c"} for i in range(9)], "c\nQuestion: p"),
        ([{"messages": [{"role": "user", "content": f"p{i}"}]} for i in range(9)], "p"),
    ):
        path.write_text("\n".join(map(json.dumps, rows)))
        items, _ = load_prompts(str(path))
        assert len(items) == 7 and all(item.prompt and item.prompt.startswith(prompt) for item in items)
        assert all(item.turns[-1].content[-2:-1] == "p" for item in items)
    path.write_text(json.dumps({"prompt": "p"}))
    with pytest.raises(UserError, match="wrong columns: prompt"):
        load_items(f"a={path}", "train")
