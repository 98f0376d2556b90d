"""Weights in 8 and 4 bits on top of pruning: near, smaller, reloaded equal, and refused where they can't be."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import model
from torch import nn
from vocabularies import byte_level

import seap
from seap.cli.main import main
from seap.compensation.compensate import Repair
from seap.errors import UserError
from seap.exports.export import export
from seap.exports.options import Export
from seap.exports.quantization import stored_bytes
from seap.models.arch import describe
from seap.pruning.surgery import cut_

torchao = pytest.importorskip("torchao", reason='needs pip install "seap[torchao]"')

SHAPE: dict[str, Any] = {"hidden_size": 64, "head_dim": 16, "num_attention_heads": 4, "num_key_value_heads": 2}
IDS = torch.randint(3, 90, (2, 12), generator=torch.Generator().manual_seed(1))


def pruned(name: str = "llama", channels: tuple[int, ...] = (96, 37, 64), **changes: Any) -> Any:
    """A tiny model whose three layers keep so many channels, and in the second half of the KV groups."""
    built = model(name, intermediate_size=96, **changes).eval()
    draw, masks, repairs = torch.Generator().manual_seed(0), {}, {}
    for axis in describe(built).axes:
        kept = channels[axis.layer] if axis.name == "channels" else axis.units // (1 + axis.layer % 2)
        masks[axis.key] = torch.randperm(axis.units, generator=draw) < kept
        repairs[axis.key] = Repair(torch.randn(built.config.hidden_size, generator=draw).double())
    cut_(built, masks, repairs)
    return built


def linears(built: Any) -> list[nn.Linear]:
    return [m for block in describe(built).layers for m in block.modules() if isinstance(m, nn.Linear)]


def test_int8_rounds_each_row_to_its_largest_weight_over_127() -> None:
    built = pruned(**SHAPE)
    before = [linear.weight.detach().clone() for linear in linears(built)]
    assert seap.quantize_(built, "int8") == []
    for linear, weight in zip(linears(built), before, strict=True):
        step = weight.abs().amax(1, keepdim=True) / 127
        assert stored_bytes(linear.weight) < weight.numel() + 5 * len(weight) + 1  # a byte each; scale and zero a row
        assert ((linear.weight.dequantize() - weight).abs() <= 0.51 * step).all()


@pytest.mark.parametrize("name", ["llama", "llama-tied", "qwen3", "phi3", "gpt_neox", "opt"])
def test_an_int8_folder_reloads_equal_and_near_the_model_it_is_of(name: str, tmp_path: Path) -> None:
    built, small, out = pruned(name), tmp_path / "small", tmp_path / "small-int8"
    built.save_pretrained(small)
    byte_level(r"\w+").save_pretrained(small)
    assert main(["export", str(small), "--to", "torchao", "--weights", "int8", "--out", str(out), "--json"]) == 0
    reloaded, _ = seap.load(str(out))
    assert {type(linear.weight).__name__ for linear in linears(reloaded)} == {"Int8Tensor"}
    expected = built(IDS).logits
    seap.quantize_(built, "int8")
    with torch.no_grad():
        got = reloaded(IDS).logits
        assert torch.equal(got, built(IDS).logits)
    assert 0 < (got - expected).norm() / expected.norm() < 0.02
    files = [folder / "model.safetensors" for folder in (out, small)]
    data = [file.stat().st_size - _header(file) for file in files]
    assert data[0] < 0.75 * data[1]


def _header(file: Path) -> int:
    return int.from_bytes(file.read_bytes()[:8], "little")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int4_takes_the_linears_that_its_groups_divide_and_says_which_it_leaves(dtype: torch.dtype) -> None:
    built = pruned(**SHAPE).to(dtype)
    with torch.no_grad():
        expected, before = built(IDS).logits.float(), sum(stored_bytes(linear.weight) for linear in linears(built))
        [note] = seap.quantize_(built, "int4")
        got = built(IDS).logits.float()
    kinds = [type(linear.weight).__name__ for linear in linears(built)]
    # of the layer with 37 channels: gate, up and down; of seven each, the rest
    assert kinds.count("Int8Tensor") == 3 and kinds.count("Int4OpaqueTensor") == 18
    assert note.startswith("3 of 21 linears") and "--round-to 32" in note
    assert (got - expected).norm() / expected.norm() < 0.3
    assert sum(stored_bytes(linear.weight) for linear in linears(built)) < 0.4 * before


def test_widths_of_32_leave_nothing_in_8_bits_and_fewer_bytes() -> None:
    built, eight = pruned(channels=(96, 32, 64), **SHAPE), pruned(channels=(96, 32, 64), **SHAPE)
    assert seap.quantize_(built, "int4") == [] and seap.quantize_(eight, "int8") == []
    four, bytes_of_8 = (sum(stored_bytes(linear.weight) for linear in linears(m)) for m in (built, eight))
    assert four < 0.8 * bytes_of_8
    ids = built.generate(IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert ids.shape == (2, 16)


def test_a_quantized_model_is_refused_where_whole_weights_are_needed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small, out, texts = tmp_path / "small", tmp_path / "int8", tmp_path / "t.jsonl"
    pruned(**SHAPE, vocab_size=420).save_pretrained(small)
    byte_level(r"\w+").save_pretrained(small)
    texts.write_text("".join(json.dumps({"text": f"text number {i} " * 20}) + "\n" for i in range(20)))
    export(str(small), out, "torchao", Export(weights="int8"))
    with pytest.raises(UserError, match="prune first, quantize last"):
        seap.quantize_(seap.load(str(out))[0], "int8")
    for arguments in (
        ["prune", str(out), "--task", f"t={texts}", "--out", str(tmp_path / "no")],
        ["export", str(out), "--to", "gguf", "--tokenizer", "none", "--out", str(tmp_path / "no.gguf")],
    ):
        assert main(arguments) == 1
        assert "prune first, quantize last" in capsys.readouterr().err
    assert main(["eval", str(out), "--task", f"t={texts}", "--metric", "loss", "--json"]) == 0


def test_what_torchao_cannot_do_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    for weights, said in (("int4", "seap.quantize_"), ("float", "--weights int8")):
        with pytest.raises(UserError, match=said):
            export("builtin", out, "torchao", Export(weights=weights))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="expected int8 or int4"):
        seap.quantize_(model("llama"), "int3")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no linears"):
        seap.quantize_(model("gpt2"), "int8")
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(UserError, match=r"seap\[torchao\]"):
        export("builtin", out, "torchao", Export(weights="int8"))
    assert not out.exists()


def test_loading_a_quantized_folder_without_torchao_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise ModuleNotFoundError("No module named 'torchao'")

    pruned(**SHAPE).save_pretrained(tmp_path)
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", missing)
    with pytest.raises(UserError, match=r"seap\[torchao\]"):
        seap.load(str(tmp_path))
