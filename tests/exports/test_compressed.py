"""compressed-tensors out: packed as its readers unpack, near the model, measured, and read back equal."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import model
from toy import texts_file
from vocabularies import byte_level

import seap
from seap.cli.main import main
from seap.errors import UserError
from seap.exports.compressed import compress, packed, rounded
from seap.exports.options import Export
from seap.models import dequantize
from seap.models.arch import describe
from seap.models.loader import quantized
from seap.pruning.surgery import cut_

SHAPE: dict[str, Any] = {"hidden_size": 64, "head_dim": 16, "num_attention_heads": 4, "num_key_value_heads": 2}
SHAPE |= {"vocab_size": 420, "intermediate_size": 96}
IDS = torch.randint(3, 400, (2, 12), generator=torch.Generator().manual_seed(1))


def small(path: Path, channels: tuple[int, ...] = (96, 37, 64), row: str = "llama") -> Any:
    """A pruned model whose second layer has channels that no group of 32 divides, and its folder."""
    built, draw = model(row, **SHAPE), torch.Generator().manual_seed(0)
    kept = {"channels": channels, "kv_groups": (2, 1, 2)}
    axes = describe(built).axes
    cut_(built, {a.key: torch.randperm(a.units, generator=draw) < kept[a.name][a.layer] for a in axes})
    built.save_pretrained(path)
    byte_level(r"\w+").save_pretrained(path)
    return built


@pytest.mark.parametrize("bits", [4, 8])
def test_packing_puts_the_first_number_in_the_lowest_bits(bits: int) -> None:
    top = 1 << bits - 1
    numbers = torch.arange(-top, top).repeat(2)[: 32 // bits * 3 - 1].view(1, -1)
    words = packed(numbers, bits)
    by_hand = sum((int(numbers[0, i]) + top) << bits * i for i in range(32 // bits))
    assert words.dtype == torch.int32 and int(words[0, 0]) & 0xFFFFFFFF == by_hand
    assert torch.equal(dequantize.unpacked(words, bits, numbers.shape[1]), numbers)


@pytest.mark.parametrize("bits", [4, 8])
def test_rounding_is_no_further_than_half_a_step_where_nothing_is_clipped(bits: int) -> None:
    weight = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    found = rounded(weight, bits)
    groups = 2 if bits == 4 else 1
    assert found.scale.shape == (6, groups) and int(found.integers.abs().max()) <= 1 << bits - 1
    plain = weight.view(6, groups, -1).abs().amax(-1, keepdim=True) / ((1 << bits - 1) - 1)
    by_largest = (weight.view(6, groups, -1) / plain).round() * plain
    error = (found.floats() - weight).square().sum()
    assert error <= (by_largest.view_as(weight) - weight).square().sum()
    assert error.sqrt() / weight.norm() < (0.12 if bits == 4 else 0.01)


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_a_folder_reads_back_as_it_was_rounded(weights: Any, tmp_path: Path) -> None:
    built = small(tmp_path / "small")
    told = seap.export(tmp_path / "small", tmp_path / "out", "compressed-tensors", weights=weights)
    found, notes = compress(built, weights)
    assert told["notes"] == notes and bool(notes) == (weights == "int4")
    with torch.no_grad():
        for name, one in found.items():
            built.get_parameter(f"{name}.weight").copy_(one.floats())
        expected = built(IDS).logits
    again, _ = seap.load(str(tmp_path / "out"))
    torch.testing.assert_close(again(IDS).logits, expected, atol=1e-5, rtol=1e-5)
    assert not quantized(again) and again.config.dequantized_from.startswith("compressed-tensors, pack-quantized")
    entry = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    stored = load_file(tmp_path / "out" / "model.safetensors")
    eight = [name for name in found if name not in entry["ignore"] and found[name].bits == 8]
    if weights == "int4":
        assert eight == ["model.layers.1.mlp.down_proj"] and "1 of 21 linears" in notes[0]
        assert entry["config_groups"]["group_1"]["targets"] == [r"re:^model\.layers\.1\.mlp\.down_proj$"]
        assert stored["model.layers.1.mlp.down_proj.weight_packed"].shape == (64, 10)
    assert stored["model.layers.0.mlp.up_proj.weight_packed"].shape == (96, 64 * int(weights[3:]) // 32)
    assert entry["ignore"] == ["lm_head"] and "lm_head.weight" in stored


def test_their_package_reads_the_same(tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors", reason="needs pip install compressed-tensors")
    from transformers import AutoModelForCausalLM

    small(tmp_path / "small")
    for weights in ("int8", "int4"):
        out = tmp_path / weights
        seap.export(tmp_path / "small", out, "compressed-tensors", Export(weights=weights))  # type: ignore[arg-type]
        own, _ = seap.load(str(out))
        theirs = AutoModelForCausalLM.from_pretrained(out)
        torch.testing.assert_close(theirs(IDS).logits, own(IDS).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("to", ["compressed-tensors", "torchao", "gguf"])
def test_the_loss_is_measured_before_and_after_rounding(to: Any, tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip({"torchao": "torchao", "gguf": "gguf"}.get(to, "torch"))
    built = small(tmp_path / "small", row="llama-tied")
    task, out = f"t={texts_file(tmp_path / 't.txt')}", tmp_path / ("m.gguf" if to == "gguf" else "out")
    options = ["--quantize", "q8_0", "--tokenizer", "none"] if to == "gguf" else ["--weights", "int8"]
    arguments = ["export", str(tmp_path / "small"), "--to", to, "--out", str(out), "--task", task, *options, "--json"]
    assert main(arguments) == 0
    [row] = json.loads(capsys.readouterr().out)["measured"]
    assert row["task"] == "t" and row["loss_before"] > 0 and row["loss_n"] > 1
    assert 0 < abs(row["added_loss"]) < 0.05
    assert row["added_loss"] == pytest.approx(row["loss"] - row["loss_before"], abs=1e-6)
    if to == "compressed-tensors":
        rows = seap.evaluate(str(out), task=[task], metric="loss")
        assert rows.rows[0]["loss"] == pytest.approx(row["loss"], abs=1e-5)
    assert built.config.seap["widths"]


def test_what_can_not_be_packed_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    for row, said in (("gpt2", "no linears"), ("mixtral", "mixtures of experts")):
        model(row).save_pretrained(tmp_path / row)
        with pytest.raises(UserError, match=said):
            seap.export(tmp_path / row, tmp_path / "no", "compressed-tensors", weights="int8")
    small(tmp_path / "small")
    with pytest.raises(UserError, match="--weights int8 or int4"):
        seap.export(tmp_path / "small", tmp_path / "no", "compressed-tensors")
    seap.export(tmp_path / "small", tmp_path / "int8", "compressed-tensors", weights="int8")
    with pytest.raises(UserError, match="quantized already"):
        seap.export(tmp_path / "int8", tmp_path / "no", "torchao", weights="int8")
    assert not (tmp_path / "no").exists()
