"""How multiple choice is calibrated on: as text, as it is asked, with its choices listed, or by turns."""

from typing import Any, get_args

import pytest
from toy import WORDS, tokenizer

from seap.errors import UserError
from seap.text.corpus import build_corpus
from seap.text.items import to_items
from seap.text.options import Calibration, Wording
from seap.text.readers import Row
from seap.text.shapes import Item
from seap.text.wording import in_free_form, worded
from seap.vocabulary.counts import count

TEMPLATE = "{% for m in messages %}w80 {{ m.content }} w81 {% endfor %}"


def items(count: int = 8) -> list[Item]:
    rows = [
        {"question": f"{WORDS[i]} {WORDS[i + 1]}", "choices": [WORDS[i + 20], WORDS[i + 30]], "answer": i % 2}
        for i in range(count)
    ]
    return to_items([Row(f"row {i}", row) for i, row in enumerate(rows)], "mine")


def texts(template: str | None = None, **options: Any) -> list[str]:
    words = tokenizer()
    words.chat_template = template
    corpus = build_corpus("mine", items(), words, Calibration(**options), source="test")
    return [words.decode(row) for row in corpus.rows]


def test_text_whose_choices_are_listed_has_them_before_its_answer() -> None:
    (item,) = items(1)
    found = worded(item, 0, "listed")
    gold = item.choices[0]
    lines = f"Choices:\n- {gold}\n- {item.choices[1]}\nAnswer with one of the choices."
    assert found.text == f"Question: {item.question}\n{lines}\nAnswer: {gold}"
    assert found.text == (found.prompt or "") + (found.answer or "") and not found.choices
    assert found.answer_start == len(found.prompt or "")


def test_an_asked_text_is_a_test_s_prompt_and_the_right_choice() -> None:
    (item,) = items(1)
    found = worded(item, 0, "asked")
    assert found.text == f"Question: {item.question}\nAnswer: {item.choices[0]}"
    assert found.choices == item.choices and found.turns == item.turns
    assert found.answer_start == len(found.text) - len(f" {item.choices[0]}")


def test_a_question_behind_a_passage_is_not_announced_twice() -> None:
    row = {"question": "is it", "passage": "It is so.", "answer": True}
    (item,) = to_items([Row("row", row)], "boolq")
    assert worded(item, 0, "asked").text == "It is so.\nQuestion: Is it?\nAnswer: yes"
    assert in_free_form(item).prompt == "It is so.\nQuestion: Is it?\nAnswer:"
    assert worded(item, 0, "plain").text == "It is so.\nQuestion: Is it? Yes"  # as the paper has it


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("hellaswag", {"ctx": "he", "endings": ["runs", "rests"], "label": 1}),
        ("hellaswag", {"question": "he", "choices": ["runs", "rests"], "answer": 1}),  # a copy of its own columns
        ("winogrande", {"sentence": "it is _ now", "option1": "hot", "option2": "cold", "answer": "1"}),
    ],
)
def test_choices_that_go_on_with_the_text_answer_no_question(name: str, row: dict[str, Any]) -> None:
    (item,) = to_items([Row("row", row)], name)
    assert worded(item, 0, "asked") is item and worded(item, 0, "both") is item
    assert "Choices:" in worded(item, 1, "both").text
    (own,) = to_items([Row("row", {"question": "he", "choices": ["runs", "rests"], "answer": 1})], "mine")
    assert worded(own, 0, "asked").text == "Question: he\nAnswer: rests"


def test_texts_are_asked_and_listed_by_turns_where_both_are_wanted() -> None:
    drawn = items(4)
    found = [worded(item, place, "both") for place, item in enumerate(drawn)]
    by_turns = [worded(item, 0, "listed" if place % 2 else "asked") for place, item in enumerate(drawn)]
    assert [one.text for one in found] == [one.text for one in by_turns]
    assert all(worded(item, place, "plain") is item for place, item in enumerate(drawn))


@pytest.mark.parametrize(
    "item",
    [
        Item(text="a b", prompt="a", answer=" b"),
        Item(text="a"),
        Item(text="it is so", choices=("so", "so"), contexts=("he is", "it is"), label=1),  # contexts to tell apart
        Item(text="a b", question="a", choices=("b", "c")),  # nothing says which one is right
    ],
)
def test_what_has_no_question_with_a_right_choice_stays_as_it_is(item: Item) -> None:
    assert all(worded(item, place, wording) is item for wording in get_args(Wording) for place in (0, 1))


def test_a_text_that_the_data_gives_is_what_calibration_reads() -> None:
    row = {"question": "w3", "choices": ["w4", "w5"], "answer": 1, "text": "w6 w7 w8"}
    (item,) = to_items([Row("row", row)], "mine")
    assert worded(item, 1, "listed") is item and item.text == "w6 w7 w8"


def test_calibration_reads_items_as_they_are_worded() -> None:
    plain, asked, listed, both = (texts(wording=wording) for wording in get_args(Wording))
    assert len(plain) == len(asked) == len(listed) == len(both) == 8
    assert both[::2] == asked[::2] and both[1::2] == listed[1::2]
    assert texts() == both
    assert all(len(long) > len(short) for long, short in zip(listed, asked, strict=True))
    assert all(len(long) > len(short) for long, short in zip(asked, plain, strict=True))


def test_listed_text_is_in_the_template_and_other_text_is_not() -> None:
    found = texts(TEMPLATE, wording="both")
    assert [text.startswith("w80") for text in found] == [False, True] * 4
    assert all(text.startswith("w80") for text in texts(TEMPLATE, wording="listed"))
    for wording in ("plain", "asked"):
        assert not any(text.startswith("w80") for text in texts(TEMPLATE, wording=wording))


def test_an_open_question_has_no_choices_in_its_text() -> None:
    (item,) = items(1)
    assert in_free_form(item).text == f"Question: {item.question}\nAnswer: {item.choices[0]}"


def test_another_wording_is_refused() -> None:
    with pytest.raises(UserError, match="wording"):
        Calibration(wording="open")  # type: ignore[arg-type]


def test_a_vocabulary_is_counted_in_the_same_wording() -> None:
    words, texts = tokenizer(), {"mine": items()}
    wrong = {token for item in items() for token in words(item.choices[1 - (item.label or 0)])["input_ids"]}
    plain, asked, listed, both = (
        count(words, texts, Calibration(wording=w)).whole()["mine"].keys() for w in get_args(Wording)
    )
    assert not wrong & (plain | asked) and wrong <= listed
    assert wrong & both and not wrong <= both
