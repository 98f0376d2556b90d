"""Pruning to a size, a speed and memory: what is saved is what was promised, in every family, with every axis."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import ALL, READ_TOKENS, model
from toy import TEXTS, folder, texts_file, tokenizer
from vocabularies import TEXTS as WORDS
from vocabularies import byte_level

import seap
from seap.cli.main import main
from seap.errors import UserError
from seap.exports.gguf_vocabulary import PRE_TOKENIZERS
from seap.models.arch import Arch, describe, embedding_params
from seap.models.sizes import saved_bytes
from seap.selection import footprint
from seap.selection.timing import TimeCurve, Times

SMALL: dict[str, Any] = {"min_channels": 2, "progress": False}
TASK = {"toy": TEXTS}


def by_parameters(arch: Arch, *, context: int, batch: int) -> tuple[Times, float]:
    return {axis.key: TimeCurve((axis.units,), (axis.params / 1000,)) for axis in arch.axes}, 0.4


def weights_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


@pytest.mark.parametrize("name", sorted(ALL))
def test_what_is_saved_takes_no_more_than_was_asked(name: str, tmp_path: Path) -> None:
    dense: Any = model(name)
    model(name).save_pretrained(tmp_path / "dense")
    whole = weights_in(tmp_path / "dense")
    assert whole - 4000 < saved_bytes(dense) and saved_bytes(dense) >= whole * 0.97
    most = 0.8 * whole
    report = seap.prune(dense, tokenizer(), task=TASK, method="flap", target_size=most, **SMALL)
    dense.save_pretrained(tmp_path / "small")
    found = weights_in(tmp_path / "small")
    largest = max(axis.unit_params for axis in describe(model(name)).axes) * 4
    assert most - 3 * largest - 9000 < found <= most
    assert report.target is not None and report.target["most"] == pytest.approx(most)
    assert report.target["after"] >= found * 0.97


@pytest.mark.parametrize(
    "options", [{}, {"drop": "both"}, {"heads": "query"}, {"save_dtype": "bfloat16"}, {"effort": "quick"}]
)
def test_by_the_method_that_we_recommend_and_with_whole_sub_blocks(options: dict[str, Any], tmp_path: Path) -> None:
    dense: Any = model("llama")
    wanted = torch.bfloat16 if "save_dtype" in options else torch.float32
    most = 0.75 * saved_bytes(dense, wanted)
    effort = {"effort": "quick"} if not options else {}
    report = seap.prune(dense, tokenizer(), task=TASK, target_size=most, **(SMALL | effort | options))
    dense.to(wanted).save_pretrained(tmp_path / "small")
    assert 0.7 * most < weights_in(tmp_path / "small") <= most
    told = json.loads((tmp_path / "small" / "seap.json").read_text())
    assert told["target"]["cost"] == "bytes" and told["target"]["after"] <= most
    assert "Asked and met: the bytes of the weights on disk" in (tmp_path / "small" / "README.md").read_text()
    assert "target" in repr(report) and "asked 0." not in repr(report)


@pytest.mark.parametrize("options", [{"target_speed": "1.6x"}, {"cost": "memory", "context": 500, "sparsity": 0.25}])
@pytest.mark.parametrize("method", [{"method": "flap"}, {"effort": "quick"}])
def test_speed_and_memory_are_met_as_they_are_counted(
    options: dict[str, Any], method: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A microsecond for each of a thousand parameters, and half a millisecond beside."""
    monkeypatch.setattr(footprint, "token_times", by_parameters)
    monkeypatch.setattr(footprint, "output_milliseconds", lambda model, batch: 0.1)
    dense = model("llama")
    report = seap.prune(dense, tokenizer(), task=TASK, **(SMALL | method | options))
    target = report.target
    assert target is not None and target["after"] <= target["most"] < target["before"]
    assert target["context"] == options.get("context", 1024) and report.realised_sparsity > 0
    assert torch.isfinite(dense(torch.tensor([[5, 6, 7]])).logits).all()


def test_two_amounts_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"--target-size and --sparsity 0\.3 both say how much to remove"):
        seap.prune(model("llama"), tokenizer(), task=TASK, target_size="1MB", sparsity=0.3, **SMALL)
    words = ["prune", "builtin", "--task", "arithmetic", "--out", str(tmp_path / "out")]
    amounts = (["--sparsity", "0.5"], ["--target-size", "1MB"], ["--target-speed", "2x"], ["--max-loss", "1%"])
    for i, first in enumerate(amounts):
        for second in amounts[i + 1 :]:
            assert main([*words, *first, *second]) == 1
            assert f"{first[0]} and {second[0]} both say how much to remove" in " ".join(
                capsys.readouterr().err.split()
            )


def test_the_command_its_plan_and_a_mask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dense = folder(tmp_path / "dense")
    whole, task = weights_in(dense), f"toy={texts_file(tmp_path / 'toy.txt')}"
    most = round(0.8 * whole)
    words = ["--method", "flap", "--min-channels", "2", "--target-size", f"{most}"]
    assert main(["prune", str(dense), "--task", task, *words, "--out", str(tmp_path / "a"), "--plan", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert "to --target-size" in plan["what"] and plan["disk"][0]["bytes"] <= most
    assert main(["prune", str(dense), "--task", task, *words, "--out", str(tmp_path / "a"), "--json"]) == 0
    assert 0.9 * most < weights_in(tmp_path / "a") <= most
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "a")]) == 0
    assert "bytes of the weights on disk" in " ".join(capsys.readouterr().out.split())
    assert main(["calibrate", str(dense), "--task", task, "--out", str(tmp_path / "stats")]) == 0
    mask = str(tmp_path / "mask.safetensors")
    assert main(["mask", str(dense), str(tmp_path / "stats" / "toy.safetensors"), *words, "--out", mask]) == 0
    place = ["--stats", str(tmp_path / "stats" / "toy.safetensors"), "--mask-file", mask, "--out", str(tmp_path / "b")]
    assert main(["prune", str(dense), *place]) == 0
    assert 0.9 * most < weights_in(tmp_path / "b") <= most
    few = ["--target-size", "2kB", "--task", task, "--out", str(tmp_path / "c")]
    for more in ([], ["--plan"]):
        capsys.readouterr()
        assert main(["prune", str(dense), *few, *more]) == 1
        assert "can't be met" in capsys.readouterr().err


def test_networks_that_share_weights_have_no_size_of_their_own(tmp_path: Path) -> None:
    from seap.serving.networks.packing import pack_to_files

    with pytest.raises(UserError, match="--target-size are of a whole model; networks share the dense model's weights"):
        pack_to_files(str(folder(tmp_path / "dense")), tmp_path / "out", tasks=["toy=x"], target_size="1MB")


@pytest.mark.parametrize("name", sorted(ALL.keys() - READ_TOKENS))
def test_with_the_vocabulary_first_in_every_family(name: str, tmp_path: Path) -> None:
    """What the tokens save counts in the size, and the layers give the rest; both come back from disk."""
    words = byte_level(*PRE_TOKENIZERS["gpt-2"].splits)
    dense: Any = model(name, vocab_size=len(words), pad_token_id=0, bos_token_id=1, eos_token_id=2)
    lines = [line for text in dict.fromkeys(WORDS) for line in text.replace("\n", ". ").split(". ") if line.strip()]
    task, whole = {"toy": [f"{a} {b}" for a in lines for b in lines[:4]]}, saved_bytes(dense)
    embeddings = embedding_params(dense)
    report = seap.prune(dense, words, task=task, method="flap", target_size=0.75 * whole, vocabulary=300, **SMALL)
    dense.save_pretrained(tmp_path / "small")
    assert weights_in(tmp_path / "small") <= 0.75 * whole and dense.config.vocab_size == len(words) == 300
    assert report.target is not None and report.target["before"] == pytest.approx(whole)
    saved = 4 * (embeddings - embedding_params(dense))
    assert (report.realised_sparsity > 0) == (saved < 0.25 * whole)
    words.save_pretrained(tmp_path / "small")
    again, _ = seap.load(str(tmp_path / "small"), device="cpu", dtype="float32")
    given = words("the cat sat on", return_tensors="pt")["input_ids"]
    assert torch.equal(again(given).logits, dense(given).logits)


def test_where_the_vocabulary_is_enough_the_layers_stay(tmp_path: Path) -> None:
    words = byte_level(*PRE_TOKENIZERS["gpt-2"].splits)
    dense: Any = model("llama", vocab_size=len(words), hidden_size=64)
    lines = [line for text in dict.fromkeys(WORDS) for line in text.replace("\n", ". ").split(". ") if line.strip()]
    task, whole = {"toy": [f"{a} {b}" for a in lines for b in lines[:4]]}, saved_bytes(dense)
    report = seap.prune(dense, words, task=task, target_size=0.95 * whole, vocabulary=300, **SMALL)
    dense.save_pretrained(tmp_path / "small")
    assert weights_in(tmp_path / "small") <= 0.95 * whole and report.realised_sparsity == 0
    assert report.target is not None and report.target["after"] < report.target["most"]
    assert type(dense).__name__ == "LlamaForCausalLM"
