"""Items as tokens: in the model's own template or plain, one beginning of text, and exactly the answers marked."""

import re
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from seap.errors import UserError
from seap.serving.server.messages import as_lines, read_messages, turns_for
from seap.text import tokens
from seap.text.corpus import build_corpus
from seap.text.encode import encode, prompt_ids
from seap.text.items import to_items
from seap.text.options import Calibration, Reading
from seap.text.readers import Row
from seap.text.shapes import Item
from seap.text.templates import render

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WITH_BOS = "<s>" + CHATML
FORGETFUL = (  # writes of earlier answers only what comes after their thinking, and opens a thought when asked for one
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and not loop.last %}{{ m.content.split('</think>')[-1].strip() }}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
TOOLED = "{% if tools %}<|im_start|>system\n{{ tools[0].function.name }}<|im_end|>\n{% endif %}" + CHATML


def characters(template: Any = None) -> Any:
    """A tokenizer of one character per token that marks the beginning of a text."""
    letters = [chr(i) for i in range(32, 127)] + ["\n", "ü", "€"]
    special = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    own = Tokenizer(models.WordLevel({word: i for i, word in enumerate(special + letters)}, unk_token="<pad>"))
    own.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    own.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    made = PreTrainedTokenizerFast(tokenizer_object=own, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    made.add_special_tokens({"additional_special_tokens": special[3:]})
    made.chat_template = template
    return made


def talk(*said: str, **more: Any) -> Item:
    """User and assistant in turn."""
    roles = ["user", "assistant"] * len(said)
    messages = [{"role": role, "content": text} for role, text in zip(roles, said, strict=False)]
    (item,) = to_items([Row("here", {"messages": messages} | more)], "mine")
    return item


def answers(tokenizer: Any, item: Item, **reading: Any) -> list[str]:
    """The stretches of tokens that are an answer's, as text."""
    found = encode(tokenizer, item, Reading(weigh="answer") if not reading else Reading(**reading))
    assert found.written is not None
    text = "".join(
        tokenizer.decode([token]) if mark else "\0" for token, mark in zip(found.ids, found.written, strict=True)
    )
    return [part for part in re.split("\0+", text) if part]


def served(tokenizer: Any, messages: Any) -> tuple[int, ...]:
    """The tokens that the server asks a model with (its `encode_chat`)."""
    if not tokenizer.chat_template:
        return tuple(tokens.encode(tokenizer, as_lines(messages)))
    text = render(tokenizer, turns_for(tokenizer, messages))
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_a_template_writes_its_own_beginning() -> None:
    item = talk("hi", "yo")
    for template, count in ((CHATML, 0), (WITH_BOS, 1)):
        ids = encode(characters(template), item, Reading()).ids
        assert ids.count(1) == count
    plain = encode(characters(), item, Reading()).ids
    assert plain.count(1) == 1 and encode(characters(CHATML), item, Reading(template="none")).ids == plain
    assert encode(characters(CHATML), Item(text="hi yo"), Reading()).ids == plain  # text stays plain


def test_the_server_and_a_test_ask_alike() -> None:
    for template in (None, CHATML, WITH_BOS):
        words = characters(template)
        for said in (("hi", "yo"), ("hi", "yo", "and?", "so")):
            item = talk(*said)
            asked = read_messages([turn.message for turn in item.turns[:-1]])
            ids = prompt_ids(words, item, Reading())
            assert ids == served(words, asked)
            assert encode(words, item, Reading()).ids[: len(ids)] == ids


def test_templates_that_know_no_calls_are_told_them_as_the_server_does() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "clock", "arguments": '{"zone": "CET"}'}}
    messages = [
        {"role": "user", "content": "when?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "12", "tool_call_id": "1"},
        {"role": "assistant", "content": "noon"},
    ]
    (item,) = to_items([Row("here", {"messages": messages})], "mine")
    knowing = (
        "{% for m in messages %}{{ m.role }}{% for c in m.tool_calls %}{{ c.function.arguments.zone }}{% endfor %}"
    )
    for template in (None, CHATML, knowing + "{{ m.content }}{% endfor %}"):
        words = characters(template)
        assert prompt_ids(words, item, Reading()) == served(words, read_messages(messages[:-1]))


@pytest.mark.parametrize("template", [CHATML, WITH_BOS])
def test_answers_are_marked_with_the_token_that_ends_them(template: str) -> None:
    words = characters(template)
    assert answers(words, talk("hi", "yo", "and?", "so")) == ["yo<|im_end|>", "so<|im_end|>"]
    assert answers(words, talk("yo", "yo")) == ["yo<|im_end|>"]  # what the user said isn't one
    assert answers(words, talk("Zürich €", "ü€")) == ["ü€<|im_end|>"]
    assert answers(words, talk("hi", "yo", "thanks")) == ["yo<|im_end|>"]


def test_answers_that_a_template_rewrites_are_found() -> None:
    words = characters(FORGETFUL)
    assert answers(words, talk("hi", "<think>\nhm</think>\nyo")) == ["hm</think>\nyo<|im_end|>"]
    found = answers(words, talk("hi", "yo", "and?", "<think>\nx</think>so"))
    assert found[0] == "yo<|im_end|>" and found[-1].endswith("so<|im_end|>") and len(found) == 2


def test_plain_answers_are_marked() -> None:
    words = characters()
    assert answers(words, talk("hi", "yo")) == [" yo"]
    assert answers(words, talk("hi", "yo", "and?", "so")) == [" yo", " so"]
    asked = {"question": "When?", "answer": "noon"}
    (item,) = to_items([Row("here", asked)], "mine")
    assert answers(words, item) == [" noon"]
    (item,) = to_items([Row("here", asked | {"text": "When? Noon"})], "mine")
    assert answers(words, item) == [" Noon"]
    assert answers(words, Item(text="a b")) == ["a b"]  # nobody asked: all of it is to be written


def test_generated_answers_are_the_last_of_rows_that_say_so() -> None:
    words = characters(CHATML)
    own = talk("hi", "yo", "and?", "so", generated=True)
    assert answers(words, own, weigh="generated") == ["so<|im_end|>"]
    assert answers(words, talk("hi", "yo"), weigh="generated") == []


def test_one_of_several_templates_is_chosen_by_the_tools() -> None:
    words = characters({"default": CHATML, "tool_use": TOOLED})
    tools = [{"type": "function", "function": {"name": "clock"}}]
    both = [words.decode(encode(words, talk("hi", "yo", **more), Reading()).ids) for more in ({"tools": tools}, {})]
    assert ["c l o c k" in text for text in both] == [True, False]
    assert answers(words, talk("hi", "yo", tools=tools)) == ["yo<|im_end|>"]


def test_multiple_choice_is_plain_unless_it_is_asked_for() -> None:
    words, row = characters(CHATML), {"question": "When?", "choices": ["noon", "six"], "answer": 1}
    (item,) = to_items([Row("here", row)], "mine")
    assert not encode(words, item, Reading()).in_template
    assert answers(words, item) == [" six"]
    assert answers(words, item, template="chat", weigh="answer") == ["six<|im_end|>"]


def test_what_cant_be_is_refused() -> None:
    with pytest.raises(UserError, match="no chat template"):
        encode(characters(), talk("hi", "yo"), Reading(template="chat"))
    with pytest.raises(UserError, match="'plain words' is plain text"):
        encode(characters(CHATML), Item(text="plain words"), Reading(template="chat"))
    with pytest.raises(UserError, match="--weigh generated: none of 1 texts has an answer that the model wrote"):
        build_corpus("mine", [talk("hi", "yo")], characters(CHATML), Calibration(weigh="generated"), source="here")
    with pytest.raises(UserError, match="--weigh answer: none of 1 texts has an answer within --seq-len"):
        build_corpus("mine", [talk("hi" * 99, "yo")], characters(), Calibration(weigh="answer", seq_len=20), source="x")


def test_a_corpus_counts_the_places_that_predict_answers() -> None:
    words = characters(CHATML)
    made = build_corpus("mine", [talk("hi", "yo"), talk("hi")], words, Calibration(weigh="answer"), source="here")
    (row,) = made.rows
    first, *places = [place for place, counts in enumerate(row.counted) if counts]
    assert "".join(words.decode([row[place + 1]]) for place in places) == "yo<|im_end|>" and made.num_counted == 4
    assert first == 0  # where the activations are that every token attends to, though no answer's
    assert (made.uncounted, made.in_template) == (1, 1) and made.told["counted"] == 4
    everything = build_corpus("mine", [talk("hi", "yo")], words, Calibration(), source="here")
    assert everything.rows == (tuple(row),) and everything.data_hash != made.data_hash


def test_packed_rows_keep_what_counts() -> None:
    words = characters()
    items = [talk(f"q{i}", f"a{i}") for i in range(9)]
    loose = build_corpus("mine", items, words, Calibration(weigh="answer"), source="here")
    packed = build_corpus("mine", items, words, Calibration(weigh="answer", pack=True, seq_len=16), source="here")
    assert [token for row in packed.rows for token in row] == [token for row in loose.rows for token in row]
    lost = sum(row.counted != (True,) for row in packed.rows)  # a row's last place predicts nothing
    loosely, packedly = (sum(sum(row.counted[1:]) for row in corpus.rows) for corpus in (loose, packed))
    assert loosely - 2 * len(packed.rows) <= packedly <= loosely and lost  # an answer may begin in a row's first place
    assert all(row.counted[0] for row in packed.rows)
