"""Loss and generated answers against plain arithmetic, whatever the batch size."""

import math

import pytest
import torch
from tiny import ids, model
from toy import tokenizer

from seap.evaluate import answer_accuracy, generated_answers, loss, mean_of
from seap.tasks import Item

ROWS = [tuple(row) for row in ids(5, 12).tolist()] + [tuple(ids(1, 5, seed=4)[0].tolist())]


@torch.no_grad()
def test_loss_is_the_mean_over_predicted_tokens() -> None:
    dense = model("llama")
    total, count = 0.0, 0
    for row in ROWS:
        logits = dense(torch.tensor([row])).logits[0, :-1].double()
        total += -float(logits.log_softmax(-1).gather(1, torch.tensor(row[1:])[:, None]).sum())
        count += len(row) - 1
    for batch_tokens in (1, 30, 1000):
        found = loss(dense, ROWS, batch_tokens=batch_tokens)
        assert found.value == pytest.approx(total / count, rel=1e-5)
        assert found.n == 6 and found.stderr > 0


def test_mean_and_its_standard_error() -> None:
    # 1, 0, 1, 1: mean 0.75, deviation √(0.75 / 3) = 0.5, standard error 0.5 / √4
    found = mean_of([1, 0, 1, 1])
    assert (found.value, found.stderr, found.n) == (0.75, 0.25, 4)
    assert math.isnan(mean_of([1]).stderr)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_generated_answers_keep_their_order_whatever_the_batch(batch_size: int) -> None:
    dense, words = model("llama"), tokenizer()
    prompts = ["w3 w4 w5", "w9", "w10 w11 w12 w13 w14", "w7 w8"]
    alone = []
    for prompt in prompts:
        tokens = torch.tensor([words(prompt)["input_ids"]])
        made = dense.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=4, do_sample=False)
        alone.append(words.decode(made[0, tokens.shape[1] :], skip_special_tokens=True).strip())
    items = [Item(text=p, prompt=p, answer=" " + a) for p, a in zip(prompts, alone, strict=True)]
    assert generated_answers(dense, words, items, max_new_tokens=4, batch_size=batch_size) == alone
    assert answer_accuracy(dense, words, items, max_new_tokens=4, batch_size=batch_size).value == 1
    wrong = [Item(text=i.text, prompt=i.prompt, answer=f"{i.answer} w3") for i in items]
    assert answer_accuracy(dense, words, wrong, max_new_tokens=4).value == 0
