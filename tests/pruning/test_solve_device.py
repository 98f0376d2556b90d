"""Systems solved on another device than the CPU: every solve of a pruning, what comes back, and what is too large.

There is no GPU here: tensors that say they are elsewhere stand in for one (`elsewhere.py`), so that an operation which
mixes devices raises as it would there.
"""

from typing import Any

import pytest
import torch
from elsewhere import ELSEWHERE, elsewhere
from tiny import model
from toy import TEXTS, tokenizer

import seap
from seap.compensation.compensate import Repair
from seap.errors import UserError
from seap.models import solving
from seap.models.arch import describe
from seap.models.solving import Solver, moved
from seap.pruning.rates import measure_rates
from seap.selection.options import Pruning

QUICK: dict[str, Any] = {"num_texts": 24, "min_channels": 4, "sparsity": 0.4, "measure_damage": False}
SHORT: dict[str, Any] = QUICK | {"search_evaluations": 3, "descents": 1, "probe_tokens": 32, "fisher_tokens": 64}


def pruned(name: str, device: str, **options: Any) -> Any:
    net = model(name)
    seap.prune(net, tokenizer(), task={"toy": TEXTS}, progress=False, solve_device=device, **options)
    return net


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the functions that solvers call."""
    found: list[str] = []
    real = Solver.__call__

    def call(self: Solver, solve: Any, *given: Any, stays: bool = False) -> Any:
        found.append(solve.__qualname__)
        return real(self, solve, *given, stays=stays)

    monkeypatch.setattr(Solver, "__call__", call)
    return found


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("llama", SHORT),
        ("llama", SHORT | {"heads": "query", "moments": "block:16"}),
        ("gemma2", SHORT | {"drop": "mlp"}),
        pytest.param("mixtral", SHORT | {"search_evaluations": 1}, marks=pytest.mark.slow),
        ("llama", QUICK | {"method": "modegpt-mlp", "sparsity": 0.3}),
        ("llama", QUICK | {"method": "obs"}),
    ],
)
def test_all_solves_of_a_pruning_find_elsewhere_what_they_find_here(name: str, options: dict[str, Any]) -> None:
    with elsewhere() as mode:  # both, since linears are taken apart in it, and round otherwise
        here = pruned(name, "cpu", **options)
        assert not any("cholesky" in ran for ran in mode.ran)
        there = pruned(name, "meta", **options)
    assert any("cholesky" in ran for ran in mode.ran)
    assert here.state_dict().keys() == there.state_dict().keys()
    for key, value in here.state_dict().items():
        torch.testing.assert_close(there.state_dict()[key], value, rtol=0, atol=0)


def test_each_kind_of_solve_goes_through_a_solver(calls: list[str]) -> None:
    pruned("llama", "auto", **SHORT)
    wanted = {"_reconstructed", "_damage_of", "_changes", "repair_axis", "Fitting.error", "Mapping.error", "_added"}
    assert wanted <= {*calls}


def test_what_mixes_devices_raises() -> None:
    with elsewhere():
        there = torch.ones(2, 2).to(ELSEWHERE)
        with pytest.raises(RuntimeError, match="and elsewhere"):
            there @ torch.ones(2, 2)


def test_a_full_device_leaves_it_to_the_cpu_and_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever call it is, the weights are those of the CPU."""
    solving._say_once.cache_clear()
    real, tried = solving.moved, []

    def full(value: Any, device: torch.device) -> Any:
        if device != ELSEWHERE:
            return real(value, device)
        tried.append(device)
        raise (
            torch.OutOfMemoryError("out of memory") if len(tried) % 2 else RuntimeError("CUSOLVER_STATUS_ALLOC_FAILED")
        )

    with elsewhere():
        expected = pruned("llama", "cpu", **SHORT)
        monkeypatch.setattr(solving, "moved", full)
        with pytest.warns(UserWarning, match="no memory left") as said:
            found = pruned("llama", "meta", **SHORT)
    assert len(said) == 1 and len(tried) > 5
    for key, value in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[key], value, rtol=0, atol=0)


def test_other_errors_of_a_device_are_not_hidden() -> None:
    def wrong(_: Any) -> None:
        raise RuntimeError("an illegal memory access")

    with elsewhere(), pytest.raises(RuntimeError, match="illegal"):
        Solver(ELSEWHERE)(wrong, torch.ones(2))


def test_results_are_on_the_cpu_unless_they_stay() -> None:
    repair = Repair(torch.ones(2), torch.ones(2, 3))
    with elsewhere():
        back = Solver(ELSEWHERE)(lambda given: given, repair)
        left = Solver(ELSEWHERE)(lambda given: given, repair, stays=True)
        assert back.bias.device.type == back.weight.device.type == "cpu"
        assert left.bias.device == left.weight.device == ELSEWHERE
        source = moved({"a": repair}, ELSEWHERE)
        assert source["a"].bias.device == ELSEWHERE and moved(source, solving.CPU)["a"].bias.device.type == "cpu"


def test_on_the_cpu_nothing_is_copied() -> None:
    repair, axis = Repair(torch.ones(2)), describe(model()).axes[0]
    source = {"a": repair}
    assert all(moved(value, solving.CPU) is value for value in (repair, axis, source, [repair], (axis, 3)))


def test_auto_takes_the_faster_device(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, seconds = torch.device("cuda"), {"cuda": 1.0, "cpu": 2.0}
    monkeypatch.setattr(solving, "seconds_of", lambda place, size: seconds[place.type])
    solving._pays.cache_clear()
    assert solving.chosen(gpu, 4096) == gpu
    seconds["cuda"] = 3.0
    assert solving.chosen(gpu, 4096) == gpu  # it was measured
    assert solving.chosen(gpu, 1000) == solving.CPU  # another size
    solving._pays.cache_clear()
    assert solving.chosen(torch.device("mps"), 4096) == solving.CPU  # no float64 there
    assert solving.seconds_of(torch.device("cuda"), 512) == 3.0


def test_a_device_that_isnt_here_is_refused() -> None:
    for device in ("cuda:99", "nowhere", "mps", "meta"):
        with pytest.raises(UserError, match="use auto, cpu, or a GPU"):
            solving.settle_(model(), device)


def test_the_device_decides_no_result_and_is_said_to_be_unused() -> None:
    assert Pruning(solve_device="cpu").deciding == Pruning().deciding
    assert "--solve-device" in Pruning(method="flap", solve_device="cpu").unused()
    assert "--solve-device" not in Pruning(solve_device="cpu").unused()


def test_a_plan_times_solves_where_they_will_be(monkeypatch: pytest.MonkeyPatch) -> None:
    from seap.pruning import rates
    from seap.pruning.cost import shape_of

    asked: list[str] = []
    monkeypatch.setattr(rates.solving, "check", lambda device: asked.append(device) or torch.device("cpu"))
    shape = shape_of(model(), Pruning(solve_device="cuda:1"), 4)
    measure_rates(shape, device="cpu", dtype=torch.float32, length=8, batch_tokens=64)
    assert asked == ["cuda:1"]
