"""vLLM: what its plugin registers, and what `seap check` says of a checkpoint before it is deployed."""

import json
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from paths import ROOT
from tiny import model
from toy import folder

from seap.cli.main import main
from seap.disk.digests import weight_digests
from seap.exports.engines import check
from seap.exports.options import Deployment
from seap.models.arch import describe
from seap.pruning.surgery import cut_


class Registry:
    """vLLM's ModelRegistry, as its documentation describes it."""

    models: dict[str, str]

    def __init__(self) -> None:
        self.models = {"LlamaForCausalLM": "vllm's own"}

    def get_supported_archs(self) -> Any:
        return self.models.keys()

    def register_model(self, architecture: str, place: str) -> None:
        assert architecture not in self.models and ":" in place  # a name is imported lazily, a class at once
        self.models[architecture] = place


def test_the_entry_point_registers_what_pruned_checkpoints_name(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["vllm.general_plugins"]
    module, _, function = entry["seap"].partition(":")
    vllm = ModuleType("vllm")
    vllm.ModelRegistry = Registry()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    for _ in range(2):  # vLLM calls it in every process, and may call it twice in one
        getattr(import_module(module), function)()
    pruned = cut(model())
    [architecture] = pruned.config.architectures
    assert vllm.ModelRegistry.models[architecture].endswith("transformers:TransformersForCausalLM")


def cut(built: Any, groups: tuple[int, ...] = (4, 2, 2), channels: tuple[int, ...] = (40, 32, 7)) -> Any:
    kept = {"kv_groups": groups, "channels": channels}
    cut_(built, {a.key: torch.arange(a.units) < kept[a.name][a.layer] for a in describe(built).axes})
    return built


def saved(path: Path, **kept: Any) -> str:
    folder(path)
    cut(model(), **kept).save_pretrained(path)
    return str(path)


def test_it_names_the_layers_whose_widths_do_not_divide(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = saved(tmp_path / "small", groups=(4, 2, 1))
    assert main(["check", small, "--engine", "vllm", "--tp", "2", "--json"]) == 1
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert [(p["layer"], p["axis"], p["units"]) for p in found["problems"]] == [
        (2, "kv_groups", 1),
        (2, "channels", 7),
    ]
    assert found["largest_tp"] == 1 and not found["fits"]
    assert "--round-to 256 (2 is the least" in printed.err and "--axes channels" in printed.err
    assert main(["check", small, "--tp", "2"]) == 1
    assert "kv groups" in capsys.readouterr().out


def test_what_fits_is_said_to_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = saved(tmp_path / "small", groups=(4, 2, 2), channels=(40, 32, 8))
    assert main(["check", small, "--tp", "2"]) == 0
    printed = capsys.readouterr()
    assert "fits vllm with tp 2" in printed.out and "multiple of 256" in printed.err
    assert check(small, Deployment(tp=1))["largest_tp"] == 2
    assert check(str(folder(tmp_path / "dense")), Deployment(tp=4))["fits"]


def test_a_damaged_weight_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = folder(tmp_path / "small")
    (small / "seap.json").write_text(json.dumps({"digests": weight_digests(small)}))
    assert main(["check", str(small), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["digests"] == 1
    weights = small / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert main(["check", str(small), "--json"]) == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out)["damaged"] == {"model.safetensors": "isn't what was written"}
    assert "model.safetensors isn't what was written, by its digest in seap.json" in printed.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--tp", "0"], "--tp 0: must be at least 1"), (["--tp", "8"], "no layer can: it has 4 at most")],
)
def test_a_wrong_number_of_gpus(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", saved(tmp_path / "small"), *arguments]) == 1
    assert message in capsys.readouterr().err
