"""Text from tokens as they come: the same as decoded at once, whatever a token holds of a character, and as fast."""

import itertools
import random
from collections.abc import Sequence
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from seap.writing.sampling import Writer

TEXT = "naïve Ω — 日本語, 한국어 🙂👩‍👩‍👧‍👦 🇨🇭 é x̂ end"
LONE = 0x80


def byte_level(pieces: Sequence[bytes] = ()) -> Any:
    """Token i is byte i; pieces are tokens of several bytes after those, and <s> the last one."""
    order = pre_tokenizers.ByteLevel.alphabet()
    usual = [*range(33, 127), *range(161, 173), *range(174, 256)]  # GPT-2's letters: printable bytes are themselves
    letters = {byte: chr(byte) for byte in usual}
    letters |= {byte: chr(256 + n) for n, byte in enumerate(b for b in range(256) if b not in letters)}
    assert sorted(letters.values()) == sorted(order)
    tokens = ["".join(letters[byte] for byte in piece) for piece in (*(bytes([i]) for i in range(256)), *pieces)]
    made = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, []))
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken("<s>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=made, clean_up_tokenization_spaces=False)


def sentence_piece() -> Any:
    """Llama-2's and Mistral's decoder: words begin with ▁, bytes are tokens of their own."""
    words = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁the", "▁cat", "▁", "s"]
    made = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(steps)
    made.add_special_tokens([AddedToken("<s>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=made, clean_up_tokenization_spaces=False)


def written(tokenizer: Any, ids: Sequence[int], after: Sequence[int] = (), *stop: str) -> list[str]:
    writer = Writer(tokenizer, stop, after)
    return [*(writer.push(token) for token in ids), writer.flush()]


def test_a_character_comes_with_the_token_that_ends_it() -> None:
    tokenizer = byte_level()
    for character in ("a", "é", "語", "🙂"):
        size = len(character.encode())
        assert written(tokenizer, [*character.encode()] * 3) == [*[*[""] * (size - 1), character] * 3, ""]
    pieces = written(tokenizer, [*TEXT.encode()])
    assert "".join(pieces) == TEXT and "�" not in "".join(pieces) and [one for one in pieces if one] == [*TEXT]


@pytest.mark.parametrize("seed", range(20))
def test_tokens_that_cut_characters_anywhere(seed: int) -> None:
    """Also where every one of many ends within a character, such as the end of one and the beginning of the next."""
    rng, raw = random.Random(seed), (TEXT * 3).encode()
    cuts = [0, *sorted(rng.sample(range(1, len(raw)), len(raw) // rng.randint(1, 4) - 1)), len(raw)]
    parts = [raw[a:b] for a, b in itertools.pairwise(cuts)]
    whole = "日本語".encode() * 4
    parts += [whole[:1], *(whole[n : n + 3] for n in range(1, len(whole) - 2, 3)), whole[-2:]]
    pieces = list({part: None for part in parts if len(part) > 1})
    number = {piece: 256 + n for n, piece in enumerate(pieces)} | {bytes([i]): i for i in range(256)}
    made = "".join(written(byte_level(pieces), [number[part] for part in parts]))
    assert made == TEXT * 3 + "日本語" * 4


@pytest.mark.parametrize("seed", range(20))
def test_bytes_that_make_no_character(seed: int) -> None:
    rng, tokenizer = random.Random(seed), byte_level()
    usual = [bytes([LONE]), b"\xff", b"\xf0\x9f", b"\xe6", "é".encode(), "語".encode(), "🙂".encode(), b"ab"]
    raw = b"".join(rng.choice(usual if seed % 2 else usual[:5]) for _ in range(60))
    ids = [*raw]
    made = written(tokenizer, ids)
    assert "".join(made) == tokenizer.decode(ids) == raw.decode(errors="replace")
    for place in range(4, len(made)):  # no more than a character's bytes are held back
        assert "".join(made[:place]).startswith(tokenizer.decode(ids[: place - 4]).rstrip("�"))


@pytest.mark.parametrize("made", [byte_level, sentence_piece])
def test_no_token_costs_more_than_another(made: Any) -> None:
    """Whatever lies behind it: bytes that make no character, and tokens without text."""
    tokenizer = made()
    (start,) = tokenizer.convert_tokens_to_ids(["<s>"])
    lone = LONE if made is byte_level else 2 + LONE
    for token in (lone, start):
        writer, read = Writer(tokenizer), 0
        decode = writer._decode

        def counted(ids: Sequence[int], decode: Any = decode) -> str:
            nonlocal read
            read += len(ids)
            found: str = decode(ids)
            return found

        writer._decode = counted  # type: ignore[method-assign]
        text = "".join(writer.push(token) for _ in range(1000)) + writer.flush()
        assert text == "�" * (1000 if token == lone else 0) and read < 40_000


def test_tokens_without_text_leave_the_space_behind_them() -> None:
    tokenizer = sentence_piece()
    start, the, cat = tokenizer.convert_tokens_to_ids(["<s>", "▁the", "▁cat"])
    ids = [the, *[start] * 9, cat, start, 2 + LONE, *[start] * 9, cat]
    assert "".join(written(tokenizer, ids)) == tokenizer.decode(ids, skip_special_tokens=True) == "the cat� cat"


def test_characters_of_byte_tokens() -> None:
    tokenizer = sentence_piece()
    the, cat, space = tokenizer.convert_tokens_to_ids(["▁the", "▁cat", "▁"])
    ids = [the, *(2 + byte for byte in TEXT.encode()), cat, space, *(2 + byte for byte in "🙂".encode()), cat]
    assert "".join(written(tokenizer, ids)) == tokenizer.decode(ids) == f"the{TEXT} cat 🙂 cat"


def test_a_text_behind_another_begins_with_its_space() -> None:
    tokenizer = sentence_piece()
    the, cat = tokenizer.convert_tokens_to_ids(["▁the", "▁cat"])
    assert "".join(written(tokenizer, [cat, cat], [the])) == " cat cat"
    assert written(tokenizer, [cat, cat], [the], " c")[0] == ""
    letters = byte_level()
    assert "".join(written(letters, [0xA9, *b"ab"], [*b"x", 0xC3])) == "éab"  # the prompt's last byte begins it
    assert "".join(written(letters, [*b"ab"], [LONE] * 8)) == "ab"
    assert "".join(written(letters, [LONE, *b"ab"], [LONE] * 8)) == "�ab"
