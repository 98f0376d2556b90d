"""Right and wrong choices beside the calibration text: which tokens count, how many rows, and where there are none."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import model
from toy import WORDS, tokenizer

from seap.activations.calibration import about_statistics, calibrate, check_measured
from seap.activations.stats import Statistics, load_statistics, merge, save_statistics
from seap.errors import UserError
from seap.files import digest
from seap.models.arch import describe
from seap.text.contrast import Contrast
from seap.text.corpus import Corpus, build_corpus
from seap.text.options import Calibration
from seap.text.rows import CountedRow
from seap.text.shapes import Item
from seap.text.tasks import load_items, parse_spec


def items(path: Path, count: int = 12) -> list[Item]:
    rows = [
        {"question": f"{WORDS[i]} {WORDS[i + 1]}", "choices": [WORDS[i + 20], WORDS[i + 30], "w3 w4"], "answer": i % 3}
        for i in range(count)
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return load_items(parse_spec(f"asked={path}"), "train")


def corpus(path: Path, **options: Any) -> Corpus:
    return build_corpus("asked", items(path), tokenizer(), Calibration(**options), source="test", seq_len=64)


def test_the_choices_tokens_alone_count_and_the_right_ones_are_the_calibration_texts(tmp_path: Path) -> None:
    found = corpus(tmp_path / "a.jsonl", wording="plain")
    words = tokenizer()
    right, wrong = found.contrast.right, found.contrast.wrong
    assert right == found.rows[: len(right)] or [tuple(r) for r in right] == [
        tuple(r) for r in found.rows[: len(right)]
    ]
    assert len(wrong) == 2 * len(right) > 0
    for row in (*right, *wrong):
        counted = [row[place + 1] for place, counts in enumerate(row.counted) if counts]  # type: ignore[attr-defined]
        assert words.decode(row).split()[2:] == words.decode(counted).split()  # after a question of two words
    # the fewest questions whose rows have as many tokens as the text
    tokens = [sum(map(len, part)) for part in (right, wrong, found.rows)]
    assert tokens[0] + tokens[1] >= tokens[2] > tokens[0] + tokens[1] - len(right[-1]) - len(wrong[-1]) - len(wrong[-2])


def test_tokens_that_the_model_has_not_are_refused_where_they_are_choices_too(tmp_path: Path) -> None:
    dense = model("llama")
    made = calibrate(dense, corpus(tmp_path / "a.jsonl"), Calibration(), progress=False)
    made.contrast = Contrast(made.contrast.right, ((5, 97),))
    with pytest.raises(UserError, match="beyond the model's 97"):
        check_measured([tmp_path / "s.safetensors"], [made], dense)


def test_texts_without_choices_have_none(tmp_path: Path) -> None:
    texts = ["w3 w4 w5", *items(tmp_path / "a.jsonl")]
    assert not build_corpus("mixed", texts, tokenizer(), Calibration(), source="test", seq_len=64).contrast
    assert not build_corpus("plain", ["w3 w4", "w5 w6"], tokenizer(), Calibration(), source="test").contrast


def test_winogrande_has_a_context_for_each_choice() -> None:
    item = Item(text="w3 w5 w6", choices=("w6", "w6"), contexts=("w3 w4", "w3 w5"), label=1)
    found = build_corpus("wino", [item, item], tokenizer(), Calibration(), source="test", seq_len=64).contrast
    words = tokenizer()
    assert [words.decode(row) for row in found.right] == ["w3 w5 w6"]
    assert [words.decode(row) for row in found.wrong] == ["w3 w4 w6"]


def test_statistics_carry_them_through_files_and_sums(tmp_path: Path) -> None:
    dense = model("llama")
    made = calibrate(dense, corpus(tmp_path / "a.jsonl"), Calibration(), progress=False)
    assert made.contrast
    save_statistics(tmp_path / "s.safetensors", made, {"task": "asked"})
    again, _ = load_statistics(tmp_path / "s.safetensors")
    assert again.contrast == made.contrast and again.rows == made.rows
    assert merge([made, again]).contrast == made.contrast  # shards of a text have it all, which counts once
    bare = Statistics(dict(made), made.rows)
    assert not merge([made, bare]).contrast
    assert describe(dense).measured(()).keys() == made.keys()


@pytest.mark.parametrize("parts", [[], [Contrast()]])
def test_nothing_joined_is_nothing(parts: list[Contrast]) -> None:
    assert not Contrast.joined(parts)


def test_a_digest_tells_contrasts_apart_and_takes_rows_of_which_some_count() -> None:
    row, part = (5, 6, 7), CountedRow((5, 6, 7), (True, False, False))
    made = [Contrast((row,), (row,)), Contrast((part,), (row,)), Contrast((row,), (part,)), Contrast((row, row), ())]
    assert len({digest(one.as_lists()) for one in made}) == len(made)


def test_statistics_of_choices_in_a_template_are_described() -> None:
    corpus = Corpus("a", (CountedRow((5, 6, 7), (True, False, False)),), "hash")
    rows = (CountedRow((5, 6), (True, False)),)
    keys = [
        about_statistics(model("llama"), one, Calibration())["key"]
        for one in (corpus, replace(corpus, contrast=Contrast(rows, rows)))
    ]
    assert keys[0] != keys[1]
