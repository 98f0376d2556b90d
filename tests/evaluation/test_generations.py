"""What is written after prompts: where it ends, what a loop is, which choice is said, and the figures of it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import model
from toy import TEXTS, WORDS, tokenizer

from seap.evaluation.answers import extract_answer, recalled, said
from seap.evaluation.choices import choice_rows, multiple_choice
from seap.evaluation.evaluate import evaluate, load_test, prepare
from seap.evaluation.generations import Written, conduct, loops, written_after
from seap.evaluation.options import Evaluation
from seap.text.items import Item
from seap.text.turns import asked_and_answered
from seap.text.wording import in_free_form

TURNS = asked_and_answered("Which?", "fire")


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([7] * 16, True),
        ([7] * 15, False),  # too short to be called a loop
        ([*range(50), *[1, 2, 3, 4, 5, 6, 7] * 3], True),  # three rounds at the end of something else
        ([*[1, 2, 3, 4, 5, 6, 7] * 3, 99], False),  # it left the circle
        ([*range(100, 130), *[5, 6, 7, 8, 9, 10, 11, 12] * 2], False),  # two rounds
        ([*range(32)] * 3, True),
        ([*range(33)] * 3, False),  # rounds longer than those that count
        ([0, *([1, 2] * 12), 1], True),  # in the middle of a round
        (list(range(64)), False),
        ([], False),
    ],
)
def test_a_loop_is_three_rounds_at_the_end(ids: list[int], expected: bool) -> None:
    assert loops(ids) == expected


def test_shares_of_loops_and_of_what_does_not_end() -> None:
    written = [Written((7,) * 20, "", False), Written((1, 2), "", True), Written(tuple(range(20)), "", False)]
    found = conduct(written)
    assert found["loops"].value == pytest.approx(1 / 3) and found["endless"].value == pytest.approx(2 / 3)
    assert found["loops"].n == 3 and found["loops"].stderr > 0


def test_what_is_written_stops_at_any_of_the_ends() -> None:
    dense, words = model("llama"), tokenizer()
    prompts = [text.split()[0] for text in TEXTS[:6]]
    free = written_after(dense, words, prompts, max_new_tokens=8, batch_size=4)
    assert [len(one.ids) for one in free] == [8 if not one.ended else len(one.ids) for one in free]
    stop = next(one.ids[0] for one in free if one.ids)
    assert any(stop not in one.ids for one in free)
    dense.generation_config.eos_token_id = [2, stop]
    cut = written_after(dense, words, prompts, max_new_tokens=8, batch_size=4)
    for before, after in zip(free, cut, strict=True):
        end = next((i for i, token in enumerate(before.ids) if token == stop), None)
        assert after.ids == before.ids[:end]
        assert after.ended == (before.ended or end is not None)
        assert after.text == words.decode(after.ids, skip_special_tokens=True)


@pytest.mark.parametrize(
    ("text", "choices", "expected"),
    [
        ("The answer is: the Moon.", ["sun", "moon"], 1),
        ("Moonlight", ["sun", "moon"], None),  # a word, not a part of one
        ("It is the sun, not the moon", ["moon", "sun"], 1),  # what comes first
        ("dry palms, of course", ["dry", "dry palms"], 1),  # of two that begin at one word the longer
        ("No, it isn't. Yes?", ["yes", "no"], 1),
        ("a  dog's\nlife", ["The dog's life!", "cat"], 0),  # marks, case, articles and spaces
        ("", ["a b", "c"], None),
    ],
)
def test_which_choice_is_said(text: str, choices: list[str], expected: int | None) -> None:
    assert said(text, choices) == expected


def test_recall_is_of_the_items_that_were_recognised() -> None:
    items = [Item(text="", question="q", choices=("sun", "moon"), label=i % 2) for i in range(4)]
    written = [Written((), text, True) for text in ("sun", "moon", "moon", "no")]
    found = recalled(written, items, [1.0, 0.0, 1.0, 0.0])  # chosen right: the first and the third
    assert found["said"] is not None and found["said"].value == 0.5
    assert found["recall"] is not None and (found["recall"].value, found["recall"].n) == (0.5, 2)
    assert recalled(written, items, [0.0] * 4)["recall"] is None


def test_a_question_in_free_form_has_its_gold_answer_and_no_choices() -> None:
    item = in_free_form(Item(text="", question="Which is hot?", choices=("ice", "fire"), label=1))
    assert (item.prompt, item.answer, item.choices) == ("Question: Which is hot?\nAnswer:", " fire", ())
    listed = in_free_form(Item(text="", question="Which?", choices=("ice", "fire"), label=1, turns=TURNS), listed=True)
    asked = "Which?\nChoices:\n- ice\n- fire\nAnswer with one of the choices."
    assert listed.prompt == f"Question: {asked}\nAnswer:" and listed.turns[0].content == asked
    plain = Item(text="a b", prompt="a", answer=" b")
    assert in_free_form(plain) is plain


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("48/2 = 24, so\n#### 72", "72"),
        ("The answer is 72.", "72"),  # models that answer in a chat don't write ####
        ("it costs $1,072.50 in all.", "1072.50"),
        ("\\boxed{-7}", "-7"),
        ("#### 5\nand then 9", "5"),
        ("none", ""),
    ],
)
def test_a_number_is_the_answer_where_gold_has_one(text: str, expected: str) -> None:
    assert extract_answer(text, None, "3 + 4\n#### 7") == expected


def test_items_of_multiple_choice_are_asked_in_free_form_too(tmp_path: Path) -> None:
    rows = [{"question": t, "choices": [w, "w90 w91"], "answer": 0} for t, w in zip(TEXTS, WORDS, strict=False)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = Evaluation(num_items=6, say_items=4, max_new_tokens=5, window=10)
    test = load_test(f"toy={tmp_path / 'a.jsonl'}", options)
    dense = model("llama")
    row: dict[str, Any] = evaluate(dense, prepare(test, dense, tokenizer(), options), details=True)
    assert row["said_n"] == 4 and 0 <= row["said"] <= 1 and 0 <= row["loops"] <= 1 and 0 <= row["endless"] <= 1
    assert row["n"] == 6 and len(row["details"]["acc"]) == 6 == len(row["details"]["acc_norm"])
    assert sum(row["details"]["acc"]) / 6 == pytest.approx(row["acc"])
    total, count = map(sum, zip(*row["details"]["windows"], strict=True))
    assert total / count == pytest.approx(row["loss"]) and len(row["details"]["windows"]) == row["loss_n"] == 6
    fewer = Evaluation(num_items=6, num_windows=3, window=10)
    found = evaluate(dense, prepare(load_test(f"toy={tmp_path / 'a.jsonl'}", fewer), dense, tokenizer(), fewer))
    assert found["loss_n"] == 3 and found["n"] == 6 and "said" not in found and "details" not in found


def test_questions_in_other_words_are_chosen_by_their_own(tmp_path: Path) -> None:
    """The loss is of the test's text, the choice of the questions that are given."""
    rows = [{"question": t, "choices": [w, "w90"], "answer": i % 2} for i, (t, w) in enumerate(zip(TEXTS, WORDS))]  # noqa: B905
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options, dense, words = Evaluation(num_items=8, window=10), model("llama"), tokenizer()
    test = load_test(f"toy={tmp_path / 'a.jsonl'}", options)
    other = [replace(item, question=f"w50 w51 {item.question} w52") for item in test.items]
    found = evaluate(dense, prepare(test, dense, words, options, questions=other))
    plain, normalised = multiple_choice(dense, choice_rows(words, other), other)
    assert (found["acc"], found["acc_norm"]) == (plain.value, normalised.value)
    own = evaluate(dense, prepare(test, dense, words, options))
    assert found["loss"] == own["loss"] and choice_rows(words, other) != choice_rows(words, test.items)


def test_generated_answers_say_whether_they_end(tmp_path: Path) -> None:
    rows = [{"prompt": text, "answer": WORDS[i]} for i, text in enumerate(TEXTS)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = Evaluation(num_items=6, max_new_tokens=4, window=10)
    dense = model("llama")
    row = evaluate(dense, prepare(load_test(f"toy={tmp_path / 'a.jsonl'}", options), dense, tokenizer(), options))
    assert row["acc_metric"] == "exact match" and 0 <= row["endless"] <= 1 and row["loops"] == 0
