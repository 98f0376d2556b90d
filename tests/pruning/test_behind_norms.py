"""Where a norm stands behind what a consumer writes: no bias is added, and second moments are of normed rows."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import ids, model
from toy import TEXTS, tokenizer
from transformers import AutoModelForCausalLM

import seap
from seap.activations.calibration import about_statistics, calibrate
from seap.activations.stats import Statistics, load_statistics, save_statistics
from seap.compensation.compensate import Repair, fitting, mean_bias, repair_axis, ridge
from seap.compensation.cross import CrossMoments, refit
from seap.models.arch import describe
from seap.pruning.prune import make_repairs
from seap.selection.mask import choose_units
from seap.selection.options import Pruning
from seap.selection.ranking import with_second_moments
from seap.text.corpus import build_corpus
from seap.text.options import Calibration

NORMED = ("gemma2", "gemma3_text", "olmo2", "exaone4")
READING = Calibration(num_texts=24, seq_len=10, second_moments=True)
CORPUS = build_corpus("toy", TEXTS, tokenizer(), READING, source="test")


def measured(name: str) -> tuple[Any, Statistics]:
    dense = model(name)
    return dense, calibrate(dense, CORPUS, READING, progress=False)


@pytest.mark.parametrize("name", NORMED)
@pytest.mark.parametrize("effort", ["quick", "standard"])
def test_nothing_is_added_behind_a_norm(name: str, effort: str, tmp_path: Path) -> None:
    dense = model(name)
    before = {key for key, _ in dense.named_parameters()}
    options: dict[str, Any] = {"sparsity": 0.3, "min_channels": 4, "axes": ["channels"], "effort": effort}
    seap.prune(dense, tokenizer(), task={"toy": TEXTS}, progress=False, **options)
    assert {key for key, _ in dense.named_parameters()} == before
    dense.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(again(ids()).logits, dense(ids()).logits)


def test_flap_adds_its_bias_there_all_the_same() -> None:
    dense = model("gemma3_text")
    seap.prune(dense, tokenizer(), task={"toy": TEXTS}, method="flap", sparsity=0.3, min_channels=4, progress=False)
    assert any(key.endswith("down_proj.bias") for key, _ in dense.named_parameters())


def test_a_repair_is_least_squares_on_normed_rows() -> None:
    """Against a solve over rows: of W h / rms(W h), without a bias."""
    dense, statistics = measured("gemma3_text")
    arch = describe(dense)
    axis = arch.axes[-1]
    read: list[torch.Tensor] = []
    handle = arch.consumer(axis).register_forward_pre_hook(lambda _, args: read.append(args[0].flatten(0, 1)))
    with torch.no_grad():
        for row in statistics.rows:
            dense(torch.tensor([row]))
    handle.remove()
    weight = arch.weight(axis.layer, axis.consumer).detach().double()
    rows = torch.cat(read).double()
    rows = rows / (rows @ weight.t()).square().mean(1, keepdim=True).sqrt()
    keep = torch.arange(axis.units) % 3 > 0
    found = repair_axis(axis, weight, statistics, keep, partial(ridge, damping=1e-3))
    assert found.weight is not None and not found.bias.any()
    inner = rows[:, keep].t() @ rows[:, keep]
    inner += 1e-3 * inner.diagonal().mean() * torch.eye(len(inner), dtype=torch.float64)
    gone = rows[:, ~keep] @ weight[:, ~keep].t()
    expected = weight[:, keep] + torch.linalg.solve(inner, rows[:, keep].t() @ gone).t()
    torch.testing.assert_close(found.weight, expected, atol=1e-3, rtol=1e-2)
    plain = repair_axis(axis, weight, statistics, keep, mean_bias)  # of rows as they are
    torch.testing.assert_close(plain.bias, weight[:, ~keep] @ statistics[axis.key].mean[~keep])


def test_a_refit_without_means_fits_no_bias() -> None:
    generator = torch.Generator().manual_seed(0)
    h, true = torch.randn(400, 6, generator=generator) + 2, torch.randn(4, 6, generator=generator)
    t = h @ true.t() + 1  # which a bias would carry
    sums = [CrossMoments(has_means=False), CrossMoments(has_means=False)]
    sums[0].update_(h[:300], t[:300])
    sums[1].update_(h[300:], t[300:])
    start = Repair(torch.zeros(4, dtype=torch.float64))
    found = refit(start, *sums, torch.zeros(4, 6))
    assert found is not None and found.weight is not None and not found.bias.any()
    expected = torch.linalg.lstsq(h.double(), t.double()).solution.t()
    torch.testing.assert_close(found.weight, expected, atol=0.05, rtol=0.05)


def test_statistics_of_before_are_measured_anew_and_files_keep_them(tmp_path: Path) -> None:
    dense, statistics = measured("gemma3_text")
    old = Statistics({key: value for key, value in statistics.items() if not key.endswith(".normed")}, statistics.rows)
    ready = with_second_moments(dense, {"toy": old}, Pruning(method="seap"))["toy"]
    assert ready.keys() == statistics.keys()
    save_statistics(tmp_path / "toy.stats", statistics, about_statistics(dense, CORPUS, READING))
    again, _ = load_statistics(tmp_path / "toy.stats")
    for axis in describe(dense).axes:
        torch.testing.assert_close(fitting(axis, again).co, fitting(axis, statistics).co)
    assert with_second_moments(dense, {"toy": again}, Pruning(method="seap"))["toy"] is again


def test_refitted_repairs_have_no_bias_either() -> None:
    dense, statistics = measured("olmo2")
    arch = describe(dense)
    scores = {axis.key: torch.rand(axis.num_inputs, dtype=torch.float64) for axis in arch.axes}
    masks = choose_units(arch.axes, scores, {axis.key: max(axis.units // 2, 1) for axis in arch.axes})
    repairs = make_repairs(dense, masks, {"toy": statistics}, Pruning(method="seap"))
    assert repairs and not any(repair.bias.any() for repair in repairs.values())
