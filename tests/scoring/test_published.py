"""FLAP's and Wanda-sp's published formulas, written out from their code, against the presets of that name.

The code is CASIA-IVA-Lab/FLAP, lib/prune.py and lib/layerwrapper.py, at AAAI 2024. It knows one head per KV group. Two
things differ and are left out of what is compared: its running variance drops the first batch, and its cost of a head,
512/3 channels, becomes 170 in an integer tensor.
"""

from typing import Any

import pytest
import torch
from tiny import model
from torch import Tensor

from seap.activations.calibration import calibrate
from seap.compensation.compensate import repair_axes
from seap.models.arch import describe
from seap.pruning.prune import make_masks
from seap.selection.options import Pruning
from seap.text.corpus import Corpus
from seap.text.options import Calibration

SIZE, LAYERS = 8, 3
ROWS = tuple(tuple(row) for row in torch.randint(3, 97, (16, 24), generator=torch.Generator().manual_seed(5)).tolist())


def read(dense: Any) -> list[dict[str, Tensor]]:
    """What o_proj and down_proj of each layer read, (N, C) float64."""
    found: list[dict[str, list[Tensor]]] = [{"kv_groups": [], "channels": []} for _ in range(LAYERS)]
    hooks = []
    for layer, into in zip(dense.model.layers, found, strict=True):
        for name, linear in (("kv_groups", layer.self_attn.o_proj), ("channels", layer.mlp.down_proj)):
            take = lambda _, args, to=into[name]: to.append(args[0][0].double())  # noqa: E731
            hooks.append(linear.register_forward_pre_hook(take))
    with torch.no_grad():
        for row in ROWS:
            dense(torch.tensor([row]), use_cache=False)
    for hook in hooks:
        hook.remove()
    return [{name: torch.cat(parts) for name, parts in into.items()} for into in found]


def weights(dense: Any, layer: int) -> dict[str, Tensor]:
    module = dense.model.layers[layer]
    return {
        "kv_groups": module.self_attn.o_proj.weight.detach().double(),
        "channels": module.mlp.down_proj.weight.detach().double(),
    }


def ours(dense: Any, method: str, sparsity: float) -> tuple[dict[str, Tensor], Any]:
    statistics = calibrate(dense, Corpus("toy", ROWS, "test"), Calibration(), progress=False)
    options = Pruning(method=method, sparsity=sparsity, min_channels=1)
    return make_masks(dense, {"toy": statistics}, options)[0], statistics


def removed(masks: dict[str, Tensor]) -> int:
    """Parameters, biases left out: 4 · SIZE · 24 for a head, 3 · 24 for a channel."""
    sizes = {"kv_groups": 4 * SIZE * 24, "channels": 3 * 24}
    return sum(int((~mask).sum()) * sizes[key.rpartition(".")[2]] for key, mask in masks.items())


def flap(dense: Any, ratio: float) -> dict[str, Tensor]:
    """prune_flap with --metrics WIFV --structure AL-AM, heads at their own cost."""
    metrics: dict[str, list[Tensor]] = {"kv_groups": [], "channels": []}
    for layer, inputs in enumerate(read(dense)):
        for name, weight in weights(dense, layer).items():
            fluc = inputs[name].var(0)
            metric = fluc * weight.pow(2).sum(0)
            metrics[name].append(metric**2 if name == "kv_groups" else metric)

    def standardise(x: Tensor) -> Tensor:
        return (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)

    heads = standardise(torch.stack(metrics["kv_groups"])).view(LAYERS, -1, SIZE).mean(2)
    channels = standardise(torch.stack(metrics["channels"]))
    flat = torch.cat([heads.flatten(), channels.flatten()])
    prune_metric, indices = flat.sort(descending=True)
    weight = torch.where(indices < heads.numel(), 4 * SIZE / 3, 1.0)
    threshold = prune_metric[(weight.cumsum(0) - weight.sum() * (1 - ratio)).abs().argmin()]
    masks = {f"layers.{i}.kv_groups": heads[i] > threshold for i in range(LAYERS)}
    return masks | {f"layers.{i}.channels": channels[i] > threshold for i in range(LAYERS)}


@pytest.fixture(scope="module")
def dense() -> Any:
    net = model("llama-mha", attention_bias=False, mlp_bias=False, intermediate_size=200)
    return net


@pytest.mark.parametrize("sparsity", [0.2, 0.3, 0.5])
def test_flap_cuts_the_units_that_its_code_cuts(dense: Any, sparsity: float) -> None:
    expected = flap(dense, sparsity)
    realised = removed(expected) / describe(dense).prunable_params  # the code's own, beside which ours is put
    assert realised == pytest.approx(sparsity, abs=0.03)
    found, _ = ours(dense, "flap", realised)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], mask) for key, mask in expected.items())


def test_flaps_bias_is_what_its_compress_adds(dense: Any) -> None:
    """compress: output_bias = (mean_inp * ~mask) @ W.T"""
    masks, statistics = ours(dense, "flap", 0.5)
    repairs = repair_axes(describe(dense), masks, statistics, "bias")
    for layer, inputs in enumerate(read(dense)):
        for name, weight in weights(dense, layer).items():
            key = f"layers.{layer}.{name}"
            gone = ~masks[key].repeat_interleave(SIZE if name == "kv_groups" else 1)
            if gone.any():
                expected = (inputs[name].mean(0) * gone) @ weight.t()
                torch.testing.assert_close(repairs[key].bias, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("sparsity", [0.25, 0.5])
def test_wanda_sp_cuts_the_units_that_its_code_cuts(dense: Any, sparsity: float) -> None:
    """prune_wanda_sp: W_metric = |W| * sqrt(scaler_row), the mean over rows, heads summed; the lowest share goes."""
    found, _ = ours(dense, "wanda-sp", sparsity)
    for layer, inputs in enumerate(read(dense)):
        for name, weight in weights(dense, layer).items():
            scaler_row = sum(inputs[name][i * 24 : (i + 1) * 24].norm(dim=0) ** 2 / len(ROWS) for i in range(len(ROWS)))
            metric = (weight.abs() * scaler_row.sqrt()).mean(0)  # type: ignore[union-attr]
            metric = metric.view(-1, SIZE).sum(1) if name == "kv_groups" else metric
            threshold = metric.sort().values[int(sparsity * metric.numel())]
            assert torch.equal(found[f"layers.{layer}.{name}"], metric >= threshold)
