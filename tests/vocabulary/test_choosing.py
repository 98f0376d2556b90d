"""Which tokens stay: those that must, then the task's, then general text's; and what fewer of them cost."""

import copy
import itertools
import math
from collections import Counter
from typing import Any

import pytest
import torch
from tiny import model
from vocabularies import TEXTS, byte_level, sentencepiece, unigram, with_added

from seap.errors import UserError
from seap.exports.gguf_vocabulary import PRE_TOKENIZERS
from seap.text.items import Item
from seap.text.options import Calibration
from seap.text.tokens import byte_counter
from seap.vocabulary import choosing, counts, measuring
from seap.vocabulary.described import describe_tokenizer
from seap.vocabulary.embedding import cut_embeddings_
from seap.vocabulary.options import Vocabulary, vocabulary_of
from seap.vocabulary.rewriting import Source

LINES = [line for text in dict.fromkeys(TEXTS) for line in text.replace("\n", ". ").split(". ") if line.strip()]
ITEMS = [Item(text=f"{line} {other}") for line in LINES for other in LINES[:4]]
ONE = {"toy": ITEMS}
READING = Calibration()


def pair(tokenizer: Any = None, name: str = "llama", rows: int = 0) -> tuple[Any, Any]:
    """A tiny model and its tokenizer. rows: of the embedding beyond the tokenizer's."""
    tokenizer = tokenizer or byte_level(*PRE_TOKENIZERS["gpt-2"].splits)
    return model(name, vocab_size=len(tokenizer) + rows, max_position_embeddings=512), tokenizer


def chosen(dense: Any, tokenizer: Any, texts: Any = ONE, general: Any = (), **options: Any) -> choosing.Choice:
    return choosing.choose(dense, tokenizer, texts, Vocabulary(**options), READING, general=general, progress=False)


@pytest.mark.parametrize("make", [byte_level, sentencepiece, unigram])
def test_so_many_stay_and_the_tasks_tokens_first(make: Any) -> None:
    dense, tokenizer = pair(make())
    before = [parameter.clone() for parameter in dense.parameters()]
    described = describe_tokenizer(tokenizer)
    found = chosen(dense, tokenizer, vocabulary=len(described.foundation) + 40)
    assert len(found.kept) == len(described.foundation) + 40 == len(found.tokenizer) == found.about["tokens_after"]
    assert described.foundation <= set(found.kept) and list(found.kept) == sorted(found.kept)
    used = counts.counted(tokenizer, ITEMS, READING)
    extra = set(found.kept) - described.foundation
    assert extra <= used.keys() | {part for pieces in described.parts.values() for part in pieces}
    assert all(torch.equal(a, b) for a, b in zip(dense.parameters(), before, strict=True))
    assert len(tokenizer) == dense.config.vocab_size


def test_general_text_comes_behind_the_tasks() -> None:
    dense, tokenizer = pair()
    task = {"toy": [Item(text="aa bb"), Item(text="aa bb cc")]}
    needed = chosen(dense, tokenizer, task, vocabulary=300).about["tokens_of_tasks"]
    token = tokenizer.convert_tokens_to_ids("log")
    other = chosen(dense, tokenizer, task, vocabulary=needed + 8)
    with_text = chosen(dense, tokenizer, task, [Item(text="log log"), Item(text="log")], vocabulary=needed + 8)
    assert token in with_text.kept and token not in other.kept


def test_numbers_that_are_too_small_or_too_large_say_what_can_be() -> None:
    dense, tokenizer = pair(rows=5)
    least = len(describe_tokenizer(tokenizer).foundation)
    with pytest.raises(UserError, match=f"--vocabulary 100: {least} tokens at least must stay"):
        chosen(dense, tokenizer, vocabulary=100)
    with pytest.raises(UserError, match=f"has {len(tokenizer)} tokens .{len(tokenizer) + 5} rows"):
        chosen(dense, tokenizer, vocabulary=len(tokenizer) + 1)
    assert len(chosen(dense, tokenizer, vocabulary=len(tokenizer)).kept) == len(tokenizer)
    assert len(chosen(dense, tokenizer, vocabulary=least).kept) == least


def test_what_a_model_names_and_its_template_writes_stays_and_placeholders_go() -> None:
    dense, tokenizer = pair(with_added(byte_level(*PRE_TOKENIZERS["gpt-2"].splits)))
    log = tokenizer.convert_tokens_to_ids("log")
    dense.generation_config.eos_token_id = [2, log]
    everything = set(range(len(tokenizer)))
    found = chosen(dense, tokenizer, vocabulary="auto", vocabulary_tolerance=1e9)
    assert log in found.kept
    gone = {tokenizer.convert_tokens_to_ids(token) for token in ("<unused0>", "<unused1>")}
    assert not gone & set(found.kept) and set(found.kept) < everything
    said = [Item(text="what <unused1> is"), *ITEMS]
    kept = chosen(dense, tokenizer, {"toy": said}, vocabulary="auto", vocabulary_tolerance=1e9).kept
    assert gone & set(kept) == {tokenizer.convert_tokens_to_ids("<unused1>")}
    tokenizer.chat_template += "{% if tools %}<unused0>{% endif %}"
    kept = chosen(dense, tokenizer, vocabulary="auto", vocabulary_tolerance=1e9).kept
    assert gone & set(kept) == {tokenizer.convert_tokens_to_ids("<unused0>")}
    template = counts.template_tokens(tokenizer)
    assert set(template) <= set(found.kept) and tokenizer.convert_tokens_to_ids("<|turn|>") in template


def test_added_tokens_beyond_the_embedding_stay_beyond_it_and_no_text_may_have_them() -> None:
    dense, tokenizer = pair()
    rows = len(tokenizer)
    tokenizer.add_tokens(["<late>"])
    found = chosen(dense, tokenizer, vocabulary=320)
    assert len(found.kept) == 320 and max(found.kept) < rows and len(found.tokenizer) == 321
    assert found.tokenizer.convert_tokens_to_ids("<late>") == 320
    with pytest.raises(UserError, match="task toy: its text has the token '<late>'"):
        chosen(dense, tokenizer, {"toy": [*ITEMS, Item(text="the <late> cat")]}, vocabulary=320)


def by_hand(dense: Any, tokenizer: Any, held: list[counts.HeldText]) -> float:
    """Nats of all held-out texts, one after the other."""
    total = 0.0
    for text in held:
        row = torch.tensor(counts.row_of(tokenizer, text.item, READING))
        logits = dense(row[None, :-1]).logits[0].double()
        total += float(torch.nn.functional.cross_entropy(logits, row[1:], reduction="sum"))
    return total


@pytest.mark.parametrize("name", ["llama", "llama-tied", "gemma2"])
@torch.no_grad()
def test_the_cost_of_a_size_is_that_of_the_cut_model_on_text_read_anew(name: str) -> None:
    dense, tokenizer = pair(name=name, rows=3)
    described = describe_tokenizer(tokenizer)
    seen = counts.count(tokenizer, ONE, READING)
    words = choosing.words_of(dense, tokenizer, described, seen, Counter())
    order, _ = words.order(seen.seen)
    sizes = [words.least, words.least + 60, len(order)]
    trial = measuring.Trial(dense, Source(tokenizer, described), order, sizes, seen.held, READING, progress=False)
    size_of_text = sum(len(text.item.text.encode()) for text in seen.held)
    assert sum(text.num_bytes for text in seen.held) == size_of_text
    whole = by_hand(dense, tokenizer, seen.held)
    for size in sizes:
        kept = sorted(order[:size])
        smaller, cut = trial.source.smaller(kept), copy.deepcopy(dense)
        cut_embeddings_(cut, kept)
        expected = (by_hand(cut, smaller, seen.held) - whole) / size_of_text
        found = trial.cost(size)
        assert list(found) == ["toy"] and found["toy"].nats_per_byte == pytest.approx(expected, abs=1e-6)
        assert found["toy"].num_texts == len(seen.held) and found["toy"].stderr > 0
        assert trial.rough(size) is found
    assert trial.cost(sizes[-1])["toy"].nats_per_byte < 0  # three rows that nothing used share the probability no more
    assert dense.config.vocab_size == len(tokenizer) + 3
    anew = measuring.Trial(dense, trial.source, order, sizes, seen.held, READING, progress=False)
    some = measuring.Trial(dense, trial.source, order, sizes, seen.held[:: measuring.ROUGH], READING, progress=False)
    rough = anew.rough(sizes[1])["toy"]
    assert rough.nats_per_byte == pytest.approx(some.cost(sizes[1])["toy"].nats_per_byte, abs=1e-6)
    assert rough.num_texts == len(some.held) < len(seen.held) and not anew.tried


def test_auto_finds_the_smallest_size_within_the_tolerance() -> None:
    tried: list[int] = []

    def trial(costs: list[float], sizes: list[int]) -> measuring.Trial:
        made = object.__new__(measuring.Trial)
        made.sizes = sizes
        made.cost = lambda size: (tried.append(size), both(costs[sizes.index(size)]))[1]  # type: ignore[method-assign]
        return made

    def both(cost: float) -> dict[str, measuring.Cost]:
        return {"toy": measuring.Cost(cost, 0.0, 9), "b": measuring.Cost(0.0, 0.0, 9)}

    sizes = list(range(10, 1010, 10))
    costs = [0.1 - 0.001 * i for i in range(100)]
    for likely in (10, 300, 500, 1000, 5000):
        tried.clear()
        assert trial(costs, sizes).smallest(0.0505, likely) == 510
        assert len(tried) <= 13 and len(set(tried)) == len(tried)
    assert trial(costs, sizes).smallest(1.0, 500) == 10
    assert trial([1.0] * 99 + [0.0], sizes).smallest(0.5, 20) == 1000
    assert trial([0.0], [64]).smallest(0.0, 64) == 64


def test_sizes_grow_by_a_fifth_in_multiples_and_end_with_all() -> None:
    found = measuring.sizes_between(300, 5000)
    assert found[0] == 320 and found[-1] == 5000 and all(size % 64 == 0 for size in found[:-1])
    assert all(b <= 1.2 * a + 64 for a, b in itertools.pairwise(found))
    assert measuring.sizes_between(500, 500) == [500]


def test_auto_keeps_its_promise_on_the_held_out_text_and_says_what_it_tried() -> None:
    dense, tokenizer = pair()
    tight, loose = (chosen(dense, tokenizer, vocabulary="auto", vocabulary_tolerance=t) for t in (0.0, 1e9))
    assert len(loose.kept) <= len(tight.kept)
    for found, tolerance in ((tight, 0.0), (loose, 1e9)):
        about = found.about
        assert about["tolerance"] == tolerance and about["nats_per_byte"]["toy"] <= tolerance + 1e-6
        assert about["tokens_after"] in [one["tokens"] for one in about["tried"]]
        assert about["held_out"]["texts"] > 1 and 0 < about["covered"] <= 1
        assert about["nats_per_byte_stderr"]["toy"] >= 0 and about["held_out"]["tokens"] > 0
        [note] = found.notes
        assert f"(toy {about['held_out']['tokens']}; {counts.ENOUGH:,} are wanted" in note
    assert dense.config.vocab_size == len(tokenizer)


def test_a_bound_is_above_the_cost_by_the_error_over_texts() -> None:
    """By hand: Σ added / Σ bytes, the residuals' spread, and Student's t of four degrees of freedom (2.132)."""
    added, sizes = [1.0, 0.0, 3.0, 2.0, 0.0], [10.0, 20.0, 30.0, 20.0, 20.0]
    found = measuring.Cost.of(torch.tensor(added).double(), torch.tensor(sizes).double())
    spread = sum((a - 0.06 * size) ** 2 for a, size in zip(added, sizes, strict=True)) * 5 / 4
    assert found.nats_per_byte == pytest.approx(0.06) and found.stderr == pytest.approx(spread**0.5 / 100)
    assert found.upper == pytest.approx(0.06 + 2.1318 * found.stderr, rel=1e-4)
    alone = measuring.Cost.of(torch.tensor([0.1]).double(), torch.tensor([10.0]).double())
    assert alone.upper == math.inf and alone.nats_per_byte == pytest.approx(0.01)
    assert measuring.said({"one": alone})["nats_per_byte_stderr"] == {"one": None}
    assert measuring.Cost(0.5, 0.0, 3).upper == 0.5


def test_auto_goes_by_the_bound_and_so_keeps_more_where_text_is_short() -> None:
    made = object.__new__(measuring.Trial)
    made.sizes = list(range(10, 110, 10))
    for stderr, expected in ((0.0, 60), (0.01, 80), (math.inf, 100)):
        costs = {size: measuring.Cost(0.1 - 0.001 * size, stderr, 100) for size in made.sizes[:-1]}
        made.cost = lambda size, costs=costs: {"toy": costs[size]}  # type: ignore[method-assign]
        assert made.smallest(0.0401, 30) == expected


def test_so_many_tokens_are_held_out_and_too_few_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert counts.tokens_held(1) == counts.HELD_TOKENS and counts.tokens_held(4) == 4 * counts.ENOUGH
    assert counts.HELD_TOKENS >= 2 * counts.ENOUGH >= 16_384
    _, tokenizer = pair()
    monkeypatch.setattr(counts, "HELD_TOKENS", 60)
    monkeypatch.setattr(counts, "ENOUGH", 10)
    many = [Item(text=f"{a.text} {b.text}") for a in ITEMS for b in ITEMS[:9]]
    found = counts.count(tokenizer, {"a": many, "b": many}, READING)
    for task, number in found.num_held().items():
        own = [text for text in found.held if text.task == task]
        assert number == sum(len(text.row) - 1 for text in own) and 20 <= number < 30 + len(own[-1].row)
    assert found.tokens_per_byte() == pytest.approx(
        sum(found.num_held().values()) / sum(text.num_bytes for text in found.held), rel=0.1
    )
    monkeypatch.setattr(choosing, "ENOUGH", 10)
    assert choosing.notes_on(found) == ()
    monkeypatch.setattr(choosing, "ENOUGH", max(found.num_held().values()) + 1)
    [note] = choosing.notes_on(found)
    assert all(f"{task} {number}" in note for task, number in found.num_held().items())


def test_held_out_texts_are_apart_a_fifth_and_counted() -> None:
    _, tokenizer = pair()
    items = [*ITEMS, *ITEMS[:5]]
    found = counts.count(tokenizer, {"a": items, "b": ITEMS[:2]}, READING)
    different = len({item.text for item in items})
    held = {text.item.text for text in found.held if text.task == "a"}
    assert 0 < len(held) <= different // 5 and [text.task for text in found.held].count("b") == 1
    assert found.whole()["a"] == counts.counted(tokenizer, list({i.text: i for i in items}.values()), READING)
    assert found.seen["a"].total() + found.unseen["a"].total() == found.whole()["a"].total()
    alone = counts.count(tokenizer, {"one": [ITEMS[0]] * 3}, READING)
    assert not alone.held and alone.seen["one"] == counts.counted(tokenizer, ITEMS[:1], READING)
    with pytest.raises(UserError, match="task none has no texts"):
        counts.count(tokenizer, {"none": []}, READING)


def test_only_the_tokens_that_count_are_scored() -> None:
    _, tokenizer = pair()
    item = Item(text="the cat sat", prompt="the cat", answer=" sat")
    row = counts.row_of(tokenizer, item, Calibration(weigh="answer"))
    assert counts.scored_bytes(byte_counter(tokenizer), row) == len(" sat")
    assert counts.scored_bytes(byte_counter(tokenizer), counts.row_of(tokenizer, item, READING)) == len("the cat sat")
    assert counts.shortened(item) == item and len(counts.shortened(Item(text="word " * 900)).text) <= 2000


def test_options_say_what_is_allowed() -> None:
    for wrong in ("some", 0, -5, True):
        with pytest.raises(UserError, match="--vocabulary"):
            Vocabulary(vocabulary=wrong)
    for wrong in (-0.1, math.nan, math.inf):
        with pytest.raises(UserError, match="--vocabulary-tolerance"):
            Vocabulary(vocabulary_tolerance=wrong)
    assert Vocabulary(vocabulary_tolerance=0.1).unused() == ["--vocabulary-tolerance"]
    assert not Vocabulary(vocabulary="auto", vocabulary_tolerance=0.1).unused() and not Vocabulary().is_cut
    wanted, others = vocabulary_of({"vocabulary": 500, "x": 1})
    assert wanted.vocabulary == 500 and others == {"x": 1}
