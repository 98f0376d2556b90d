"""Pruning with a smaller vocabulary: what is reported, saved and loaded, what is refused and leaves no trace."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import model
from transformers import AutoModelForCausalLM, AutoTokenizer
from vocabularies import TEXTS, byte_level, with_added

import seap
from seap.cli.main import main
from seap.errors import UserError
from seap.exports.gguf_vocabulary import PRE_TOKENIZERS
from seap.models.arch import describe, embedding_params
from seap.pruning import vocabulary as first

LINES = [line for text in dict.fromkeys(TEXTS) for line in text.replace("\n", ". ").split(". ") if line.strip()]
TASK = {"toy": [f"{line} {other}" for line in LINES for other in LINES[:5]]}
SMALL: dict[str, Any] = {"min_channels": 4, "progress": False, "method": "flap"}
SIZE = 320


def tokenizer() -> Any:
    return with_added(byte_level(*PRE_TOKENIZERS["gpt-2"].splits))


def pair(name: str = "llama-tied") -> tuple[Any, Any]:
    words = tokenizer()
    return model(name, vocab_size=len(words), max_position_embeddings=256, hidden_size=32), words


@pytest.fixture
def dense(tmp_path: Path) -> str:
    for part in pair():
        part.save_pretrained(tmp_path / "dense")
    return str(tmp_path / "dense")


@pytest.fixture
def task(tmp_path: Path) -> str:
    (tmp_path / "toy.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TASK["toy"]))
    return f"toy={tmp_path / 'toy.jsonl'}"


@pytest.mark.parametrize("name", ["llama-tied", "llama"])
@pytest.mark.parametrize("sparsity", [0.0, 0.4])
def test_the_report_has_the_vocabulary_apart_and_in_the_totals(name: str, sparsity: float) -> None:
    net, words = pair(name)
    params, embeddings = sum(p.numel() for p in net.parameters()), embedding_params(net)
    prunable = describe(net).prunable_params
    report = seap.prune(net, words, task=TASK, sparsity=sparsity, vocabulary=SIZE, **SMALL)
    after = sum(p.numel() for p in net.parameters())
    cut = report.vocabulary
    assert cut is not None and cut["tokens_after"] == SIZE == len(words) == net.config.vocab_size
    assert (cut["params_before"], cut["params_after"]) == (embeddings, embedding_params(net))
    assert report.params_before == params and report.params_after == after
    assert report.total_sparsity == pytest.approx(1 - after / params)
    assert report.realised_sparsity == pytest.approx(sparsity, abs=0.02)
    gone = round(report.realised_sparsity * prunable)
    added = sum(p.numel() for key, p in net.named_parameters() if key.endswith("bias")) if name == "llama-tied" else 0
    assert params - after == embeddings - embedding_params(net) + gone - added
    rest = params - embeddings
    assert report.non_embedding_sparsity == pytest.approx(1 - (rest - gone + added) / rest)
    assert report.tasks == ("toy",) and report.to_dict()["vocabulary"] == cut
    assert (getattr(net.config, "seap", None) is None) == (sparsity == 0)


def test_cut_alone_it_is_a_stock_model_with_the_same_logits_on_text_that_stays(tmp_path: Path) -> None:
    (net, words), (whole, its) = pair(), pair()
    seap.prune(net, words, task=TASK, sparsity=0, vocabulary=SIZE, **SMALL)
    net.save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    again, read = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert type(again).__name__ == "LlamaForCausalLM" and json.loads((tmp_path / "config.json").read_text())[
        "architectures"
    ] == ["LlamaForCausalLM"]
    kept = its.convert_tokens_to_ids(read.convert_ids_to_tokens(range(len(read))))
    same = 0
    for text in TASK["toy"]:
        old, new = its(text)["input_ids"], read(text)["input_ids"]
        if set(old) <= set(kept):
            assert [kept[i] for i in new] == old
            with torch.no_grad():
                assert torch.equal(again(torch.tensor([new])).logits, whole(torch.tensor([old])).logits[..., kept])
            same += 1
    assert same > len(TASK["toy"]) // 2
    assert read.decode(read("a  word never seen: ὀδύσσεια 🙂")["input_ids"]) == "<s>a  word never seen: ὀδύσσεια 🙂"


def test_what_fails_later_leaves_model_and_tokenizer_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    (net, words), (whole, its) = pair(), pair()
    ids = its(TASK["toy"][0], return_tensors="pt")["input_ids"]

    def broken(*_: Any, **__: Any) -> None:
        raise UserError("later")

    monkeypatch.setattr("seap.pruning.prune.rank", broken)
    with pytest.raises(UserError, match="later"):
        seap.prune(net, words, task=TASK, sparsity=0.4, vocabulary=SIZE, **SMALL)
    assert len(words) == len(its) and words(TASK["toy"][0])["input_ids"] == ids[0].tolist()
    assert torch.equal(net(ids).logits, whole(ids).logits) and net.config.vocab_size == len(its)
    assert net.config.to_dict() == whole.config.to_dict()


def test_what_it_does_not_go_with_is_refused_before_anything_changes() -> None:
    net, words = pair()
    statistics = seap.calibrate(net, words, TASK, progress=False)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"statistics": statistics}, "measured with the whole vocabulary"),
        ({}, "give a tokenizer and a task"),
        ({"task": TASK, "vocabulary": 12}, "tokens at least must stay"),
        ({"task": {"one": ["the cat sat"]}}, "no text could be held out to measure on"),
    ]
    for options, message in wrong:
        with pytest.raises(UserError, match=message):
            seap.prune(net, words, **({"vocabulary": "auto", "sparsity": 0} | SMALL | options))
    with pytest.raises(UserError, match="--vocabulary auto: agreement is kept token by token"):
        seap.prune_to_promise(net, words, task="toy", min_agreement="99%", vocabulary="auto")
    with pytest.raises(UserError, match="--vocabulary seven: must be keep, auto or a number"):
        seap.prune(net, words, task=TASK, vocabulary="seven")
    assert net.config.vocab_size == len(words) == len(tokenizer())


def test_a_mask_that_is_there_goes_with_it() -> None:
    (net, words), (other, _) = pair(), pair()
    masks = seap.prune(other, tokenizer(), task=TASK, sparsity=0.4, **SMALL).masks
    report = seap.prune(net, words, task=TASK, masks=masks, vocabulary=SIZE, **(SMALL | {"compensate": "none"}))
    assert net.config.vocab_size == SIZE and report.realised_sparsity == pytest.approx(0.4, abs=0.02)
    assert not any("--general" in note for note in report.notes)


def told(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_the_command_and_all_that_comes_after_it(
    dense: str, task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "small")
    arguments = ["--sparsity", "0.3", "--method", "flap", "--min-channels", "8", "--vocabulary", "auto"]
    arguments += ["--vocabulary-tolerance", "2"]
    assert main(["prune", dense, "--task", task, *arguments, "--out", out, "--json"]) == 0
    report = told(capsys)
    cut = report["vocabulary"]
    assert cut["asked"] == "auto" and cut["nats_per_byte"]["toy"] <= 2 and cut["tokens_after"] < cut["tokens_before"]
    assert main(["inspect", out]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert f"{cut['tokens_before']} → {cut['tokens_after']} tokens" in printed and "nats per byte" in printed
    card = (tmp_path / "small" / "README.md").read_text()
    assert f"Its vocabulary has {cut['tokens_after']} of {cut['tokens_before']} tokens" in card
    assert main(["eval", out, "--task", task, "--dense", dense, "--metric", "loss", "--json"]) == 0
    [row] = told(capsys)["rows"]
    assert row["added_nats_per_byte"] == pytest.approx(row["nats_per_byte"] - row["dense_nats_per_byte"])
    assert "kl" not in row
    assert main(["eval", out, "--task", task, "--dense", dense, "--metric", "loss"]) == 0
    assert "nats per byte against the dense model" in capsys.readouterr().out
    assert main(["check", out, "--engine", "vllm", "--json"]) == 0
    assert told(capsys)["fits"]
    again = str(tmp_path / "again")
    layers = [
        "--sparsity",
        "0.2",
        "--method",
        "flap",
        "--min-channels",
        "4",
        "--vocabulary",
        str(cut["tokens_after"] - 5),
    ]
    assert main(["prune", out, "--task", task, *layers, "--out", again, "--json"]) == 0
    second = told(capsys)
    assert second["vocabulary"]["tokens_before"] == cut["tokens_after"]
    net, words = seap.load(again, device="cpu")
    assert net.config.vocab_size == len(words) == cut["tokens_after"] - 5
    far = AutoModelForCausalLM.from_pretrained(again, trust_remote_code=True)
    ids = words("the cat sat", return_tensors="pt")["input_ids"]
    assert torch.equal(far(ids).logits, net(ids).logits)


def test_gguf_has_the_smaller_vocabulary(dense: str, task: str, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason='needs pip install "seap[gguf]"')
    out, file = str(tmp_path / "small"), tmp_path / "m.gguf"
    for sparsity in ("0", "0.3"):
        arguments = ["--sparsity", sparsity, "--vocabulary", str(SIZE), "--method", "flap", "--min-channels", "8"]
        assert main(["prune", dense, "--task", task, *arguments, "--out", out, "--overwrite", "--json"]) == 0
        assert main(["export", out, "--to", "gguf", "--quantize", "f32", "--out", str(file), "--overwrite"]) == 0
        said = {name: field.contents() for name, field in gguf.GGUFReader(file).fields.items()}
        words = AutoTokenizer.from_pretrained(out)
        assert said["tokenizer.ggml.tokens"] == words.convert_ids_to_tokens(range(SIZE))
        assert said["tokenizer.ggml.eos_token_id"] == words.eos_token_id and said["tokenizer.ggml.pre"] == "gpt-2"
        merges = json.loads((Path(out) / "tokenizer.json").read_text())["model"]["merges"]
        assert said["tokenizer.ggml.merges"] == [" ".join(pair) for pair in merges]
        stored = {tensor.name: tensor.data for tensor in gguf.GGUFReader(file).tensors}
        assert stored["token_embd.weight"].shape[0] == SIZE and "output.weight" not in stored


def test_a_gguf_file_is_cut_too(dense: str, task: str, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason='needs pip install "seap[gguf]"')
    from gguf_made import as_llama

    assert main(["export", dense, "--to", "gguf", "--quantize", "f32", "--out", str(tmp_path / "deci.gguf")]) == 0
    file, out = as_llama(tmp_path / "deci.gguf", tmp_path / "m.gguf"), str(tmp_path / "small")
    arguments = ["--sparsity", "0", "--vocabulary", str(SIZE), "--out", out, "--json"]
    assert main(["prune", str(file), "--task", task, *arguments]) == 0
    net, words = seap.load(out, device="cpu")
    assert net.config.vocab_size == SIZE <= len(words)  # transformers gives GPT-2's <|endoftext|> to such files
    assert words.decode(words("the unseen ὀδύσσεια")["input_ids"], skip_special_tokens=True) == "the unseen ὀδύσσεια"


def test_where_no_unit_went_the_card_says_so_and_asks_for_no_trust(
    dense: str, task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "small")
    assert main(["prune", dense, "--task", task, "--sparsity", "0", "--vocabulary", str(SIZE), "--out", out]) == 0
    capsys.readouterr()
    assert main(["push", out, "me/small", "--dry-run"]) == 0
    pushed = capsys.readouterr()
    for card in ((tmp_path / "small" / "README.md").read_text(), pushed.out + pushed.err):
        assert "trust_remote_code" not in card and "import seap" not in card and "--to padded" not in card
        assert "were removed" not in card and "The units that" not in card
    assert "All attention and MLP parameters of" in card and "The tokens that" in card
    assert type(AutoModelForCausalLM.from_pretrained(out)).__module__.startswith("transformers.models")


def test_stock_classes_have_it_too(dense: str, task: str, tmp_path: Path) -> None:
    """Padded, with the smaller embedding and tokenizer, and the outputs of the pruned folder."""
    out, stock = str(tmp_path / "small"), str(tmp_path / "stock")
    arguments = ["--sparsity", "0.3", "--vocabulary", str(SIZE), "--method", "magnitude", "--min-channels", "8"]
    assert main(["prune", dense, "--task", task, *arguments, "--out", out]) == 0
    assert main(["export", out, "--to", "padded", "--out", stock]) == 0
    (small, words), read = seap.load(out, device="cpu"), AutoTokenizer.from_pretrained(stock)
    padded = AutoModelForCausalLM.from_pretrained(stock)
    assert type(padded).__module__.startswith("transformers.models") and padded.config.vocab_size == len(read) == SIZE
    ids = read("the unseen ὀδύσσεια", return_tensors="pt")["input_ids"]
    assert ids.tolist() == words("the unseen ὀδύσσεια", return_tensors="pt")["input_ids"].tolist()
    torch.testing.assert_close(padded(ids).logits, small(ids).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["prune", "{dense}", "--vocabulary", "auto", "--out", "{out}"], "seen from its texts; add --task"),
        (["prune", "{dense}", "--task", "{task}", "--vocabulary", "auto", "--stream", "--out", "{out}"], "--stream"),
        (["prune", "{dense}", "--task", "{task}", "--vocabulary", "few", "--out", "{out}"], "vocabulary"),
        (
            ["prune", "{dense}", "--task", "{task}", "--vocabulary", "9", "--min-agreement", "50%", "--out", "{out}"],
            "agreement is kept token by token",
        ),
        (["pack", "{dense}", "x={dense}", "--vocabulary", "auto", "--out", "{out}"], "sources have theirs already"),
    ],
)
def test_the_command_refuses_what_it_does_not_go_with(
    command: list[str], message: str, dense: str, task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word.format(dense=dense, task=task, out=tmp_path / "out") for word in command]
    try:
        assert main(words) == 1
    except SystemExit as error:  # a wrong command line
        assert error.code
    assert message in " ".join(capsys.readouterr().err.split()) and not (tmp_path / "out").exists()


def test_the_plan_knows_it(dense: str, task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--sparsity", "0", "--vocabulary", "auto", "--out", str(tmp_path / "out"), "--plan", "--json"]
    assert main(["prune", dense, "--task", task, *arguments]) == 0
    plan = told(capsys)
    stages = [stage["name"] for stage in plan["stages"]]
    assert [part["what"] for part in plan["disk"]] == ["the pruned model"]
    assert stages[0] == "vocabulary" and not {"calibrate", "scores", "damage"} & set(stages)  # the layers stay


def test_without_a_wish_nothing_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first, "choose", lambda *_, **__: pytest.fail("the vocabulary was looked at"))
    net, words = pair()
    report = seap.prune(net, words, task=TASK, sparsity=0.4, **SMALL)
    assert report.vocabulary is None and len(words) == net.config.vocab_size
