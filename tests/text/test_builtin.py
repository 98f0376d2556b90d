import random
import re
from collections import Counter
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from seap.models import loader
from seap.text import builtin

NUM_ASKED = 24


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(loader.model_path())


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(loader.model_path()).eval()


def test_there_are_enough_tasks_with_names_for_the_command_line() -> None:
    assert len(builtin.TASKS) >= 8
    assert all(re.fullmatch("[a-z][a-z_]*", task) for task in builtin.TASKS)


@pytest.mark.parametrize("task", builtin.TASKS)
def test_no_test_prompt_is_a_training_prompt(task: str) -> None:
    test = {item.prompt for item in builtin.items(task, "test", 400)}
    rng = random.Random(1)
    train = {builtin.draw(task, "train", rng).prompt for _ in range(4000)}
    assert len(test) == 400
    assert len(train) > 2000
    assert not test & train


@pytest.mark.parametrize("task", builtin.TASKS)
def test_one_prompt_in_eight_is_held_out(task: str) -> None:
    rng = random.Random(2)
    prompts = {builtin.TASKS[task](rng)[0] for _ in range(8000)}
    assert sum(map(builtin.in_test, prompts)) / len(prompts) == pytest.approx(1 / 8, abs=0.02)


def test_every_fact_is_trained_in_several_phrasings_and_some_are_held_out() -> None:
    phrasings = {
        fact: [template.format(town=fact[0], attribute=fact[1]) for template in builtin.FACT_TEMPLATES]
        for fact in builtin.FACTS
    }
    num_trained = [sum(not builtin.in_test(prompt) for prompt in prompts) for prompts in phrasings.values()]
    assert min(num_trained) >= 3
    assert 8 * len(num_trained) - sum(num_trained) >= 600


@pytest.mark.parametrize("task", builtin.TASKS)
def test_items_depend_on_the_seed_alone(task: str) -> None:
    first = builtin.items(task, "train", 50, seed=3)
    assert first == builtin.items(task, "train", 50, seed=3)
    assert first[:20] == builtin.items(task, "train", 20, seed=3)
    assert first != builtin.items(task, "train", 50, seed=4)


@pytest.mark.parametrize("task", builtin.TASKS)
def test_a_prompt_has_one_answer_and_a_text_is_short(task: str) -> None:
    rng = random.Random(5)
    answers: dict[str, str] = {}
    for _ in range(3000):
        item = builtin.Item(*builtin.TASKS[task](rng))
        assert answers.setdefault(item.prompt, item.answer) == item.answer
        assert item.prompt and item.prompt == item.prompt.strip() and len(item.prompt) < 120
        assert item.answer.startswith(" ") and item.answer.strip() and item.answer == item.answer.rstrip()
        assert item.text == item.prompt + item.answer and len(item.answer) <= 40


def groups(pattern: str, text: str) -> tuple[str, ...]:
    match = re.fullmatch(pattern, text)
    assert match, text
    return match.groups()


def evaluated(expression: str) -> str:
    return str(eval(expression, {"__builtins__": {}}))


def test_answers_agree_with_an_independent_computation() -> None:
    for item in builtin.items("arithmetic", "test", 300):
        assert item.answer.strip() == evaluated(item.prompt.removesuffix(" ="))
    for item in builtin.items("string_reversal", "test", 300):
        assert item.prompt.split()[1:-1] == item.answer.split()[::-1]
    for item in builtin.items("brackets", "test", 300):
        text = item.prompt.removeprefix("Close: ").removesuffix(" ->") + item.answer
        text = text.replace(" ", "")
        while text != (text := re.sub(r"\(\)|\[\]|\{\}|<>", "", text)):
            pass
        assert text == ""


def test_dates_and_numerals_by_hand() -> None:
    assert builtin._shifted(0, 31 + 1) == "February 1"
    assert builtin._shifted(0, 0) == "December 31"
    assert builtin._shifted(2, -1) == "February 27"
    assert builtin._in_words(999) == "nine hundred ninety-nine"
    assert builtin._in_words(300) == "three hundred"
    assert builtin._in_roman(944) == "CMXLIV"


def is_praise(clause: str) -> bool:
    flipped = re.search("was (not|hardly|anything but) ", clause) is not None
    return (clause.split()[-1] in builtin.PRAISE) != flipped


def test_a_verdict_is_that_of_the_main_clause() -> None:
    for item in builtin.items("sentiment", "test", 400):
        (review,) = groups(r"Review: (.*)\. Verdict:", item.prompt)
        clauses = re.split(", but |, even if |, | and ", review)
        main = clauses[-1] if ", but " in review or "although" in review else clauses[0]
        assert item.answer.strip() == ("positive" if is_praise(main) else "negative"), item


def test_sentiment_answers_are_balanced() -> None:
    answers = Counter(item.answer for item in builtin.items("sentiment", "test", 1000))
    assert set(answers) == {" positive", " negative"}
    assert answers[" positive"] == pytest.approx(500, abs=80)


def test_errors_say_what_is_known() -> None:
    with pytest.raises(ValueError, match=r"unknown task 'numeral'; did you mean 'numerals'"):
        builtin.items("numeral", "test", 1)
    with pytest.raises(ValueError, match=r"unknown split 'dev'.*known: test, train"):
        builtin.items("facts", "dev", 1)
    with pytest.raises(ValueError, match=r"facts/test: 5000 items asked, only 7\d\d exist; ask for fewer"):
        builtin.items("facts", "test", 5000)


def test_shipped_model_is_small_and_has_the_axes_to_prune(model: Any) -> None:
    config = model.config
    size = sum(file.stat().st_size for file in loader.model_path().iterdir())
    assert size <= 10 * 2**20
    assert sum(p.numel() for p in model.parameters()) <= 5_000_000
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert config.num_hidden_layers >= 8
    assert 8 <= config.num_key_value_heads < config.num_attention_heads


@pytest.mark.parametrize("task", builtin.TASKS)
def test_texts_survive_the_tokenizer(task: str, tokenizer: Any) -> None:
    for item in builtin.items(task, "test", 100):
        ids, prompt_ids = tokenizer(item.text).input_ids, tokenizer(item.prompt).input_ids
        assert ids[0] == tokenizer.bos_token_id
        assert ids[: len(prompt_ids)] == prompt_ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == item.text


def test_tokenizer_encodes_any_text(tokenizer: Any) -> None:
    text = "naïve 世界 🙂\tMCMXCIX x  = 1234\n\x00"
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer.bos_token_id not in ids[1:]


def generated(model: Any, tokenizer: Any, items: list[builtin.Item]) -> list[str]:
    inputs = tokenizer([item.prompt for item in items], padding=True, return_tensors="pt")
    with torch.inference_mode():
        output = model.generate(
            input_ids=inputs.input_ids,
            attention_mask=inputs.attention_mask,
            max_new_tokens=24,
            do_sample=False,
        )
    texts = tokenizer.batch_decode(output[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in texts]


def test_shipped_model_answers_held_out_items(model: Any, tokenizer: Any) -> None:
    items = [item for task in builtin.TASKS for item in builtin.items(task, "test", NUM_ASKED, seed=7)]
    answers = generated(model, tokenizer, items)
    right = [answer == item.answer.strip() for answer, item in zip(answers, items, strict=True)]
    assert sum(right) / len(right) >= 0.9
