"""The faster layout of a weight: measured once for a shape, dtype and number of rows, and kept for this processor."""

import copy
import json
from pathlib import Path

import pytest
import torch
from cut import logits, random_masks, random_repairs
from tiny import ids, model

import seap
from seap.environment import versions
from seap.files import write_json
from seap.models import layouts, prepack
from seap.models.layouts import Layouts, processor
from seap.models.prepack import prepack_

WEIGHT = torch.zeros(12, 8)


def measured(monkeypatch: pytest.MonkeyPatch, seconds: dict[int, tuple[float, float]]) -> list[tuple[int, int, int]]:
    asked: list[tuple[int, int, int]] = []

    def measure(weight: torch.Tensor, rows: int) -> tuple[float, float]:
        asked.append((weight.shape[0], weight.shape[1], rows))
        return seconds[rows]

    monkeypatch.setattr(layouts, "measure", measure)
    return asked


def test_it_depends_on_the_rows_and_over_several_on_their_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, {1: (1.0, 1.3), 8: (4.0, 2.0), 2: (1.0, 1.1)})
    found = Layouts()
    assert not found.pays(WEIGHT, (1,)) and found.pays(WEIGHT, (8,))
    assert found.pays(WEIGHT, (1, 8)) and not found.pays(WEIGHT, (1, 2))


def test_what_was_measured_is_kept_beside_the_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = measured(monkeypatch, {1: (1.0, 2.0), 8: (1.0, 0.6)})
    others = {"kind": "layouts", "processors": {"another": {"x": [1, 2]}}, "versions": versions()}
    write_json(tmp_path / "layouts.json", others)
    first = Layouts.beside(tmp_path).pays(WEIGHT)
    assert asked == [(12, 8, 1), (12, 8, 8)]
    assert Layouts.beside(tmp_path).pays(WEIGHT) == first and len(asked) == 2
    assert Layouts.beside(tmp_path).pays(WEIGHT.bfloat16()) == first and len(asked) == 4
    kept = json.loads((tmp_path / "layouts.json").read_text())["processors"]
    assert kept["another"] == {"x": [1, 2]} and kept[processor()]["float32 12x8 8"] == [1.0, 0.6]


@pytest.mark.parametrize("content", ["", "[]", '{"processors": 3}', '{"processors": {"%s": {"a": "b"}}}'])
def test_a_damaged_file_is_as_none(content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, {1: (1.0, 0.5), 8: (1.0, 0.5)})
    (tmp_path / "layouts.json").write_text(content.replace("%s", processor()))
    assert Layouts.beside(tmp_path).pays(WEIGHT)


def test_other_processors_and_threads_have_figures_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    here = processor()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    assert processor() != here


def test_a_small_weight_is_never_laid_out() -> None:
    assert not Layouts().pays(WEIGHT)


needs_onednn = pytest.mark.skipif(not prepack._supported(torch.float32), reason="oneDNN on x86 is needed")


@needs_onednn
def test_both_layouts_are_really_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepack, "MIN_BYTES", 0)
    monkeypatch.setattr(layouts, "BYTES", 1 << 12)
    found = layouts.measure(torch.randn(32, 16), 2)
    assert found is not None and min(found) > 0


@needs_onednn
def test_only_what_pays_is_laid_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepack, "MIN_BYTES", 0)
    dense = model("llama")
    expected = logits(dense, ids())
    prepack_(dense, pays=lambda weight: weight.shape[1] == 40)  # down_proj alone
    torch.testing.assert_close(logits(dense, ids()), expected, rtol=1e-4, atol=1e-5)
    laid_out = [name for name, module in dense.named_modules() if "forward" in vars(module)]
    assert laid_out and all(name.endswith("down_proj") for name in laid_out)


@needs_onednn
@pytest.mark.parametrize("is_faster", [True, False])
def test_the_runtime_says_the_same_in_either_layout(is_faster: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepack, "MIN_BYTES", 0)
    measured(monkeypatch, dict.fromkeys((1, 8), (1.0, 0.5 if is_faster else 2.0)))
    net = model("llama")
    masks = random_masks(net, 1)
    repairs = random_repairs(net, masks, 1)
    from cut import pruned

    expected = logits(pruned(copy.deepcopy(net), masks, repairs), ids())
    with seap.TaskRuntime(net, {"a": masks}, repairs={"a": repairs}).task("a") as current:
        torch.testing.assert_close(logits(current, ids()), expected, rtol=1e-3, atol=1e-4)
        laid_out = [module for module in current.modules() if "<lambda>" in repr(vars(module).get("forward"))]
    assert bool(laid_out) == is_faster
