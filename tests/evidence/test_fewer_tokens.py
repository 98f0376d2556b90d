"""Sweeps, comparisons and promises with a smaller vocabulary: losses per byte of the same text, sizes of the whole."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import model
from vocabularies import TEXTS, byte_level, with_added

import seap
from seap.cli.main import main
from seap.errors import UserError
from seap.exports.gguf_vocabulary import PRE_TOKENIZERS
from seap.pruning.vocabulary import smaller_beside
from seap.text.options import Calibration
from seap.vocabulary.options import Vocabulary

LINES = [line for text in dict.fromkeys(TEXTS) for line in text.replace("\n", ". ").split(". ") if line.strip()]
TASK = [f"{line} {other}" for line in LINES for other in LINES[:5]]
SMALL = ["--min-channels", "4", "--num-items", "8", "--metric", "loss", "--device", "cpu"]
SIZE = 320


def pair() -> tuple[Any, Any]:
    words = with_added(byte_level(*PRE_TOKENIZERS["gpt-2"].splits))
    return model("llama-tied", vocab_size=len(words), max_position_embeddings=256, hidden_size=32), words


@pytest.fixture
def dense(tmp_path: Path) -> str:
    for part in pair():
        part.save_pretrained(tmp_path / "dense")
    return str(tmp_path / "dense")


@pytest.fixture
def task(tmp_path: Path) -> str:
    (tmp_path / "toy.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TASK))
    return f"toy={tmp_path / 'toy.jsonl'}"


def printed(capsys: pytest.CaptureFixture[str], words: list[str]) -> Any:
    capsys.readouterr()
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_smaller_model_shares_the_layers_of_the_whole_one() -> None:
    (net, words), asked = pair(), Vocabulary(vocabulary=SIZE)
    size = len(words)
    small = smaller_beside(net, words, {"toy": TASK}, None, asked, Calibration(), progress=False)
    assert small.model.config.vocab_size == len(small.tokenizer) == SIZE < size == len(words) == net.config.vocab_size
    assert small.model.model.layers[0].mlp.up_proj.weight is net.model.layers[0].mlp.up_proj.weight
    assert small.model.lm_head.weight is small.model.model.embed_tokens.weight is not net.lm_head.weight
    kept = words.convert_tokens_to_ids(small.tokenizer.convert_ids_to_tokens(range(SIZE)))
    assert torch.equal(small.model.lm_head.weight, net.lm_head.weight[kept])
    assert smaller_beside(net, words, {"toy": TASK}, None, Vocabulary(), Calibration(), progress=False).model is net


def test_sweep(dense: str, task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sweep", dense, "--task", task, *SMALL, "--repeats", "1", "--method", "flap", "--sparsity", "0.2"]
    words += ["--vocabulary", str(SIZE)]
    whole, cut = printed(capsys, [*words, "--out", str(tmp_path / "out")])["rows"]
    assert cut["vocabulary"]["tokens_after"] == SIZE and cut["bytes"] < 0.9 * whole["bytes"] and "speed" in cut
    assert "disagreement" not in cut and cut["realised_sparsity"] == pytest.approx(0.2, abs=0.02)
    assert cut["added_nats_per_byte"] == pytest.approx(cut["nats_per_byte"] - whole["nats_per_byte"])
    assert cut["relative_loss"] == pytest.approx(cut["nats_per_byte"] / whole["nats_per_byte"] - 1)
    assert cut["total_sparsity"] > cut["realised_sparsity"] * 0.5
    [row] = printed(capsys, ["eval", dense, "--task", task, "--metric", "loss", "--num-items", "8"])["rows"]
    assert whole["nats_per_byte"] == pytest.approx(row["nats_per_byte"], rel=0.05)
    assert main([*words, "--out", str(tmp_path / "out"), "--overwrite"]) == 0
    page = tmp_path / "page.html"
    assert main(["report", str(tmp_path / "out" / "sweep.json"), "--out", str(page)]) == 0 and page.is_file()


def test_compare(dense: str, task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = (Path(dense) / "model.safetensors").stat().st_size
    words = ["compare", dense, "--tasks", task, *SMALL, "--methods", "flap,magnitude", "--target-size", f"{0.7 * size}"]
    words += ["--vocabulary", str(SIZE), "--out", str(tmp_path / "out")]
    result = printed(capsys, words)
    whole, *rows = result["rows"]
    assert whole["method"] == "dense" and whole["realised_sparsity"] == 0 and result["params"] == whole["params_after"]
    for row in rows:
        assert row["vocabulary"]["tokens_after"] == SIZE and row["kl"] is None and row["agreement"] is None
        assert 0.65 * size < row["target"]["after"] <= 0.7 * size
        grown = row["nats_per_byte"] / whole["nats_per_byte"]
        assert row["loss"] / whole["loss"] == pytest.approx(grown, rel=1e-6) and row["loss_per_own_token"] > 0
    assert main(words) == 0
    page = tmp_path / "page.html"
    assert main(["report", str(tmp_path / "out" / "compare.json"), "--out", str(page)]) == 0 and page.is_file()


def test_a_promise_of_loss_is_kept_by_text(dense: str, task: str, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "small"
    words = ["prune", dense, "--task", task, "--method", "flap", "--vocabulary", str(SIZE), "--min-channels", "4"]
    words += ["--num-items", "40", "--max-loss", "95%", "--resolution", "0.1", "--max-sparsity", "0.3"]
    told = printed(capsys, [*words, "--out", str(out)])
    assert told["vocabulary"]["tokens_after"] == SIZE and told["promise"]["kind"] == "max_loss"
    [found] = told["promise"]["tasks"].values()
    assert found["upper"] <= 0.95 and told["params_before"] > told["params_after"]
    [row] = printed(capsys, ["eval", str(out), "--task", task, "--dense", dense, "--metric", "loss"])["rows"]
    grown = row["nats_per_byte"] / row["dense_nats_per_byte"] - 1
    assert grown == pytest.approx(found["estimate"], abs=0.1)


def test_agreement_is_of_tokens_and_a_promise_that_fails_leaves_all_as_it_was() -> None:
    (net, words), (_, its) = pair(), pair()
    asked: dict[str, Any] = {"vocabulary": SIZE, "method": "flap", "min_channels": 4, "progress": False}
    with pytest.raises(UserError, match="--vocabulary 320: agreement is kept token by token"):
        seap.prune_to_promise(net, words, task="toy", min_agreement="99%", **asked)
    assert net.config.vocab_size == len(words) == len(its)


def test_a_promise_keeps_what_general_text_needs(dense: str, tmp_path: Path, capsys: Any) -> None:
    few = [" ".join(four) for four in itertools.product(LINES[:3], repeat=4)]
    for name, texts in {"few": few, "chat": LINES}.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    words = ["prune", dense, "--task", f"few={tmp_path / 'few.jsonl'}", "--method", "flap", "--min-channels", "4"]
    words += ["--num-items", "40", "--max-loss", "99%", "--resolution", "0.1", "--max-sparsity", "0.2"]
    general, size = ["--general", f"chat={tmp_path / 'chat.jsonl'}"], ["--vocabulary", "340"]
    for out, more in {"own": size, "both": [*size, *general], "whole": general}.items():
        assert main([*words, *more, "--out", str(tmp_path / out)]) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "--general has no effect without --vocabulary: a promise mixes no text" in told
    kept = [json.loads((tmp_path / out / "tokenizer.json").read_text())["model"]["vocab"] for out in ("own", "both")]
    assert len(set(kept[0]) ^ set(kept[1])) > 9
