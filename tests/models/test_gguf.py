"""GGUF files as models: weights, tokens and template are those of the folder; what would be misread is refused."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import seap
from seap.cli.main import main
from seap.errors import UserError
from seap.models import gguf
from seap.models.gguf import header
from seap.models.loader import load_config

pytest.importorskip("gguf", reason='needs pip install "seap[gguf]"')
pytest.importorskip("accelerate", reason='needs pip install "seap[gguf]"')

from gguf_made import as_llama

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The built-in model in our own export, by how its weights are stored."""
    made = {}
    for kind in ("f16", "q8_0"):
        made[kind] = tmp_path_factory.mktemp("gguf") / f"{kind}.gguf"
        assert main(["export", "builtin", "--to", "gguf", "--quantize", kind, "--out", str(made[kind])]) == 0
    return made


@pytest.fixture(scope="module")
def file(exported: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("llama") / "builtin.gguf"
    return as_llama(exported["f16"], out, fields={"tokenizer.chat_template": TEMPLATE})


def test_weights_tokens_and_template_are_those_of_the_folder(file: Path) -> None:
    (found, tokens), (own, own_tokens) = seap.load(str(file)), seap.load("builtin")
    pairs = zip(found.named_parameters(), own.named_parameters(), strict=True)
    assert all(a == b and torch.equal(x.float(), y.half().float()) for (a, x), (b, y) in pairs)
    for text in ("12 + 7 = 19", "Reverse: a b c -> c b a", "Zürich\n\n“x”"):
        assert tokens(text)["input_ids"] == own_tokens(text)["input_ids"]
    assert tokens.chat_template == TEMPLATE
    assert found.dtype == torch.float16 and found.config.rope_parameters == own.config.rope_parameters


def test_quantized_weights_are_dequantized_to_dtype(exported: dict[str, Path], tmp_path: Path) -> None:
    file = as_llama(exported["q8_0"], tmp_path / "q8.gguf")
    found, own = seap.load(str(file))[0], seap.load("builtin", dtype="float32")[0]
    assert found.dtype == torch.bfloat16 and seap.load(str(file), dtype="float32")[0].dtype == torch.float32
    weight, expected = (m.model.layers[3].mlp.gate_proj.weight.detach().float() for m in (found, own))
    assert 0 < float((weight - expected).norm() / expected.norm()) < 0.02  # 8 bits


def test_prune_takes_a_file_and_says_so(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "small"
    command = ["prune", str(file), "--task", "arithmetic", "--method", "seap-paper", "--sparsity", "0.3"]
    assert main([*command, "--max-tokens", "200", "--out", str(out), "--json"]) == 0
    said = json.loads((out / "seap.json").read_text())
    assert said["model"] == str(file) and said["dequantized_from"] == "GGUF llama (F16)"
    pruned, tokens = seap.load(str(out))
    assert pruned.dtype == torch.float16 and tokens.chat_template == TEMPLATE
    capsys.readouterr()
    assert main(["inspect", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["family"] == "llama"


def llama3_factors(theta: float, size: int, factor: float, original: int) -> list[float]:
    """As llama.cpp's convert_hf_to_gguf.py writes them."""
    found = []
    for i in range(0, size, 2):
        wavelength = 2 * math.pi * theta ** (i / size)
        if wavelength < original / 4:
            found.append(1.0)
        elif wavelength > original:
            found.append(factor)
        else:
            smooth = (original / wavelength - 1) / 3
            found.append(1 / ((1 - smooth) / factor + smooth))
    return found


def test_a_scaled_rope_is_read(exported: dict[str, Path], tmp_path: Path) -> None:
    source = exported["f16"]
    linear = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    found = load_config(str(as_llama(source, tmp_path / "linear.gguf", fields=linear)))
    assert (found.rope_parameters["rope_type"], found.rope_parameters["factor"]) == ("linear", 4.0)
    factors = llama3_factors(1e4, 16, 32.0, 8192)
    found = load_config(str(as_llama(source, tmp_path / "3.gguf", extra={"rope_freqs.weight": factors})))
    rope = found.rope_parameters
    assert (rope["rope_type"], rope["factor"], rope["original_max_position_embeddings"]) == ("llama3", 32.0, 8192)


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        ({"fields": {"llama.rope.scaling.type": "longrope"}}, "its type is longrope"),
        ({"extra": {"rope_freqs.weight": [3.0] * 8}}, "none of Llama 3's"),
        ({"extra": {"rope_factors_long.weight": [3.0] * 8}}, "rope_factors_long"),
        ({"extra": {"blk.0.attn_output.bias": [1.0] * 192}}, "192 of its"),
        ({"fields": {"split.count": 3}}, "one of 3 parts"),
    ],
)
def test_what_would_be_misread_is_refused(
    exported: dict[str, Path], tmp_path: Path, made: dict[str, Any], reason: str
) -> None:
    path = as_llama(exported["f16"], tmp_path / "bad.gguf", **made)
    with pytest.raises(UserError, match=reason):
        seap.load(str(path))


def test_files_that_cant_be_read_are_refused_with_the_cause(
    exported: dict[str, Path], file: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"deci. but Transformers does not recognize|deci is not supported"):
        seap.load(str(exported["f16"]))
    (tmp_path / "none.gguf").write_bytes(b"hello" * 100)
    (tmp_path / "cut.gguf").write_bytes(file.read_bytes()[:200_000])
    for name in ("none.gguf", "cut.gguf"):
        with pytest.raises(UserError, match=f"can't read .*{name}"):
            seap.load(str(tmp_path / name))
    with pytest.raises(UserError, match="no such file"):
        seap.load(str(tmp_path / "absent.gguf"))


def test_a_file_of_more_layers_than_it_has_weights_of_is_refused_at_once(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = header(file)
    lying = replace(said, fields={**said.fields, "llama.block_count": 10**9})
    monkeypatch.setattr(gguf, "header", lambda path: lying)
    with pytest.raises(UserError, match=r"says 1000000000 layers and has weights of \d+"):
        load_config(str(file))


def test_a_file_cant_be_streamed(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["prune", str(file), "--task", "arithmetic", "--method", "seap-paper", "--stream"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 1
    assert "is a GGUF file; leave it out" in capsys.readouterr().err.replace("\n", " ")


def test_the_header_says_what_is_stored(exported: dict[str, Path]) -> None:
    said = header(exported["q8_0"])
    assert said.architecture == "deci" and said.about().startswith("GGUF deci (Q8_0")
    assert said.num_weights == sum(p.numel() for p in seap.load("builtin")[0].parameters())
    assert np.isclose(sum(said.types.values()), said.num_weights, rtol=0.01)
