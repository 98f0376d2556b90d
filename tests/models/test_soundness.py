"""Weights that aren't what was written, or no numbers, are refused where they are loaded; JSON has null for them."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from toy import folder

import seap
from seap.disk.digests import weight_digests
from seap.errors import UserError
from seap.files import to_json


def test_a_flipped_bit_is_found_and_the_look_can_be_left_out(tmp_path: Path) -> None:
    path = folder(tmp_path / "model")
    (path / "seap.json").write_text(json.dumps({"digests": weight_digests(path)}))
    seap.load(str(path), device="cpu")
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + bytes([weights.read_bytes()[-1] ^ 1]))
    with pytest.raises(UserError, match=r"model\.safetensors isn't what was written"):
        seap.load(str(path), device="cpu")
    seap.load(str(path), device="cpu", skip_digests=True)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_no_numbers_are_named(tmp_path: Path, value: float) -> None:
    path = folder(tmp_path / "model") / "model.safetensors"
    weights = load_file(path)
    weights["model.layers.1.mlp.down_proj.weight"].view(-1)[7] = value
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"layers\.1\.mlp\.down_proj\.weight holds NaN or infinite"):
        seap.load(str(path.parent), device="cpu")


def test_json_has_null_for_what_is_no_number() -> None:
    value = {"a": [math.nan, 1.5, (math.inf,)], "b": {"c": -math.inf, "d": torch.tensor(1.0).item()}}
    assert json.loads(to_json(value)) == {"a": [None, 1.5, [None]], "b": {"c": None, "d": 1.0}}
