"""`seap diff`: counts and overlaps by hand, whatever form the two networks have, and what can't be compared."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from toy import folder, texts_file

from seap.cli.main import main
from seap.errors import UserError
from seap.page.difference import difference
from seap.pruning.commands import prune_to_folder
from seap.selection.mask import save_masks


def masks(path: Path, kv_groups: str, channels: str, **about: Any) -> str:
    """A mask file of one layer; `x.` keeps the first of two units."""
    units = {"kv_groups": kv_groups, "channels": channels}
    told = {f"layers.0.{axis}": torch.tensor([unit == "x" for unit in kept]) for axis, kept in units.items()}
    save_masks(path, told, {"model": "toy", "method": "seap", "realised_sparsity": 0.5, **about})
    return str(path)


def test_what_each_keeps_alone_and_in_common(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = masks(tmp_path / "a.safetensors", "x.", "xx..x.", tasks=["sums"], fingerprint="1")
    second = masks(tmp_path / "b.safetensors", "xx", ".x.xx.", tasks=["dates"], fingerprint="1")
    found = difference(first, second)
    heads, channels = found["layers"]
    assert (heads["a"], heads["b"], heads["both"], heads["overlap"]) == (1, 2, 1, 0.5)
    assert (heads["only_a"], heads["only_b"]) == ([], [1])
    # channels 0 1 4 and 1 3 4: two of four in common
    assert (channels["a"], channels["b"], channels["both"], channels["overlap"]) == (3, 3, 2, 0.5)
    assert (channels["only_a"], channels["only_b"]) == ([0], [3])
    # of 20 pairs of three among six: one has 0, nine 1, nine 2, one 3 in common; overlaps 0, 1/5, 2/4, 3/3
    assert channels["by_chance"] == pytest.approx((9 / 5 + 9 / 2 + 1) / 20)
    assert found["axes"]["channels"]["both"] == 2 and found["same_weights"] is True
    assert main(["diff", first, second]) == 0
    printed = capsys.readouterr().out
    assert "sums" in printed and "dates" in printed and "50%" in printed
    assert main(["diff", first, second, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == found


def test_folders_masks_and_networks_are_compared_alike(tmp_path: Path) -> None:
    dense, task = str(folder(tmp_path / "dense")), f"toy={texts_file(tmp_path / 'toy.txt')}"
    chosen = ["--sparsity", "0.4", "--min-channels", "4", "--method", "wanda-sp"]
    assert main(["calibrate", dense, "--task", task, "--out", str(tmp_path / "stats"), "-q"]) == 0
    mask, stats = str(tmp_path / "toy.safetensors"), str(tmp_path / "stats" / "toy.safetensors")
    assert main(["mask", dense, stats, *chosen, "--out", mask, "-q"]) == 0
    pruned = prune_to_folder(dense, tmp_path / "small", mask_file=Path(mask), progress=False)
    packed = tmp_path / "tasks"
    assert main(["pack", dense, f"toy={mask}", "--out", str(packed), "-q"]) == 0
    for other in (tmp_path / "small", packed / "toy.safetensors", packed / "toy"):
        found = difference(mask, str(other))
        assert all(axis["overlap"] == 1 for axis in found["axes"].values()) and found["same_weights"] is True
    found = difference(str(tmp_path / "small"), mask)
    assert found["a"]["params_after"] == pruned.params_after and found["a"]["bytes"] > 0
    assert [row["a"] for row in found["layers"] if row["axis"] == "channels"] == [
        layer["channels"] for layer in pruned.layers
    ]


def test_query_heads_are_told_apart_where_one_side_does(tmp_path: Path) -> None:
    groups = {"layers.0.kv_groups": torch.tensor([True, False])}
    heads = {"layers.0.query_heads": torch.tensor([True, False, False, False])}
    save_masks(tmp_path / "a.safetensors", groups | heads, {})
    save_masks(tmp_path / "b.safetensors", groups, {})
    for names in (("a", "b"), ("b", "a")):
        found = difference(*(str(tmp_path / f"{name}.safetensors") for name in names))
        assert [row["axis"] for row in found["layers"]] == ["kv_groups", "query_heads"]
        assert found["axes"]["kv_groups"]["overlap"] == 1 and found["axes"]["query_heads"]["overlap"] == 0.5


def test_what_cant_be_compared_is_said(tmp_path: Path) -> None:
    first = masks(tmp_path / "a.safetensors", "x.", "xx..")
    wider = masks(tmp_path / "b.safetensors", "x.", "xx..x.")
    with pytest.raises(UserError, match=r"different models: layers\.0\.channels has 4 units in the one and 6"):
        difference(first, wider)
    with pytest.raises(UserError, match="no such file or folder"):
        difference(first, "nowhere")
    with pytest.raises(UserError, match=r"holds several files \(a\.safetensors, b\.safetensors\); give one"):
        difference(first, str(tmp_path))
    with pytest.raises(UserError, match=r"has no seap/mask\.safetensors"):
        difference(first, str(folder(tmp_path / "dense")))
    others = masks(tmp_path / "c.safetensors", ".x", "..xx", fingerprint="2")
    marked = masks(tmp_path / "d.safetensors", ".x", "..xx", fingerprint="1")
    assert difference(marked, others)["same_weights"] is False and difference(first, others)["same_weights"] is None
