"""OpenVINO folders compute what the pruned model computes, with their cache inside. Skipped without the extra."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import model
from vocabularies import byte_level

from seap.cli.main import main
from seap.compensation.compensate import Repair
from seap.exports.options import Export
from seap.exports.stock import slides
from seap.models.arch import describe
from seap.pruning.surgery import cut_

openvino = pytest.importorskip("openvino", reason='needs pip install "seap[openvino]"')
pytest.importorskip("openvino_tokenizers")

from seap.exports.openvino_folder import write_openvino  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # of the engine's own imports
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "INFERENCE_NUM_THREADS": 1}


def pruned(name: str, **changes: Any) -> Any:
    built, draw = model(name, vocab_size=420, intermediate_size=64, **changes), torch.Generator().manual_seed(0)
    groups = max(axis.units for axis in describe(built).axes if axis.layer == 0 and axis.name != "channels")
    kept = {"kv_groups": (groups, max(groups // 2, 1), groups), "channels": (64, 33, 50)}
    axes = describe(built).axes
    masks = {a.key: torch.randperm(a.units, generator=draw) < kept[a.name][a.layer] for a in axes}
    repairs = {a.key: Repair(torch.randn(built.config.hidden_size, generator=draw).double()) for a in axes}
    cut_(built, masks, repairs)
    return built


class Engine:
    """A compiled folder, fed a few tokens at a time."""

    def __init__(self, folder: Path) -> None:
        core = openvino.Core()
        self.request = core.compile_model(
            core.read_model(folder / "openvino_model.xml"), "CPU", EXACT
        ).create_infer_request()
        self.seen = 0

    def feed(self, ids: Any, beams: Any = None, mask: Any = None) -> Any:
        rows, length = ids.shape
        start, self.seen = self.seen, self.seen + length
        mask = np.ones((rows, self.seen), dtype=np.int64) if mask is None else mask
        self.request.infer(
            {
                "input_ids": ids.numpy(),
                "attention_mask": mask,
                "position_ids": np.clip(np.cumsum(mask, 1) - 1, 0, None)[:, start:],
                "beam_idx": np.arange(rows, dtype=np.int32) if beams is None else np.array(beams, dtype=np.int32),
            }
        )
        return torch.from_numpy(self.request.get_tensor("logits").data.copy())


@pytest.mark.parametrize("name", ["llama", "qwen3", "phi3", "mistral", "gemma2", "gemma3_text"])
def test_prefill_and_decoding_give_the_same_logits(name: str, tmp_path: Path) -> None:
    """Of the last three a window hides tokens, and Gemma 2 caps its scores."""
    built = pruned(name)
    assert slides(built.config) == (name in ("mistral", "gemma2", "gemma3_text"))
    assert write_openvino(built, byte_level(r"\w+"), tmp_path, Export()) == []
    ids = torch.randint(3, 400, (2, 12), generator=torch.Generator().manual_seed(1))
    expected, engine = built(ids).logits, Engine(tmp_path)
    pieces = [engine.feed(ids[:, :7]), engine.feed(ids[:, 7:11]), engine.feed(ids[:, 11:])]
    torch.testing.assert_close(torch.cat(pieces, 1), expected, atol=1e-4, rtol=1e-4)


def test_beams_are_reordered_and_padding_is_not_seen(tmp_path: Path) -> None:
    built = pruned("llama")
    write_openvino(built, byte_level(r"\w+"), tmp_path, Export())
    ids, engine = torch.randint(3, 400, (2, 8), generator=torch.Generator().manual_seed(1)), Engine(tmp_path)
    engine.feed(ids[:, :7])
    swapped = engine.feed(ids[:, 7:], beams=[1, 0])  # each row goes on from the other's past
    rows = torch.cat([ids[[1, 0], :7], ids[:, 7:]], 1)
    torch.testing.assert_close(swapped[:, -1], built(rows).logits[:, -1], atol=1e-4, rtol=1e-4)
    mask = np.array([[0, 0, 1, 1, 1, 1, 1, 1]])
    padded = Engine(tmp_path).feed(ids[:1], mask=mask)
    torch.testing.assert_close(padded[:, -1], built(ids[:1, 2:]).logits[:, -1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_compressed_weights_are_smaller_and_near(weights: Any, tmp_path: Path) -> None:
    own = pytest.importorskip("nncf").common.logging.logger.nncf_logger
    before = own.level, [handler.level for handler in own.handlers]
    built = pruned("llama", hidden_size=128)
    notes = write_openvino(built, byte_level(r"\w+"), tmp_path, Export(weights=weights))
    assert (own.level, [handler.level for handler in own.handlers]) == before  # which pytest's are among
    size = (tmp_path / "openvino_model.bin").stat().st_size
    assert size < 0.6 * 4 * sum(p.numel() for p in built.parameters())
    assert len(notes) == (weights == "int4") and all("2 layers" in note for note in notes)
    ids = torch.randint(3, 400, (1, 12), generator=torch.Generator().manual_seed(1))
    expected, got = built(ids).logits, Engine(tmp_path).feed(ids)
    assert (expected - got).norm() / expected.norm() < (0.02 if weights == "int8" else 0.3)


def test_the_command_writes_a_whole_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pruned("llama").save_pretrained(tmp_path / "small")
    byte_level(r"\w+").save_pretrained(tmp_path / "small")
    out = tmp_path / "ov"
    level, filters = logging.root.level, list(logging.root.filters)
    assert main(["export", str(tmp_path / "small"), "--to", "openvino", "--out", str(out), "--json"]) == 0
    assert (logging.root.level, logging.root.filters) == (level, filters)  # the converter sets both
    assert json.loads(capsys.readouterr().out)["bytes"] > 1000
    names = {path.name for path in out.iterdir()}
    assert names >= {
        "openvino_model.bin",
        "openvino_tokenizer.xml",
        "openvino_detokenizer.xml",
        "generation_config.json",
    }
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"] and "auto_map" not in config
    model("mixtral").save_pretrained(tmp_path / "experts")
    assert main(["export", str(tmp_path / "experts"), "--to", "openvino", "--out", str(tmp_path / "no")]) == 1
    assert "mixtures of experts" in capsys.readouterr().err and not (tmp_path / "no").exists()
