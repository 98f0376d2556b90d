"""Text that a model writes itself: the filters by hand, then whole runs on tiny models."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import model
from toy import TEXTS, folder, texts_file, tokenizer

from seap.cli.main import main
from seap.disk.digests import digest_of
from seap.text import builtin
from seap.text.tasks import load_examples, load_items
from seap.writing import author, sieve, writing
from seap.writing.author import Author, Prompt
from seap.writing.options import Writing
from seap.writing.sieve import Candidate, Limits, Shelf, Sieve

SMALL = Writing(num=12, max_new_tokens=16, batch_size=8, slack=1e9, context_tokens=40)
LIMITS = Limits(min_tokens=4, repeated=0.3, compression=3.0, lowest=1.0, highest=3.0)
PROSE = "The ferry left at seven, and nobody on the quay had thought of the dog."


def candidate(text: str, *, loss: float = 2.0) -> Candidate:
    return Candidate(text=text, ids=tuple(map(hash, text.split())), loss=loss)


def write(seed: int = 0, **changes: Any) -> list[str]:
    options = Writing(**(SMALL.__dict__ | {"seed": seed} | changes))
    written = writing.write(model(), tokenizer(), options, examples=TEXTS[:8], progress=False)
    return [text.text for text in written.texts]


def test_repeated_share_counts_what_was_there_before() -> None:
    assert sieve.repeated_share("abcdefgh") == 0
    assert sieve.repeated_share("abcabcabcabc", n=3) == pytest.approx(0.7)  # 10 of them, 3 of which are new
    assert sieve.repeated_share("ab", n=3) == 0


def test_compression_is_high_in_loops_alone() -> None:
    assert sieve.compression(PROSE) < 1.2
    assert sieve.compression("and so it goes on, " * 20) > 8


def test_overlap_is_with_the_likest_text_and_1_where_one_contains_the_other() -> None:
    shelf = Shelf()
    assert shelf.overlap("abcdefgh") == 0
    shelf.add_("abcdefgh")  # 4 shingles of 5
    shelf.add_("uvwxyz")
    assert shelf.overlap("abcdef??") == pytest.approx(0.5)  # abcde, bcdef of 4
    assert shelf.overlap("abcdefghij") == 1 and shelf.overlap("bcdef") == 1
    assert shelf.overlap("hgfedcba") == 0
    shelf.add_("no")
    assert shelf.overlap("no") == 1  # shorter than a shingle: the text is one


def test_the_band_leaves_out_the_tails() -> None:
    low, high = sieve.band([float(i) for i in range(101)])
    assert (low, high) == pytest.approx((5, 95))
    assert sieve.band([2.0], widen=0.5) == pytest.approx((1.5, 2.5))


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (candidate(PROSE), None),
        (candidate("Too short it"), "short"),
        (candidate(PROSE + " \ufffd"), "garbled"),
        (candidate("the cat sat on the mat and " * 6), "loop"),
        (candidate(" ".join("x" * i for i in range(40, 60))), "loop"),  # no n-gram twice, yet nothing in it
        (candidate(PROSE, loss=0.5), "perplexity too low"),
        (candidate(PROSE, loss=3.5), "perplexity too high"),
        (candidate(PROSE, loss=math.nan), "perplexity too low"),
    ],
)
def test_faults(given: Candidate, reason: str | None) -> None:
    assert sieve.fault(given, LIMITS) == reason


def test_the_sieve_drops_copies_of_examples_and_of_what_passed() -> None:
    examples = Shelf()
    examples.add_(candidate("One two three four five six seven eight nine.").ids)
    judge = Sieve(LIMITS, examples).judge_
    assert judge(candidate("One two three four five six seven eight ten.")) == "copy of an example"
    assert judge(candidate(PROSE, loss=9)) == "perplexity too high"
    assert judge(candidate(PROSE)) is None  # what was dropped isn't remembered
    assert judge(candidate(PROSE.replace("dog", "cat"))) == "duplicate"


def test_examples_raise_the_limits_that_they_would_not_keep() -> None:
    loop, plain = candidate("ha ho " * 80, loss=0.5), candidate(PROSE, loss=2.5)
    found = sieve.limits_of([loop, plain], min_tokens=4, widen=0.0)
    assert sieve.fault(candidate("ha ho " * 10, loss=1.0), found) is None
    one_odd = sieve.limits_of([loop] + [plain] * 40, min_tokens=4, widen=0.0)
    assert (one_odd.repeated, one_odd.compression) == (sieve.ABSOLUTE.repeated, sieve.ABSOLUTE.compression)


def test_without_examples_the_band_is_that_of_the_texts_without_loops() -> None:
    pool = [candidate(PROSE, loss=loss) for loss in (2.0, 3.0)] + [candidate("ha ho " * 40, loss=0.1)]
    found = writing.limits_without_examples(pool, 4)
    assert found.lowest == pytest.approx(2.05) and found.highest == pytest.approx(2.95)
    assert writing.limits_without_examples(pool[2:], 4).lowest == -math.inf


def test_the_same_seed_writes_the_same_whatever_was_drawn_before() -> None:
    first = write()
    dense, words = model(), tokenizer()
    torch.manual_seed(77)
    state = torch.get_rng_state()
    writing.write(dense, words, SMALL, examples=TEXTS[:8], progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert write() == first
    assert write(seed=1) != first
    assert len(set(first)) == 12 and not set(first) & set(TEXTS)
    assert first[:8] == write(num=8)


def test_prompts_are_whole_examples_with_separators_and_the_start_of_another() -> None:
    options = Writing(max_new_tokens=16, shots=2, start_tokens=3, context_tokens=40)
    encoded = [[10, 11, 12, 13], [20, 21, 22, 23], [30, 31, 32, 33]]
    draw = author.prompts_like(Author(model(), tokenizer(), options), encoded)
    seen = [draw(random.Random(seed)) for seed in range(20)]
    for prompt in seen:
        assert len(prompt.ids) == 11 and [prompt.ids[i] for i in (0, 5, 10)] == [2, 2, 2]  # </s> before and after each
        assert [prompt.ids[1:5] in encoded, prompt.ids[6:10] in encoded] == [True, True]
        assert 1 <= len(prompt.start) <= 3 and prompt.start[0] in (10, 20, 30) and prompt.start[0] != prompt.ids[1]
    assert len({tuple(prompt.ids) for prompt in seen}) == 6 and {len(prompt.start) for prompt in seen} == {1, 2, 3}


def test_of_an_example_too_long_to_show_a_stretch_is_continued() -> None:
    options = Writing(max_new_tokens=16, context_tokens=30)
    long = list(range(3, 93))
    draw = author.prompts_like(Author(model(), tokenizer(), options), [long])
    seen = {tuple(draw(random.Random(seed)).ids) for seed in range(9)}
    assert len(seen) > 5 and all(len(ids) == 16 and list(ids) == long[ids[0] - 3 : ids[0] + 13] for ids in seen)


def test_a_text_ends_at_the_end_token_or_the_separator() -> None:
    writer = Author(model(), tokenizer(), Writing())
    assert author.cleaned(writer, [3, 4, 2, 5, 2]) == "w3 w4"
    separated = Author(model(), tokenizer(), Writing(separator=" w9 "))
    assert author.cleaned(separated, [3, 4, 9, 5]) == "w3 w4"
    assert separated.between == [9] and writer.between == [2]


def test_texts_and_prompts_fit_what_the_model_reads() -> None:
    writer = Author(model(), tokenizer(), Writing())  # it reads 64 tokens
    assert (writer.longest, writer.room) == (32, 32)
    assert all(len(tokenizer()(text)["input_ids"]) <= 32 for text in write(max_new_tokens=256))


def test_about_uses_the_chat_template_where_there_is_one() -> None:
    words = tokenizer()
    plain = author.prompt_about(Author(model(), words, Writing()), "w5 w6")(random.Random(0))
    assert plain.ids[-2:] == [5, 6] and 3 not in plain.ids
    words.chat_template = "w3 {% for m in messages %}{{ m.content }}{% endfor %} w4"
    chat = author.prompt_about(Author(model(), words, Writing()), "w5 w6")(random.Random(0))
    assert isinstance(chat, Prompt) and chat.ids[0] == 3 and chat.ids[-1] == 4
    written = writing.write(model(), words, SMALL, about="w5 w6", progress=False)
    assert len(written.texts) == 12 and written.tried >= 12 == written.tried - sum(written.rejected.values())


def test_too_few_fit_texts_say_why_and_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["corpus", "write", str(folder(tmp_path / "dense")), "--like", str(texts_file(tmp_path / "few.txt"))]
    out = tmp_path / "out" / "texts.jsonl"
    assert main([*run, "--num", "5", "--min-tokens", "33", "--max-new-tokens", "33", "--out", str(out)]) == 1
    assert "only 0 of 5 texts were fit after 25 tries (short 25)" in capsys.readouterr().err
    assert not out.parent.exists()


def test_what_is_written_says_its_origin_and_is_read_as_a_task(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense, few, out = str(folder(tmp_path / "dense")), texts_file(tmp_path / "few.txt"), tmp_path / "train.jsonl"
    run = ["corpus", "write", dense, "--like", str(few), "--num", "10", "--max-new-tokens", "16", "--slack", "1e9"]
    assert main([*run, "--out", str(out), "--json"]) == 0
    printed = capsys.readouterr()
    told = json.loads(printed.out)
    assert printed.err == "" and told["out"] == str(out)
    beside = json.loads((tmp_path / "train.jsonl.meta.json").read_text())
    assert {**beside, "out": str(out)} == told and beside["digest"] == digest_of(out)
    assert beside["examples"]["num"] == 40 and beside["examples"]["source"] == str(few) and beside["model"] == dense
    assert beside["num_texts"] == 10 == beside["tried"] - sum(beside["rejected"].values())
    assert beside["options"]["slack"] == 1e9 and not beside["pruned"] and beside["versions"]["transformers"]
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert sum(row["num_tokens"] for row in rows) == beside["num_tokens"] and all(row["perplexity"] > 1 for row in rows)
    assert {item.text for item in load_examples(str(out))[0]} == {row["text"] for row in rows}
    (tmp_path / "folder").mkdir()
    for name in ("train.jsonl", "train.jsonl.meta.json"):
        (tmp_path / name).rename(tmp_path / "folder" / name)
    assert len(load_items(f"own={tmp_path / 'folder'}", "train")) + len(
        load_items(f"own={tmp_path / 'folder'}", "test")
    ) == len(rows)
    task = f"own={tmp_path / 'folder' / 'train.jsonl'}"
    assert main(["calibrate", dense, "--task", task, "--out", str(tmp_path / "stats"), "--json"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say what to write"),
        (["--like", "few.txt", "--about", "tickets"], "say what to write"),
        (["--about", "  "], "say what to write"),
        (["--like", "absent.jsonl"], "no such file: absent.jsonl"),
        (["--like", "gsm8q"], "did you mean 'gsm8k'"),
        (["--like", "empty.txt"], "empty.txt"),
        (["--like", "few.txt", "--num", "0"], "--num 0: must be at least 1"),
        (["--like", "few.txt", "--temperature", "0"], "--temperature 0.0: must be above 0"),
        (["--like", "few.txt", "--top-p", "1.5"], "must be above 0 and at most 1"),
        (["--like", "few.txt", "--slack", "0.5"], "--slack 0.5: must be at least 1"),
        (["--like", "few.txt", "--separator", " "], "--separator is blank"),
        (["--like", "few.txt", "--out", "texts.csv"], "name it texts.jsonl"),
        (["--like", "few.txt", "--out", "there.jsonl"], "is there already"),
        (["--like", "there.jsonl", "--out", "there.jsonl", "--overwrite"], "is --like itself, which would be lost"),
    ],
)
def test_bad_input_is_refused_before_the_model_is_looked_for(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    texts_file(Path("few.txt"))
    Path("there.jsonl").write_text('{"text": "mine"}\n')
    Path("empty.txt").write_text("")
    before = sorted(path.name for path in tmp_path.iterdir())
    out = [] if "--out" in arguments else ["--out", "new.jsonl"]
    assert main(["corpus", "write", "no/such/model", *arguments, *out]) == 1
    error = capsys.readouterr().err
    assert message in error and "no/such/model" not in error
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_real_model_writes_of_the_kind_shown_and_its_wrong_sums_are_dropped() -> None:
    from seap.models import loader

    dense, words = loader.load("builtin", device="cpu", dtype="float32")
    examples = [item.text for item in builtin.items("calendar", "train", 8, seed=0)]
    options = Writing(num=12, max_new_tokens=32, batch_size=16)
    written = writing.write(dense, words, options, examples=examples, progress=False)
    texts = [text.text for text in written.texts]
    assert sum(" day" in text.lower() or " date " in text for text in texts) >= 10
    assert not set(texts) & set(examples)
