"""Wanda-sp as it is published: every layer measured behind those that are pruned, against a loop written out here."""

from typing import Any

import pytest
import torch
from tiny import ALL, MOE, model
from toy import TEXTS, tokenizer

import seap
from seap.errors import UserError
from seap.models.arch import describe
from seap.selection.options import Pruning
from seap.text.corpus import build_corpus
from seap.text.options import Calibration


def masks(dense: Any, method: str, **options: Any) -> dict[str, torch.Tensor]:
    given = {"method": method, "min_channels": 4, "progress": False} | options
    found: dict[str, torch.Tensor] = seap.prune(dense, tokenizer(), task={"toy": TEXTS}, **given).masks
    return found


def test_by_hand() -> None:
    """Norms of what o_proj and down_proj read, in a model whose earlier layers have zeros where they are pruned."""
    dense: Any = model("llama-mha")
    found = masks(model("llama-mha"), "wanda-sp-sequential", sparsity=0.5)
    rows = build_corpus("toy", TEXTS, tokenizer(), Calibration(), source="", seq_len=64).rows
    for index, layer in enumerate(dense.model.layers):
        for module, key, size in (
            (layer.self_attn.o_proj, f"layers.{index}.kv_groups", 8),
            (layer.mlp.down_proj, f"layers.{index}.channels", 1),
        ):
            read: list[torch.Tensor] = []
            hook = module.register_forward_pre_hook(lambda _, args, read=read: read.append(args[0][0].double()))
            with torch.no_grad():
                for row in rows:
                    dense(torch.tensor([row]), use_cache=False)
            hook.remove()
            metric = module.weight.double().abs() * torch.cat(read).norm(dim=0)
            units = metric.mean(0).view(-1, size).sum(1)
            order = torch.argsort(units, descending=True, stable=True)
            expected = torch.zeros(len(units), dtype=torch.bool)
            expected[order[: int(found[key].sum())]] = True
            assert torch.equal(found[key], expected)
        with torch.no_grad():  # both at once, as the published code does
            for module, key, size in (
                (layer.self_attn.o_proj, f"layers.{index}.kv_groups", 8),
                (layer.mlp.down_proj, f"layers.{index}.channels", 1),
            ):
                module.weight[:, ~found[key].repeat_interleave(size)] = 0


def test_the_first_layer_is_as_on_dense_activations_and_later_ones_are_not() -> None:
    dense, behind = (masks(model("llama"), name, sparsity=0.5) for name in ("wanda-sp", "wanda-sp-sequential"))
    assert all(torch.equal(dense[key], behind[key]) for key in dense if key.startswith("layers.0."))
    assert any(not torch.equal(dense[key], behind[key]) for key in dense)
    assert all(int(dense[key].sum()) == int(behind[key].sum()) for key in dense)


@pytest.mark.parametrize("name", sorted({*ALL, *MOE}))
def test_every_family(name: str) -> None:
    dense = model(name)
    unit = max(axis.unit_params for axis in describe(dense).axes if axis.name != "kv_groups")
    prunable = describe(dense).prunable_params
    given: Any = {"method": "wanda-sp-sequential", "sparsity": 0.2, "min_channels": 4, "progress": False}
    report = seap.prune(dense, tokenizer(), task={"toy": TEXTS[:8]}, **given)
    assert abs(report.realised_sparsity - 0.2) * prunable <= unit
    assert torch.isfinite(dense(torch.tensor([[5, 6, 7]])).logits).all()


def test_it_goes_with_scores_and_allocations_that_one_layer_tells() -> None:
    assert Pruning(method="wanda-sp-sequential", score="wifv", allocate="logistic").resolved().behind
    for changes in ({"score": "obs"}, {"allocate": "adaptive"}):
        with pytest.raises(UserError, match="chooses layer after layer"):
            Pruning(method="wanda-sp-sequential", **changes)  # type: ignore[arg-type]
