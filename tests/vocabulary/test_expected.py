"""Which tokens the model expects in a task's text, and that they stay before others that the text doesn't have."""

from typing import Any

import pytest
import torch
from tiny import model
from vocabularies import TEXTS, byte_level

from seap.exports.gguf_vocabulary import PRE_TOKENIZERS
from seap.text.items import Item
from seap.text.options import Calibration
from seap.vocabulary import choosing, counts, expected
from seap.vocabulary.options import Vocabulary

READING = Calibration()
LINES = [line for text in dict.fromkeys(TEXTS) for line in text.replace("\n", ". ").split(". ") if line.strip()]
ITEMS = [Item(text=line) for line in LINES if len(line) > 8]


def pair() -> tuple[Any, Any]:
    tokenizer = byte_level(*PRE_TOKENIZERS["gpt-2"].splits)
    return model("llama", vocab_size=len(tokenizer), max_position_embeddings=512), tokenizer


@torch.no_grad()
def by_hand(dense: Any, tokenizer: Any, items: list[Item]) -> torch.Tensor:
    """Text by text: the mean probability of each token at all its places."""
    found = []
    for item in items:
        row = torch.tensor(counts.row_of(tokenizer, item, READING))
        found.append(dense(row[None, :-1]).logits[0].double().softmax(-1))
    return torch.cat(found).mean(0)


def test_expected_uses_are_the_mean_probabilities_over_places_then_tasks() -> None:
    dense, tokenizer = pair()
    dense.train()
    texts = {"one": ITEMS[:3], "two": ITEMS[3:5]}
    found = expected.expected_uses(dense, tokenizer, texts, READING, progress=False)
    dense.eval()
    wanted = (by_hand(dense, tokenizer, texts["one"]) + by_hand(dense, tokenizer, texts["two"])) / 2
    assert torch.allclose(found, wanted, atol=1e-8) and float(found.sum()) == pytest.approx(1, abs=1e-5)


def test_only_so_many_tokens_are_looked_at_and_the_mode_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    dense, tokenizer = pair()
    whole = expected.looked_at(tokenizer, ITEMS, READING)
    monkeypatch.setattr(expected, "TOKENS", len(whole[0]) + 1)
    few = expected.looked_at(tokenizer, ITEMS, READING)
    assert few == whole[:2] and len(whole) > 2
    dense.train()
    expected.expected_uses(dense, tokenizer, {"one": ITEMS}, READING, progress=False)
    assert dense.training
    assert not expected.expected_uses(dense, tokenizer, {"none": []}, READING, progress=False).any()


def test_tokens_that_the_model_expects_stay_before_those_that_the_tokenizer_made_first() -> None:
    """With a model that expects one token everywhere; text has the first say."""
    dense, tokenizer = pair()
    token = tokenizer.convert_tokens_to_ids("log")
    task = {"toy": [Item(text="aa bb"), Item(text="aa bb cc")]}

    def kept(size: int) -> tuple[int, ...]:
        found = choosing.choose(dense, tokenizer, task, Vocabulary(vocabulary=size), READING, progress=False)
        return found.kept

    needed = choosing.choose(dense, tokenizer, task, Vocabulary(vocabulary=300), READING, progress=False)
    size = needed.about["tokens_of_tasks"] + 4
    head = torch.nn.Linear(dense.config.hidden_size, dense.config.vocab_size)  # with a bias
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    with torch.no_grad():
        head.bias[token] = -9.0
    own, dense.lm_head = dense.lm_head, head
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(choosing, "check_embeddings", lambda model: None)
            assert token not in kept(size)
            with torch.no_grad():
                head.bias[token] = 9.0
            assert token in kept(size)
    finally:
        dense.lm_head = own
    seen = counts.counted(tokenizer, task["toy"], READING)
    assert seen.keys() <= set(kept(size))
