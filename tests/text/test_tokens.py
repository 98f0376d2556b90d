"""What a tokenizer puts around texts is there once; ids without an embedding are named before anything runs."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from paths import SHARED
from tiny import model
from tokenizers import processors
from toy import folder, texts_file
from toy import tokenizer as words
from vocabularies import byte_level, sentencepiece, unigram, with_added

import seap
from seap.cli.main import main
from seap.errors import UserError
from seap.evaluation.choices import encode_pair
from seap.text.corpus import build_corpus
from seap.text.options import Calibration
from seap.text.tokens import byte_counter, check_ids, encode, marks

CASES = SHARED / "cases"


def marking(before: str = "<s>", after: str = "") -> Any:
    """A tokenizer that puts something around every text."""
    made = words()
    single = f"{before} $A {after}".strip()
    used = {token: made.convert_tokens_to_ids(token) for token in f"{before} {after}".split()}
    around = processors.TemplateProcessing(single=single, special_tokens=list(used.items()))
    made.backend_tokenizer.post_processor = around
    return made


@pytest.mark.parametrize(
    ("before", "after", "text", "ids"),
    [
        ("<s>", "", "w3 w4", [1, 3, 4]),
        ("<s>", "", "<s> w3 w4", [1, 3, 4]),
        ("<s>", "", "<s> <s> w3", [1, 1, 3]),  # what the text itself doubles stays
        ("<s>", "</s>", "<s> w3 </s>", [1, 3, 2]),
        ("<s>", "</s>", "w3 w3", [1, 3, 3, 2]),
        ("<s> </s>", "", "<s> </s> w3", [1, 2, 3]),
        ("", "</s>", "w3 </s>", [3, 2]),
        ("", "", "<s> <s> w3", [1, 1, 3]),
        ("", "", "w3 w3 w3", [3, 3, 3]),
        ("<s>", "", "", [1]),
    ],
)
def test_marks_are_there_once(before: str, after: str, text: str, ids: list[int]) -> None:
    tokenizer = marking(before, after)
    assert encode(tokenizer, text) == ids
    assert marks(tokenizer) == tuple(tokenizer.convert_tokens_to_ids(part.split()) for part in (before, after))


def test_calibration_rows_and_scored_pairs_begin_once() -> None:
    tokenizer = marking()
    rows = build_corpus("t", ["<s> w3 w4", "w5 w6"], tokenizer, Calibration(), source="here").rows
    assert sorted(rows) == [(1, 3, 4), (1, 5, 6)]
    row = encode_pair(tokenizer, "<s> w3 w4", " w5")
    assert row.ids == (1, 3, 4, 5) and row.start == 3


def test_an_id_without_embedding_is_named_in_every_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder(tmp_path / "dense")
    tokenizer = words()
    tokenizer.add_tokens(["[FAR]"], special_tokens=True)
    tokenizer.save_pretrained(path)
    task = f"toy={texts_file(tmp_path / 'toy.txt', [f'w3 w4 [FAR] w{i}' for i in range(5, 40)])}"
    for command in (
        ["prune", str(path), "--task", task, "--out", str(tmp_path / "out"), "--min-channels", "4"],
        ["calibrate", str(path), "--task", task, "--out", str(tmp_path / "stats")],
        ["eval", str(path), "--task", task, "--metric", "loss"],
    ):
        assert main([*command, "--device", "cpu"]) == 1
        told = " ".join(capsys.readouterr().err.split())
        assert "task toy" in told and "the token '[FAR]' (id 97)" in told and told.count("[FAR]") == 1
    net = model("llama")
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(UserError, match=r"\[FAR\]"):
        seap.prune(net, tokenizer, task={"t": ["w3 [FAR]"] * 4}, min_channels=4, progress=False)
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())


def test_ids_within_the_embedding_pass() -> None:
    check_ids([[0, 96]], model("llama"), words(), "t")
    with pytest.raises(UserError, match="embeddings of 97 tokens only"):
        check_ids([[0, 97]], model("llama"), words(), "t")


@pytest.mark.skipif(not CASES.is_dir(), reason="the workshop's cases aren't here")
def test_the_case_from_a_bug_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = f"t={CASES / 'd22_special.jsonl'}"
    assert main(["prune", str(CASES / "m8_tok_beyond"), "--task", task, "--out", str(tmp_path / "x")]) == 1
    assert "the token '[PAD]' (id 4096)" in " ".join(capsys.readouterr().err.split())
    _, tokenizer = seap.load(str(CASES / "m34_bos_tok"), device="cpu")
    lines = (CASES / "d32_bos_text.jsonl").read_text().splitlines()
    for line in lines:
        assert encode(tokenizer, json.loads(line)["text"])[:2].count(0) == 1


@pytest.mark.parametrize(
    ("make", "before"), [(byte_level, 0), (lambda: with_added(byte_level()), 0), (sentencepiece, 1), (unigram, 1)]
)
def test_the_bytes_of_a_text_are_counted_however_it_is_cut(make: Any, before: int) -> None:
    """But for the space that some put before it."""
    tokenizer = make()
    for text in ("the cat sat on the mat", "Zażółć 你好 🙂", "x", "a  b\n\n c"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert byte_counter(tokenizer)(ids) == len(text.encode()) + before
        assert sum(byte_counter(tokenizer)([token]) for token in ids) == len(text.encode()) + before
    assert byte_counter(tokenizer)([1]) == len("<s>")


def test_the_bytes_of_words_are_those_that_are_written() -> None:
    assert byte_counter(words())([3, 40]) == len("w3 w40")
