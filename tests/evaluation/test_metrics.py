"""Metrics against plain arithmetic and hand-made logits, whatever the batch size."""

import math

import pytest
import torch
from tiny import ids, model
from toy import ByHand, tokenizer

from seap.errors import UserError
from seap.evaluation import answers, choices, metrics
from seap.evaluation.answers import extract_answer, same_answer
from seap.evaluation.choices import choice_rows, continuation_rows, encode_pair
from seap.evaluation.likeness import Reference, loss_and_likeness
from seap.evaluation.metrics import Row, loss, mean_of, windows
from seap.evaluation.options import Evaluation
from seap.text.items import Item

TEXTS = [tuple(row) for row in ids(5, 12).tolist()] + [tuple(ids(1, 5, seed=4)[0].tolist())]
ROWS = [Row(text) for text in TEXTS]


FAIR = [[0.5, 0.25, 0.25]] * 3
SURE = [[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.25, 0.25, 0.5]]


def test_loss_by_hand() -> None:
    # 0→1 (0.1), 1→1 (0.8), then 2→0 (0.25): two rows, three scored tokens
    found = loss(ByHand(SURE), [Row((0, 1, 1)), Row((2, 0))])
    assert found.value == pytest.approx(-(math.log(0.1) + math.log(0.8) + math.log(0.25)) / 3)
    assert found.n == 2
    # scoring from the third token on leaves 1→1
    assert loss(ByHand(SURE), [Row((0, 1, 1), start=2), Row((1, 1))]).value == pytest.approx(-math.log(0.8))


@torch.no_grad()
@pytest.mark.parametrize("batch_tokens", [1, 30, 1000])
def test_loss_is_the_mean_over_predicted_tokens(batch_tokens: int) -> None:
    dense = model("llama")
    total, count = 0.0, 0
    for text in TEXTS:
        logits = dense(torch.tensor([text])).logits[0, :-1].double()
        total += -float(logits.log_softmax(-1).gather(1, torch.tensor(text[1:])[:, None]).sum())
        count += len(text) - 1
    found = loss(dense, ROWS, batch_tokens=batch_tokens)
    assert found.value == pytest.approx(total / count, rel=1e-5)
    assert found.n == 6 and found.stderr > 0


def test_every_metric_is_the_same_for_every_batch_size() -> None:
    dense, other, words = model("llama"), model("llama", seed=1), tokenizer()
    items = [
        Item(text=t, question=t, choices=("w5 w6", "w7", "w9 w3 w3"), label=0) for t in ("w3 w4", "w8", "w9 w3 w7")
    ]
    texts = [tuple(row) for row in ids(6, 20).tolist()]
    options = Evaluation(context=8, continuation=4)
    found = []
    for limit in (1, 64, 4096):
        _, kl, same = loss_and_likeness(dense, Reference(other), ROWS, batch_tokens=limit)
        plain, normalised = choices.multiple_choice(dense, choice_rows(words, items), items, batch_tokens=limit)
        four = choices.continuation_among_four(dense, continuation_rows(texts, options), batch_tokens=limit)
        found.append([kl.value, kl.stderr, same.value, plain.value, normalised.value, four.value])
    assert found[0] == pytest.approx(found[1], rel=1e-5) and found[0] == pytest.approx(found[2], rel=1e-5)


def test_mean_and_its_standard_error() -> None:
    # 1, 0, 1, 1: mean 0.75, deviation √(0.75 / 3) = 0.5, standard error 0.5 / √4
    found = mean_of([1, 0, 1, 1])
    assert (found.value, found.stderr, found.n) == (0.75, 0.25, 4)
    assert math.isnan(mean_of([1]).stderr)


def test_windows_score_every_token_but_the_first_once() -> None:
    for length, stride in ((4, None), (4, 2), (5, 5), (6, 1), (50, None)):
        text = list(range(100, 117))
        scored = [token for row in windows(text, length=length, stride=stride) for token in row.ids[row.start :]]
        if stride in (None, length):  # each window starts afresh: its first token has no context
            assert set(scored) <= set(text) and len(scored) == len(set(scored))
        else:
            assert scored == text[1:]


def test_pairs_are_tokenised_together_and_scored_from_the_continuation_on() -> None:
    words = tokenizer()
    assert encode_pair(words, "w3 w4", " w5 w6") == Row((3, 4, 5, 6), 2)
    assert encode_pair(words, "w3 w4  ", "w5") == Row((3, 4, 5), 2)
    assert encode_pair(words, "", "w5 w6") == Row((1, 5, 6), 1)  # after the beginning-of-text token


def test_multiple_choice_by_hand() -> None:
    """Vocabulary of the toy tokenizer; after any token w5 has 0.6, w7 0.3, the rest share 0.1."""
    size = len(tokenizer())
    table = [[0.1 / (size - 2)] * size for _ in range(size)]
    for row in table:
        row[5], row[7] = 0.6, 0.3
    items = [
        Item(text="", question="w3", choices=("w5", "w7"), label=0),  # 0.6 > 0.3
        Item(text="", question="w3", choices=("w5", "w7"), label=1),  # wrong by both
        Item(text="", question="w3", choices=("w5 w5", "w7"), label=0),  # 0.36 > 0.3
        # ln 0.216 = −1.53 over 8 characters beats ln 0.3 = −1.20 over 2: right only when normalised
        Item(text="", question="w3", choices=("w5 w5 w5", "w7"), label=0),
    ]
    plain, normalised = choices.multiple_choice(ByHand(table), choice_rows(tokenizer(), items), items)
    assert plain.value == 0.5 and normalised.value == 0.75


def test_the_true_continuation_by_hand() -> None:
    """A counting "model": it gives 0.9 to the next number, so that only the true continuation fits."""
    size = 30
    table = [[0.1 / (size - 1)] * size for _ in range(size)]
    for i, row in enumerate(table):
        row[(i + 1) % size] = 0.9
    counting = [[(start + i) % size for i in range(12)] for start in (0, 5, 11, 17, 23)]
    options = Evaluation(context=6, continuation=3)
    rows = continuation_rows(counting, options)
    assert choices.continuation_among_four(ByHand(table), rows).value == 1
    assert len(rows) == 5 * 4
    assert all(row.start == 6 and len(row.ids) == 9 for row in rows)
    assert continuation_rows(counting, options) == rows
    assert continuation_rows(counting, Evaluation(context=6, continuation=3, test_seed=1)) != rows
    with pytest.raises(UserError, match="needs four texts of 40 tokens or more, got 0"):
        continuation_rows(counting, Evaluation(context=36, continuation=4))


@pytest.mark.parametrize(
    ("text", "pattern", "gold", "expected"),
    [
        ("  42 \nmore", None, "42", "42"),
        ("So 3 + 4 = 7\n#### 1,007\nQ:", None, "3 + 4\n#### 1007", "1007"),
        ("no answer", None, "#### 7", ""),
        ("x = 3, x = 5", r"x = (\d)", "", "5"),
        ("the answer is (B).", r"\([A-D]\)", "", "(B)"),
    ],
)
def test_answers_are_extracted(text: str, pattern: str | None, gold: str, expected: str) -> None:
    assert extract_answer(text, pattern, gold) == expected


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_generated_answers_keep_their_order_whatever_the_batch(batch_size: int) -> None:
    dense, words = model("llama"), tokenizer()
    prompts = ["w3 w4 w5", "w9", "w10 w11 w12 w13 w14", "w7 w8"]
    alone = []
    for prompt in prompts:
        tokens = torch.tensor([words(prompt)["input_ids"]])
        made = dense.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=4, do_sample=False)
        alone.append(words.decode(made[0, tokens.shape[1] :], skip_special_tokens=True))
    assert answers.generated_answers(dense, words, prompts, max_new_tokens=4, batch_size=batch_size) == alone
    options = Evaluation(max_new_tokens=4)
    items = [Item(text=p, prompt=p, answer=f" {a} ") for p, a in zip(prompts, alone, strict=True)]
    assert answers.exact_match(dense, words, items, options).value == 1
    wrong = [Item(text=i.text, prompt=i.prompt, answer=f"{i.answer} w3") for i in items]
    assert answers.exact_match(dense, words, wrong, options).value == 0


def test_less_is_run_at_once_when_memory_runs_out() -> None:
    tried: list[int] = []

    def run(limit: int) -> str:
        tried.append(limit)
        if limit > 20:
            raise torch.cuda.OutOfMemoryError
        return "done"

    assert metrics.halving(run, 100) == "done" and tried == [100, 50, 25, 12]


@pytest.mark.parametrize(
    ("text", "gold", "same"),
    [
        ("8", "8.0", True),
        ("8.", "8", True),
        ("-0.50", "-.5", True),
        ("1,000", "1000", True),
        ("1e3", "1000", True),
        ("+7", "7", True),
        ("8", "8.01", False),
        ("1,00", "100", False),
        ("8 apples", "8.0", False),
        ("", "0", False),
        ("v1.0", "v1", False),
        ("nan", "NaN", False),
        ("1e999", "1e998", False),
        ("yes", "yes", True),
    ],
)
def test_answers_that_are_numbers_are_compared_as_numbers(text: str, gold: str, same: bool) -> None:
    assert same_answer(text, gold) == same_answer(gold, text) == same
