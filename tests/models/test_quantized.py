"""Quantized weights: recognised from the config of every kind, taken back to floats, or refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import ids, model
from toy import texts_file
from vocabularies import byte_level

import seap
from seap.cli.main import main
from seap.errors import UserError
from seap.models import dequantize, loader
from seap.models.quantized import recognised

SIZES: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "vocab_size": 420}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "gptq": ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "gptq, 4 bits"),
    "awq": ({"quant_method": "awq", "bits": 4, "version": "gemm", "zero_point": True}, "awq, 4 bits"),
    "auto-round": ({"quant_method": "auto-round", "bits": 2}, "auto-round, 2 bits"),
    "bitsandbytes": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes, 4 bits"),
    "bitsandbytes of old": ({"load_in_8bit": True, "load_in_4bit": False}, "bitsandbytes, 8 bits"),
    "hqq": ({"quant_method": "hqq", "quant_config": {}}, "hqq"),
    "quanto": ({"quant_method": "quanto", "weights": "int8"}, "quanto"),
    "fbgemm": ({"quant_method": "fbgemm_fp8"}, "FP8 of fbgemm"),
    "modelopt": ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "NVIDIA's ModelOpt"),
    "aqlm": ({"quant_method": "aqlm"}, "aqlm"),
    "exl3": ({"quant_method": "exl3", "bits": 3}, "ExLlamaV3, 3 bits"),
    "no name": ({"something": 1}, "unknown method"),
    "sparse": (
        {"quant_method": "compressed-tensors", "sparsity_config": {"format": "sparse-24-bitmask"}},
        "stored sparse (sparse-24-bitmask)",
    ),
    "marlin": ({"quant_method": "compressed-tensors", "format": "marlin-24"}, "a format that isn't read"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_read_is_refused_by_its_config_with_what_to_do(kind: str, tmp_path: Path) -> None:
    entry, said = REFUSED[kind]
    wrapped = {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "quantization_config": entry}}
    for config in ({"model_type": "llama", "quantization_config": entry}, wrapped):
        with pytest.raises(UserError) as caught:
            recognised(tmp_path, config)
        assert said in str(caught.value) and "unquantized model" in str(caught.value)
    if "bitsandbytes" in kind:
        assert "dequantize().save_pretrained" in str(caught.value)


def test_mlx_and_files_beside_the_config_are_recognised(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="MLX, 4 bits"):
        recognised(tmp_path, {"model_type": "llama", "quantization": {"group_size": 64, "bits": 4}})
    (tmp_path / "hf_quant_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"hf_quant_config\.json"):
        recognised(tmp_path, {"model_type": "llama"})


def test_what_is_not_quantized_and_what_torchao_loads_pass(tmp_path: Path) -> None:
    assert recognised(tmp_path, {"model_type": "llama", "text_config": {"model_type": "x"}}) is None
    found = recognised(tmp_path, {"quantization_config": {"quant_method": "torchao", "quant_type": {}}})
    assert found is not None and not found.is_read


def saved(built: Any, path: Path, weights: dict[str, torch.Tensor], entry: dict[str, Any]) -> Path:
    """A folder of the model whose weights of these names are replaced."""
    built.save_pretrained(path)
    byte_level(r"\w+").save_pretrained(path)
    stored = load_file(path / "model.safetensors")
    kept = {name: value for name, value in stored.items() if f"{name}_scale_inv" not in weights}
    kept = {name: value for name, value in kept.items() if f"{name}_scale" not in weights}
    kept = {name: value for name, value in kept.items() if f"{name}_blocks" not in weights}
    save_file(kept | weights, path / "model.safetensors", metadata={"format": "pt"})
    told = json.loads((path / "config.json").read_text()) | {"quantization_config": entry}
    (path / "config.json").write_text(json.dumps(told))
    return path


def linears(built: Any) -> dict[str, torch.Tensor]:
    return {
        f"{name}.weight": module.weight.detach().float()
        for name, module in built.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }


def fp8_folder(path: Path, block: int = 16) -> tuple[Path, dict[str, torch.Tensor]]:
    """Weights in FP8 with a scale for each block, and what they stand for. Blocks at the edge are smaller."""
    built = model("llama", **(SIZES | {"intermediate_size": 40}))
    weights, expected = {}, {}
    for name, value in linears(built).items():
        rows, columns = value.shape
        grid = torch.zeros(-(-rows // block), -(-columns // block))
        stored, meant = torch.zeros(rows, columns, dtype=torch.float8_e4m3fn), torch.zeros(rows, columns)
        for i in range(grid.shape[0]):
            for j in range(grid.shape[1]):
                part = (slice(i * block, (i + 1) * block), slice(j * block, (j + 1) * block))
                grid[i, j] = value[part].abs().max() / 448
                stored[part] = (value[part] / grid[i, j]).to(torch.float8_e4m3fn)
                meant[part] = stored[part].float() * grid[i, j]
        weights |= {name: stored, f"{name}_scale_inv": grid}
        expected[name] = meant
    entry = {"quant_method": "fp8", "weight_block_size": [block, block], "activation_scheme": "dynamic"}
    return saved(built, path, weights, entry), expected


def test_fp8_is_taken_back_to_floats_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    folder, expected = fp8_folder(tmp_path / "fp8")
    built, _ = seap.load(str(folder))
    assert "quantized (FP8, blocks of 16 × 16)" in caplog.text and "taken back to floats" in caplog.text
    for name, value in linears(built).items():
        torch.testing.assert_close(value, expected[name], atol=0, rtol=0)
    assert not loader.quantized(built)
    built.save_pretrained(tmp_path / "floats")
    assert "quantization_config" not in json.loads((tmp_path / "floats" / "config.json").read_text())
    task, out = f"t={texts_file(tmp_path / 't.txt')}", tmp_path / "small"
    arguments = ["prune", str(folder), "--task", task, "--out", str(out), "--method", "flap", "--sparsity", "0.2"]
    assert main([*arguments, "--min-channels", "4"]) == 0
    assert json.loads((out / "seap.json").read_text())["dequantized_from"] == "FP8, blocks of 16 × 16"
    capsys.readouterr()
    assert main([*arguments[:4], "--out", str(tmp_path / "no"), "--stream"]) == 1
    assert "those of" in (said := capsys.readouterr().err) and "quantized (FP8" in said


def test_a_weight_without_its_scales_is_refused(tmp_path: Path) -> None:
    folder, expected = fp8_folder(tmp_path / "fp8")
    stored = load_file(folder / "model.safetensors")
    name = next(iter(expected))
    del stored[f"{name}_scale_inv"]
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="no scale of it is there"):
        seap.load(str(folder))


def test_scales_of_a_matrix_of_rows_and_of_bytes() -> None:
    shape = (4, 6)
    assert dequantize.spread(torch.tensor(2.0), shape, (0, 0), "w").unique().tolist() == [2.0]
    assert dequantize.spread(torch.arange(4.0), shape, (0, 0), "w").expand(shape)[:, 5].tolist() == [0, 1, 2, 3]
    grid = dequantize.spread(torch.tensor([[1.0, 2, 3], [4, 5, 6]]), shape, (0, 0), "w")
    assert grid[1].tolist() == [1, 1, 2, 2, 3, 3] and grid[2, 0] == 4
    assert dequantize.floats(torch.tensor([127, 128, 126], dtype=torch.uint8)).tolist() == [1, 2, 0.5]
    with pytest.raises(UserError, match="don't divide"):
        dequantize.spread(torch.ones(3, 1), shape, (0, 0), "w")


def test_mxfp4_as_gpt_oss_is_published(tmp_path: Path) -> None:
    """1.5 · 2^-1 in the low and -6 · 2^-1 in the high half of every byte: 0.75 and -3, in turn along the inputs."""
    built = model("gpt_oss", **(SIZES | {"intermediate_size": 32}))
    weights = {}
    for layer in range(3):
        for name, rows in (("gate_up_proj", 64), ("down_proj", 32)):
            stem = f"model.layers.{layer}.mlp.experts.{name}"
            weights[f"{stem}_blocks"] = torch.full((5, rows, 1, 16), 3 | (15 << 4), dtype=torch.uint8)
            weights[f"{stem}_scales"] = torch.full((5, rows, 1), 126, dtype=torch.uint8)
    folder = saved(built, tmp_path / "mxfp4", weights, {"quant_method": "mxfp4"})
    found, _ = seap.load(str(folder), dtype="float32")
    experts = found.model.layers[1].mlp.experts
    assert experts.gate_up_proj.shape == (5, 32, 64) and experts.down_proj.shape == (5, 32, 32)
    assert experts.gate_up_proj[2, :4, 9].tolist() == [0.75, -3.0, 0.75, -3.0]
    assert found.config.dequantized_from == "MXFP4" and torch.isfinite(found(ids()).logits).all()


def packed(value: torch.Tensor, bits: int, group: int, *, zero: bool) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """A weight as compressed-tensors packs it, by loops, and what it stands for."""
    rows, columns = value.shape
    parts = value.view(rows, columns // group, group)
    low, high = parts.amin(-1), parts.amax(-1)
    scale = (high - low) / (2**bits - 1) if zero else parts.abs().amax(-1) / (2 ** (bits - 1) - 1)
    start = torch.round(-(2 ** (bits - 1)) - low / scale) if zero else torch.zeros_like(low)
    numbers = torch.round(parts / scale[..., None] + start[..., None]).clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    meant = ((numbers - start[..., None]) * scale[..., None]).view(rows, columns)
    found = {"_packed": words(numbers.view(rows, columns), bits), "_scale": scale}
    found["_shape"] = torch.tensor([rows, columns])
    if zero:
        found["_zero_point"] = words(start.clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1).t(), bits).t().contiguous()
    return found, meant


def words(numbers: torch.Tensor, bits: int) -> torch.Tensor:
    each = 32 // bits
    rows = []
    for row in numbers.long().tolist():
        row = [value + 2 ** (bits - 1) for value in row] + [0] * (-len(row) % each)
        whole = [sum(v << bits * i for i, v in enumerate(row[j : j + each])) for j in range(0, len(row), each)]
        rows.append([word - (1 << 32) if word >= 1 << 31 else word for word in whole])
    return torch.tensor(rows, dtype=torch.int32)


@pytest.mark.parametrize(("bits", "group", "zero"), [(4, 8, False), (4, 16, True), (8, 8, False), (3, 8, False)])
def test_compressed_tensors_packed_in_words(bits: int, group: int, zero: bool, tmp_path: Path) -> None:
    built, weights, expected = model("llama", **SIZES), {}, {}
    for name, value in linears(built).items():
        parts, expected[name] = packed(value, bits, group, zero=zero)
        weights |= {f"{name}{part}": tensor for part, tensor in parts.items()}
    scheme = {"num_bits": bits, "type": "int", "symmetric": not zero, "strategy": "group", "group_size": group}
    entry = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": scheme}},
    }
    found, _ = seap.load(str(saved(built, tmp_path / "ct", weights, entry)))
    for name, value in linears(found).items():
        torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=1e-6)
    assert found.config.dequantized_from == f"compressed-tensors, pack-quantized, {bits} bits"


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_compressed_tensors_in_a_byte_each(kind: str, tmp_path: Path) -> None:
    built, weights, expected = model("llama", **SIZES), {}, {}
    for name, value in linears(built).items():
        scale = value.abs().amax(1, keepdim=True) / (127 if kind == "int8" else 448)
        stored = (value / scale).round().to(torch.int8) if kind == "int8" else (value / scale).to(torch.float8_e4m3fn)
        weights |= {name: stored, f"{name}_scale": scale, name.replace("weight", "input_scale"): torch.ones(1)}
        expected[name] = stored.float() * scale
    scheme = {"num_bits": 8, "type": "int" if kind == "int8" else "float", "strategy": "channel"}
    form = "int-quantized" if kind == "int8" else "float-quantized"
    groups = {"group_0": {"targets": ["Linear"], "weights": scheme}}
    entry = {"quant_method": "compressed-tensors", "format": form, "config_groups": groups}
    found, _ = seap.load(str(saved(built, tmp_path / "ct", weights, entry)))
    for name, value in linears(found).items():
        torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=1e-6)


def test_what_transformers_makes_of_fp8_is_the_same(tmp_path: Path) -> None:
    """Its own way back, where the blocks divide the sizes, which it asks for."""
    from transformers import AutoModelForCausalLM

    folder, _ = fp8_folder(tmp_path / "fp8", block=8)
    own, _ = seap.load(str(folder), dtype="float32")
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for (name, value), other in zip(linears(own).items(), linears(theirs).values(), strict=True):
        torch.testing.assert_close(value, other, atol=1e-6, rtol=1e-5, msg=name)
