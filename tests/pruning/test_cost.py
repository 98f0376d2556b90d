"""What a run will cost, before it starts: counted work against the work that is really done, refusals, and --plan."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import model
from toy import folder, texts_file, tokenizer

import seap
from seap.cli.main import main
from seap.errors import UserError
from seap.models import configs, loader
from seap.models.arch import describe
from seap.models.shapes import shape_config
from seap.pruning import estimate as estimating
from seap.pruning.cost import pruning_stages, shape_of
from seap.pruning.estimate import Estimate, plan_prune, span
from seap.pruning.prospect import prospect
from seap.pruning.rates import Rates, Taken, measure_rates
from seap.pruning.work import Done, Stage, Text, merged
from seap.selection.options import Pruning
from seap.text.options import Calibration

TEXT = {"toy": Text(400, 3, 40)}
UNIT = Rates(**{name: Taken(1.0, 1.0) for name in ("forward", "backward", "positions", "backward_positions", "passes")},
             moments=Taken(0.0, 0.0), solves=Taken(0.0, 0.0))  # fmt: skip


def stages(
    options: Pruning, *, text: dict[str, Text] = TEXT, sparsities: tuple[float, ...] = (0.5,), **more: Any
) -> Any:
    shape = shape_of(configs.on_meta(model().config), options, 4)
    return {stage.name: stage for stage in pruning_stages(shape, options, text, sparsities=sparsities, **more)}


def test_stages_are_those_that_the_options_ask_for() -> None:
    assert [*stages(Pruning(method="flap"))] == ["calibrate"]
    assert [*stages(Pruning(method="magnitude"), text={})] == []
    assert [*stages(Pruning(method="llm-pruner"))] == ["calibrate", "gradients"]
    gisp = stages(Pruning(method="gisp", steps=7), sparsities=(0.2, 0.5))
    assert gisp["steps"].backward == 2 * 6 * gisp["gradients"].backward  # of two sparsities; the first step is shared
    assert [*stages(Pruning(method="shortgpt"))] == ["calibrate", "influence"]
    assert [*stages(Pruning(method="wanda-sp-sequential"))] == ["calibrate", "layers"]
    assert [*stages(Pruning(method="modegpt-mlp"))] == ["calibrate", "scores", "repair"]
    assert "refit" in stages(Pruning()) and "refit" not in stages(Pruning(sequential=False))
    ridge = stages(Pruning(), done=Done(calibrated=True, chosen=True))
    assert [*ridge] == ["repair", "refit"]
    assert not {"repair", "refit", "search"} & stages(Pruning(), sparsities=(0.0,)).keys()


def test_another_sparsity_costs_no_other_calibration() -> None:
    one, two = stages(Pruning()), stages(Pruning(), sparsities=(0.5, 0.5))
    assert two["calibrate"] == one["calibrate"]
    assert two["repair"].solves == 2 * one["repair"].solves
    assert two["refit"].forward == 2 * one["refit"].forward


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {"method": "flap"}) for name in ("llama", "qwen2", "mixtral")),
        *((name, {"allocate": "logistic", "sequential": False}) for name in ("llama", "qwen2", "mixtral")),
        *((name, {}) for name in ("llama", "qwen2", "mixtral")),
        *((name, {"method": "wanda-sp-sequential"}) for name in ("llama", "qwen2", "mixtral")),
        ("llama", {"method": "gisp", "steps": 3}),
        ("qwen2", {"method": "llm-pruner"}),
        ("llama", {"method": "obs"}),
    ],
)
def test_tokens_counted_are_the_tokens_that_run(name: str, options: dict[str, Any]) -> None:
    """Every token through every layer's attention in a real pruning, against the plan's tokens forward."""
    net = model(name)
    arch = describe(net)
    settings: dict[str, Any] = {"num_texts": 40, "min_channels": 4} | options
    seen = SimpleNamespace(tokens=0)

    def count(module: Any, inputs: Any) -> None:
        seen.tokens += inputs[0].shape[:-1].numel()

    outputs = [arch.linear(layer, arch.family.heads_consumer) for layer in range(len(arch.layers))]
    handles = [linear.register_forward_pre_hook(count) for linear in outputs]
    shape = shape_of(configs.on_meta(net.config), Pruning(**{k: v for k, v in settings.items() if k != "num_texts"}), 4)
    texts = [" ".join(f"w{3 + (i * 7 + j) % 40}" for j in range(9)) for i in range(40)]
    seap.prune(net, tokenizer(), task={"toy": texts}, sparsity=0.5, progress=False, **settings)
    for handle in handles:
        handle.remove()
    pruning = Pruning(**{k: v for k, v in settings.items() if k != "num_texts"})
    tokens = 40 * (9 + len(tokenizer()("w3")["input_ids"]) - 1)
    planned = pruning_stages(shape, pruning, {"toy": Text(tokens, 2, 40)}, sparsities=(0.5,))
    counted = sum(stage.forward for stage in planned) * shape.num_layers
    assert seen.tokens / 1.5 < counted < 1.5 * seen.tokens


def test_stages_of_one_name_add_up() -> None:
    found = merged([Stage(name="a", forward=1), Stage(name="b", solves=2), Stage(name="a", forward=3, written=1)])
    assert found == [Stage(name="a", forward=4, written=1), Stage(name="b", solves=2)]
    assert UNIT.of(Stage(name="a", forward=2, passes=3)) == Taken(5.0, 5.0)


def test_rates_are_measured_without_the_weights() -> None:
    net = configs.on_meta(model("mixtral").config)
    shape = shape_of(net, Pruning(), 4)
    rates = measure_rates(shape, device="cpu", dtype=torch.float32, length=8, batch_tokens=64)
    assert all(part.is_meta for part in net.parameters())
    kinds = ("forward", "backward", "positions", "backward_positions", "passes", "moments", "solves")
    assert all(getattr(rates, kind).wall > 0 for kind in kinds)


def an_estimate(**changes: Any) -> Estimate:
    stage = (Stage(name="search", forward=1), Taken(50.0, 40.0))
    about: dict[str, Any] = {"what": "pruning", "stages": (stage,), "memory": 1e9, "memory_free": 2e9}
    return Estimate(**about | changes)


def test_what_does_not_fit_ends_before_it_starts(tmp_path: Path) -> None:
    an_estimate().check()
    with pytest.raises(UserError, match=r"3\.0 GB of memory and 2\.0 GB is free; add --stream"):
        an_estimate(memory=3e9, less_memory="--stream").check()
    with pytest.raises(UserError, match="the pruned model and second moments need about"):
        an_estimate(disk=(("the pruned model", 1.0, tmp_path), ("second moments", 1e18, tmp_path))).check()


def test_the_line_says_time_memory_and_what_is_cheaper() -> None:
    line = an_estimate(cheaper=(("--method flap", 4.0),)).line()
    assert "search 100%" in line and "1.0 GB of memory" in line and "cheaper: --method flap" in line
    assert span(3600 * 4) == "3.0 to 6.0 hours" and span(20) == "15 to 30 seconds"


def test_what_planning_takes_is_counted() -> None:
    """A run plans too, and does so with the same imports."""
    told = an_estimate(planning=Taken(7.0, 5.0))
    assert told.seconds - an_estimate().seconds == 7 and told.cpu_seconds - an_estimate().cpu_seconds == 5


def test_cheaper_options_leave_less_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense, task = folder(tmp_path / "dense"), texts_file(tmp_path / "t.txt")

    def planned() -> Estimate:
        return plan_prune(str(dense), tmp_path / "x", pruning=Pruning(), calibration=Calibration(), tasks=[f"t={task}"])

    monkeypatch.setattr(estimating, "OVERHEAD", 0.0)
    found = planned()
    assert found.cheaper and all(seconds < found.seconds for _, seconds in found.cheaper)
    monkeypatch.setattr(estimating, "OVERHEAD", 1e6)  # where reading the model is all that takes time, nothing helps
    assert not planned().cheaper


def test_the_text_is_counted_by_the_tokenizer(tmp_path: Path) -> None:
    dense, task = folder(tmp_path / "dense"), texts_file(tmp_path / "t.txt", ["w3 w4 w5"] * 10)
    seen = prospect(str(dense))
    whole = seen.text([f"t={task}"], Calibration())["t"]
    assert whole.rows == 10 and whole.tokens == 10 * len(tokenizer()("w3 w4 w5")["input_ids"])
    assert seen.text([f"t={task}"], Calibration(max_tokens=6))["t"].tokens <= 6


COMMANDS = {
    "prune": ["--task", "TASK", "--out", "OUT"],
    "compare": ["--tasks", "TASK", "--methods", "seap,flap", "--out", "OUT"],
    "sweep": ["--task", "TASK", "--out", "OUT"],
    "pack": ["--task", "TASK", "--out", "OUT"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_plan_starts_nothing(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dense, task, out = folder(tmp_path / "dense"), texts_file(tmp_path / "t.txt"), tmp_path / "out"
    words = [{"TASK": f"t={task}", "OUT": str(out)}.get(word, word) for word in COMMANDS[command]]

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(loader, "load", refuse)
    assert main([command, str(dense), *words, "--plan", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kind"] == "plan" and found["seconds"] > 0 and found["memory_bytes"] > 0
    assert {"calibrate", "search"} <= {stage["name"] for stage in found["stages"]}
    assert main([command, str(dense), *words, "--plan"]) == 0
    assert "calibrate" in capsys.readouterr().out
    assert not out.exists()


def test_a_run_begins_with_its_estimate_and_ends_where_it_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dense, task, out = folder(tmp_path / "dense"), texts_file(tmp_path / "t.txt"), tmp_path / "out"
    words = ["prune", str(dense), "--task", f"t={task}", "--method", "flap", "--min-channels", "4", "--out", str(out)]
    monkeypatch.setattr(estimating.memory, "free", lambda _: 10.0)
    assert main(words) == 1
    assert "of memory" in capsys.readouterr().err and not out.exists()
    monkeypatch.undo()
    assert main(words) == 0
    assert f"pruning {dense} by flap: about" in " ".join(capsys.readouterr().err.splitlines()[:3])


def test_moments_on_disk_are_not_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    options, settings = Pruning(), Calibration()
    shape = shape_of(configs.on_meta(model().config), options, 4)
    before = estimating.memory.of(shape, options, TEXT, settings)
    monkeypatch.setattr(estimating.memory, "IN_MEMORY_BYTES", 0)
    after = estimating.memory.of(shape, options, TEXT, settings)
    assert before.disk == () and after.disk[0][1] > 0 and after.memory < before.memory
    more = estimating.memory.of(shape, replace(options, method="flap"), TEXT, settings)
    assert more.memory < before.memory


def test_what_a_search_looks_at_is_on_disk_where_it_is_much(monkeypatch: pytest.MonkeyPatch) -> None:
    options, settings = Pruning(), Calibration()
    shape = shape_of(configs.on_meta(model().config), options, 4)
    before = estimating.memory.of(shape, options, TEXT, settings)
    monkeypatch.setattr("seap.models.shelf.MUCH", 0)
    after = estimating.memory.of(shape, options, TEXT, settings)
    assert [what for what, *_ in after.disk] == ["factors of second moments", "hidden states and repairs"]
    assert before.disk == () and all(part > 0 for _, part, _ in after.disk) and after.memory < before.memory
    on_gpu = estimating.memory.of(replace(shape, device="cuda"), options, TEXT, settings)  # but factors stay there
    assert [what for what, *_ in on_gpu.disk] == ["factors of second moments"] and on_gpu.memory > after.memory


def test_memory_has_room_for_the_cut_model_that_is_looked_at() -> None:
    options, few = Pruning(method="flap", sparsity=0.5), Calibration(batch_tokens=1)
    shape = shape_of(configs.on_meta(model().config), options, 4)
    cut = shape.weight_bytes - 4 * shape.arch.prunable_params / 2
    of = estimating.memory.of
    taken = of(shape, options, {}, few).memory - estimating.memory.LIBRARIES
    assert taken >= cut + 1.2 * cut and taken >= shape.weight_bytes  # it is cut in place: the dense one is gone by then
    assert of(shape, replace(options, sparsity=0.9), {}, few).memory < of(shape, options, {}, few).memory


def test_tokens_alone_need_no_second_moments() -> None:
    options = Pruning(sparsity=0.0)
    shape = shape_of(configs.on_meta(shape_config("llama-3.2-1b")), options, 4)
    needs, layers = estimating.memory.of_tokens(shape), estimating.memory.of(shape, options, TEXT, Calibration())
    assert not needs.disk and layers.disk
    look = estimating.memory.ROOM * shape.weight_bytes  # of what was saved, which is the most for both
    assert needs.memory == layers.memory == estimating.memory.LIBRARIES + shape.weight_bytes + look
