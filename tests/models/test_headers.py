"""Headers and configs that were changed at random end in one line, whatever was changed."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from cut import pruned, random_masks
from tiny import model
from toy import folder, tokenizer

import seap
from seap.errors import UserError
from seap.exports.engines import check
from seap.exports.options import Deployment
from seap.models.headers import read_headers
from seap.page.describe import describe

STRANGE: list[Any] = [
    None,
    True,
    0,
    -1,
    3,
    10**18,
    0.5,
    float("inf"),
    "",
    "x",
    "org/kernel",
    [],
    [[]],
    [1],
    {},
    {"a": 1},
]
QUICK: dict[str, Any] = {"method": "magnitude", "sparsity": 0.3, "min_channels": 4, "progress": False}


def changed(value: Any, rng: random.Random) -> Any:
    """A copy of JSON with one entry taken out, renamed or replaced, at any depth."""
    made = here = json.loads(json.dumps(value))
    while True:
        key = rng.choice(list(here)) if isinstance(here, dict) else rng.randrange(len(here))
        if isinstance(here[key], dict | list) and here[key] and rng.random() < 0.6:
            here = here[key]
            continue
        if isinstance(here, dict) and rng.random() < 0.3:
            taken = here.pop(key)
            here |= {f"n_{key}": taken} if rng.random() < 0.5 else {}
        else:
            here[key] = rng.choice(STRANGE)
        return made


def header_of(path: Path) -> tuple[dict[str, Any], bytes]:
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def test_headers_changed_at_random_are_read_or_refused(tmp_path: Path) -> None:
    path = folder(tmp_path / "dense") / "model.safetensors"
    header, data = header_of(path)
    rng, refused = random.Random(0), 0
    for _ in range(300):
        told = json.dumps(changed(header, rng)).encode()
        path.write_bytes(len(told).to_bytes(8, "little") + told + data)
        try:
            shapes = read_headers([path])
            assert all(isinstance(shape, tuple) for shape in shapes.values())
        except UserError as error:
            assert "can't load model" in str(error)
            refused += 1
    assert refused > 50
    for damaged in (b"", b"\xff" * 8, b"\x02" + b"\0" * 7 + b"[]", (9).to_bytes(8, "little") + b"\xff" * 9):
        path.write_bytes(damaged)
        with pytest.raises(UserError):
            read_headers([path])


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2_moe", "pruned"])
def test_configs_changed_at_random_are_used_or_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / kind
    if kind == "pruned":
        dense = model("llama")
        pruned(dense, random_masks(dense, 0)).save_pretrained(path)
        tokenizer().save_pretrained(path)
    else:
        folder(path, kind)
    config = json.loads((path / "config.json").read_text())
    rng = random.Random(1)
    for place in range(25):
        (path / "config.json").write_text(json.dumps(changed(config, rng)))
        for use in (
            lambda: describe(str(path)),
            lambda: check(str(path), Deployment()),
            lambda: seap.prune(seap.load(str(path), device="cpu")[0], **QUICK),
        ):
            try:
                use()
            except UserError as error:
                assert "\n" not in str(error), place
