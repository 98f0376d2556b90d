"""Smaller tokenizers: any text is read and written back, and a text whose tokens stay is read as before."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, processors
from toy import tokenizer as words
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from vocabularies import TEXTS, byte_level, sentencepiece, unigram, whole_words, with_added

from seap.errors import UserError
from seap.exports.gguf_vocabulary import PRE_TOKENIZERS
from seap.vocabulary.closure import closed_order, is_closed, kept_merges
from seap.vocabulary.described import Described, describe_tokenizer, last_merge, replaced
from seap.vocabulary.rewriting import Source, become_, check_reads_alike, drop_stale, processor_with, renumber, restore_

GPT2 = PRE_TOKENIZERS["gpt-2"].splits
KINDS: dict[str, Callable[[], Any]] = {
    "byte-level": lambda: byte_level(*GPT2),
    "byte-level, whole words": lambda: whole_words(byte_level(*PRE_TOKENIZERS["llama-bpe"].splits)),
    "pieces": sentencepiece,
    "pieces, metaspace": lambda: sentencepiece(metaspace=True),
    "unigram": unigram,
    "unigram without bytes": lambda: unigram(byte_fallback=False),
    "with added tokens": lambda: with_added(byte_level(*GPT2)),
}
ALPHABET = st.one_of(
    st.sampled_from([*"aeton dghs.,'", "the", " cat", "mat", "12", "\n", "▁", "<0x41>", "ż", "你", "🙂", "<s>"]),
    st.characters(codec="utf-8"),
)
ANY_TEXT = st.lists(ALPHABET, max_size=24).map("".join)


@cache
def source(kind: str) -> Source:
    tokenizer = KINDS[kind]()
    return Source(tokenizer, describe_tokenizer(tokenizer))


@cache
def order(kind: str, seed: int = 0) -> tuple[int, ...]:
    """All tokens, what must stay first; the others as they come, or turned by a seed."""
    described = source(kind).described
    others = [i for i in described.by_use if i not in described.foundation]
    turned = sorted(others, key=lambda i: (i * 7919 * seed) % 1009) if seed else others
    return tuple(closed_order(sorted(described.foundation), turned, described.parts))


@cache
def smaller(kind: str, size: int, seed: int = 0) -> tuple[tuple[int, ...], Any]:
    least = len(source(kind).described.foundation)
    kept = tuple(sorted(order(kind, seed)[: least + size * (len(order(kind, seed)) - least) // 8]))
    return kept, source(kind).smaller(kept)


def ids(tokenizer: Any, text: str) -> list[int]:
    found: list[int] = tokenizer(text)["input_ids"]
    return found


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=150)
@given(text=ANY_TEXT, size=st.integers(0, 8), seed=st.integers(0, 1))
def test_any_text_is_written_back_as_it_was_before(kind: str, text: str, size: int, seed: int) -> None:
    whole, (kept, made) = source(kind).tokenizer, smaller(kind, size, seed)
    found = ids(made, text)
    assert max(found, default=0) < len(kept)
    for skip in (False, True):
        assert made.decode(found, skip_special_tokens=skip) == whole.decode(ids(whole, text), skip_special_tokens=skip)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=150)
@given(
    text=ANY_TEXT, words=st.lists(st.sampled_from(" ".join(TEXTS[:3]).split(" ")), max_size=6), seed=st.integers(0, 1)
)
def test_a_text_whose_tokens_stay_is_read_as_before(kind: str, text: str, words: list[str], seed: int) -> None:
    whole, text = source(kind).tokenizer, " ".join([*words, text])
    old = ids(whole, text)
    for size in range(9):
        kept, made = smaller(kind, size, seed)
        if set(old) <= set(kept):
            assert [kept[i] for i in ids(made, text)] == old


@pytest.mark.parametrize("kind", KINDS)
def test_with_just_the_tokens_of_some_text_it_is_read_as_before(kind: str) -> None:
    """What the merges make on the way stays too, and nothing else."""
    described, whole = source(kind).described, source(kind).tokenizer
    for text in dict.fromkeys(TEXTS):
        old = ids(whole, text)
        kept = sorted(closed_order(sorted(described.foundation), old, described.parts))
        assert len(kept) < len(whole)
        made = source(kind).smaller(kept)
        assert [kept[i] for i in ids(made, text)] == old and made.decode(ids(made, text)) == whole.decode(old)


@pytest.mark.parametrize("kind", KINDS)
def test_every_beginning_of_the_order_is_closed(kind: str) -> None:
    described = source(kind).described
    assert sorted(order(kind)) == sorted(described.texts)
    for size in range(len(described.foundation), len(order(kind)), 7):
        assert is_closed(order(kind)[:size], described.parts)


def test_tokens_come_behind_what_they_are_merged_from() -> None:
    parts = {5: (3, 4), 3: (1, 2), 6: (5, 5)}
    assert (
        closed_order([9], [6, 1, 8], parts) == [9, 4, 2, 1, 3, 5, 6, 8] or closed_order([9], [6, 1, 8], parts)[-1] == 8
    )
    found = closed_order([9], [6, 1, 8], parts)
    assert all(found.index(part) < found.index(token) for token, pair in parts.items() for part in pair)
    assert not is_closed({5, 3, 4}, parts) and is_closed({1, 2, 3, 4, 5}, parts)
    assert kept_merges([("a", "b"), ("ab", "c"), ("b", "c")], {"a", "b", "c", "ab", "abc"}) == [("a", "b"), ("ab", "c")]


def test_the_last_merge_is_that_of_the_ranks_not_of_any_pair() -> None:
    ranks = {("b", "c"): 0, ("a", "b"): 1, ("a", "bc"): 2, ("ab", "c"): 3}
    assert last_merge("abc", ranks) == ("a", "bc")
    assert last_merge("ab", ranks) == ("a", "b") and last_merge("abd", ranks) is None
    assert last_merge("abcd", {("a", "b"): 0, ("c", "d"): 1}) is None  # two pieces that nothing joins


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_reads_as_what_is_in_memory_and_nothing_stale_is_left(kind: str, tmp_path: Path) -> None:
    kept, made = smaller(kind, 4)
    made.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} <= {
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    }
    again = AutoTokenizer.from_pretrained(tmp_path)
    check_reads_alike(made, again, range(len(kept)), TEXTS)
    assert len(again) == len(kept)
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        assert getattr(again, name) == getattr(source(kind).tokenizer, name)


def test_added_tokens_and_the_template_follow_and_placeholders_may_go() -> None:
    whole = source("with added tokens").tokenizer
    described = source("with added tokens").described
    assert {described.texts[i] for i in described.placeholders} == {"<unused0>", "<unused1>"}
    kept = sorted(described.foundation - described.placeholders)
    made = source("with added tokens").smaller(kept)
    text = "<|turn|>user: cats<tool> <unused0></s>"
    found = ids(made, text)
    assert made.decode(found) == whole.decode(ids(whole, text)) == f"<s>{text}"
    for token in ("<|turn|>", "<tool>", "</s>", "<s>", "<pad>"):
        assert kept[made.convert_tokens_to_ids(token)] == whole.convert_tokens_to_ids(token)
    assert "<unused0>" not in made.get_vocab() and "<|turn|>" in made.all_special_tokens
    talk = [{"role": "user", "content": "the cat"}]
    assert made.apply_chat_template(talk, tokenize=False) == whole.apply_chat_template(talk, tokenize=False)


def test_a_tokenizer_becomes_another_in_place_and_back() -> None:
    own = KINDS["byte-level"]()
    own.padding_side, own.name_or_path = "left", "here"
    described = describe_tokenizer(own)
    made = Source(own, described).smaller(sorted(described.foundation))
    size, before = len(own), become_(own, made)
    assert len(own) == len(described.foundation) and ids(own, "the cat") == ids(made, "the cat")
    assert (own.padding_side, own.name_or_path) == ("left", "here")
    restore_(own, before)
    assert len(own) == size and own.decode(ids(own, "the cat")) == "<s>the cat"


def test_processors_and_files_get_the_new_ids(tmp_path: Path) -> None:
    new = {1: 0, 2: 1, 7: 2}
    template = {
        "type": "TemplateProcessing",
        "special_tokens": {"<s>": {"id": "<s>", "ids": [7, 1], "tokens": ["a", "b"]}},
    }
    roberta = {"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 1]}
    found = processor_with({"type": "Sequence", "processors": [template, roberta, {"type": "ByteLevel"}]}, new)
    assert found["processors"][0]["special_tokens"]["<s>"]["ids"] == [2, 0]
    assert found["processors"][1] == {"type": "RobertaProcessing", "sep": ["</s>", 1], "cls": ["<s>", 0]}
    assert processor_with(None, new) is None
    config = {
        "added_tokens_decoder": {"7": {"content": "x"}, "8": {"content": "y"}},
        "pad_token_id": 2,
        "a_token_id": 8,
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "added_tokens.json").write_text('{"x": 7, "y": 8}')
    for name in ("vocab.json", "merges.txt", "tokenizer.model", "tokenizer.json"):
        (tmp_path / name).write_text("")
    renumber(tmp_path, new)
    drop_stale(tmp_path)
    told = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert told == {"added_tokens_decoder": {"2": {"content": "x"}}, "pad_token_id": 1, "a_token_id": None}
    assert json.loads((tmp_path / "added_tokens.json").read_text()) == {"x": 2}
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"tokenizer.json", "tokenizer_config.json", "added_tokens.json"}


def test_characters_stay_where_bytes_are_missing_and_where_the_decoder_needs_them() -> None:
    """A byte fallback without the bytes is none; a space that is no token of its own needs all that have it."""
    told = json.loads(unigram().backend_tokenizer.to_str())
    whole = Described(told)
    assert whole.falls_back and whole.ids["▁"] in whole.foundation and whole.ids["a"] not in whole.foundation
    few = Described(
        {**told, "model": {**told["model"], "vocab": [p for p in told["model"]["vocab"] if p[0] != "<0x41>"]}}
    )
    assert not few.falls_back and {i for token, i in few.ids.items() if len(token) == 1} <= few.foundation
    bare = Described({**told, "model": {**told["model"], "vocab": [p for p in told["model"]["vocab"] if p[0] != "▁"]}})
    assert bare.falls_back and {i for token, i in bare.ids.items() if "▁" in token} <= bare.foundation
    replace = {"type": "Replace", "pattern": {"String": "_"}, "content": " "}
    assert set(replaced({"decoders": [replace, {"type": "Metaspace", "replacement": "▁"}]})) == {"_", "▁"}


def test_padding_and_another_post_processor_are_renumbered() -> None:
    own = byte_level(*GPT2)
    own.backend_tokenizer.enable_padding(pad_id=0, pad_token="<pad>")
    own.backend_tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 1))
    described = describe_tokenizer(own)
    kept = sorted(described.foundation)
    made = Source(own, described).smaller(kept)
    assert [kept[i] for i in ids(made, "é")] == ids(own, "é") and kept[0] == 0


def test_what_has_no_smaller_pieces_is_refused() -> None:
    with pytest.raises(UserError, match="a WordLevel tokenizer has no smaller pieces"):
        describe_tokenizer(words())
    ending = Tokenizer(models.BPE({"a": 0, "b</w>": 1, "ab</w>": 2}, [("a", "b</w>")], end_of_word_suffix="</w>"))
    with pytest.raises(UserError, match="end of word suffix"):
        describe_tokenizer(PreTrainedTokenizerFast(tokenizer_object=ending))
    with pytest.raises(UserError, match=r"has no tokenizer\.json"):
        describe_tokenizer(object())


def test_a_tokenizer_that_reads_otherwise_is_refused() -> None:
    whole, described = source("byte-level").tokenizer, source("byte-level").described
    used = {i for text in TEXTS for i in ids(whole, text)}
    inside = {part for token in used for part in described.parts.get(token, ())} & described.parts.keys()
    gone = min(inside - used)  # what is made of it stays
    without = [i for i in sorted(described.texts) if i != gone]
    assert not is_closed(without, described.parts)
    with pytest.raises(UserError, match="read otherwise though its tokens stay"):
        check_reads_alike(whole, source("byte-level").smaller(without), without, TEXTS)
    with pytest.raises(UserError, match="not written back"):
        other = byte_level(*GPT2)
        other.backend_tokenizer.decoder = decoders.Fuse()
        check_reads_alike(whole, other, [], ["the cat"])
