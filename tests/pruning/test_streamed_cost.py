"""What --plan says of a pruning layer by layer: bytes read against the layers that are really read, memory and disk."""

from pathlib import Path
from typing import Any

import pytest
import torch
from test_streaming import pruned
from tiny import SMALL
from toy import folder, texts_file

from seap.models import configs, residency
from seap.models.options import Streaming
from seap.models.shapes import shape_config
from seap.pruning import memory
from seap.pruning.cost import Done, Text, shape_of
from seap.pruning.estimate import plan_prune
from seap.pruning.streamed_cost import needs, reading
from seap.selection.options import Pruning
from seap.text.options import Calibration

TEXT = {"toy": Text(16384, 5, 64)}
BLOCKS = Calibration(moments="block:1024")
STREAM = Streaming(stream=True)


@pytest.mark.parametrize("options", [{"method": "flap"}, {"effort": "quick"}, {"search_evaluations": 5}])
def test_layers_are_read_as_often_as_the_plan_says(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    ready = residency.ready_

    def counted(modules: Any, plan: Any) -> Any:
        modules = list(modules)
        read.append(sum("Attention" in type(module).__name__ for module in modules))
        return ready(modules, plan)

    monkeypatch.setattr("seap.models.residency.ready_", counted)
    monkeypatch.setattr("seap.pruning.streaming.ready_", counted)
    dense = folder(tmp_path / "dense")
    pruned(dense, tmp_path / "out", STREAM, sparsity=0.3, **options)
    pruning = Pruning(sparsity=0.3, min_channels=4, **options)
    shape = shape_of(configs.on_meta(configs.open_folder(dense).config), pruning, 4)
    planned = reading(shape, pruning, 4, [0.3], 1, Done())
    passes = [stage.read / (4 * shape.params) for stage in planned if stage.name not in ("scores", "damage")]
    trials = options.get("search_evaluations", 0)
    assert (
        sum(passes) - trials <= sum(read) / SMALL["num_hidden_layers"] <= sum(passes)
    )  # a trial from a later layer on


def test_one_layer_of_a_large_model_is_in_memory() -> None:
    pruning = Pruning()
    shape = shape_of(configs.on_meta(shape_config("llama-3-70b")), pruning, torch.bfloat16.itemsize)
    found = needs(shape, pruning, TEXT, BLOCKS, STREAM)
    assert found.memory < 0.2 * shape.weight_bytes < memory.of(shape, pruning, TEXT, BLOCKS).memory
    assert found.memory > 2 * shape.itemsize * shape.layer_params
    assert {what for what, _, _ in found.disk} == {
        "second moments",
        "factors of second moments",
        "hidden states and sensitivities",
    }
    less = needs(shape, Pruning(effort="quick"), TEXT, BLOCKS, STREAM)
    assert less.memory < found.memory and less.disk[1][1] < found.disk[1][1]


def test_what_is_offloaded_is_not_in_memory(tmp_path: Path) -> None:
    pruning = Pruning(method="flap")
    shape = shape_of(configs.on_meta(shape_config("llama-3-70b")), pruning, torch.bfloat16.itemsize)
    here = needs(shape, pruning, TEXT, BLOCKS, STREAM)
    away = needs(shape, pruning, TEXT, BLOCKS, Streaming(stream=True, offload_dir=tmp_path / "not" / "yet"))
    assert here.disk == () and away.disk[0][2] == tmp_path
    assert here.memory - away.memory == pytest.approx(away.disk[0][1]) and away.disk[0][1] == 2 * 16384 * 8192


def test_the_plan_knows_of_streaming(tmp_path: Path) -> None:
    dense, task = folder(tmp_path / "dense"), texts_file(tmp_path / "t.txt")
    how: dict[str, Any] = {"pruning": Pruning(min_channels=4), "calibration": Calibration(), "tasks": [f"t={task}"]}
    plain = plan_prune(str(dense), tmp_path / "x", **how)
    far = plan_prune(str(dense), tmp_path / "x", streaming=STREAM, **how)
    assert plain.less_memory == "--stream" and not far.less_memory
    assert "cut" in {stage.name for stage, _ in far.stages} - {stage.name for stage, _ in plain.stages}
    assert [stage.name for stage, _ in far.stages].count("calibrate") == 1
    refused = plan_prune(str(dense), tmp_path / "x", **how | {"pruning": Pruning(min_channels=4, curves="measured")})
    assert refused.less_memory == "--stream without --curves measured"
