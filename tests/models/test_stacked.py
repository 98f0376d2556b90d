"""Experts' weights that lie one by one in a checkpoint are stacked in files, as transformers stacks them in memory."""

from pathlib import Path

import pytest
import torch
from tiny import MOE, model

from seap.models import configs, loader
from seap.models.arch import describe
from seap.models.residency import modules_of
from seap.models.stacked import places_of, stack_to_files, stacked_params


@pytest.mark.parametrize("name", sorted(MOE))
def test_stacks_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    net = model(name)
    net.save_pretrained(tmp_path / "net", max_shard_size="20KB")
    bare = configs.on_meta(net.config)
    found = stack_to_files(bare, sorted((tmp_path / "net").glob("*.safetensors")), tmp_path)
    expected = {path: value for path, value in net.named_parameters() if "experts." in path and value.dim() == 3}
    assert expected
    if name in (
        "gpt_oss",
        "granitemoehybrid",
        "gemma4_text-experts",
    ):  # whose files have them stacked, maybe under another name
        assert found is None and stacked_params(bare) == 0 and not list(tmp_path.glob("*.safetensors"))
        return
    assert found is not None and all(torch.equal(found[path], value) for path, value in expected.items())
    assert stacked_params(bare) == sum(value.numel() for value in expected.values())
    layers = range(len(describe(bare).layers))
    assert len(list(tmp_path.glob("experts-*.safetensors"))) == sum(bool(places_of(bare, layer)) for layer in layers)


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="what is mapped is told by Linux alone")
@pytest.mark.parametrize("name", ["qwen2_moe", "gpt_oss"])
def test_a_streamed_model_has_them_in_files(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No weight of a layer is anywhere but in a file, and the model says what it says in memory."""
    monkeypatch.setattr("seap.models.checkpoint_folder.load_tokenizer", lambda *_, **__: None)
    net = model(name)
    net.save_pretrained(tmp_path / "net")
    (tmp_path / "shards").mkdir()
    streamed, _ = loader.load_streamed(str(tmp_path / "net"), tmp_path / "shards", device="cpu", dtype="float32")
    given = torch.arange(3, 15).unsqueeze(0)
    assert torch.equal(streamed(given).logits, net(given).logits)
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(".safetensors")]
    mapped = [tuple(int(end, 16) for end in line[0].split("-")) for line in maps]
    for module in modules_of(describe(streamed), 1):
        for value in module.parameters(recurse=False):
            assert any(start <= value.data_ptr() < end for start, end in mapped)
