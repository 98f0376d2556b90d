"""Sliced equals masked, reload is bit-identical, generation works: over a tiny model of every family."""

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from generating import assert_a_cache_changes_nothing, assert_left_padding_changes_nothing
from tiny import CORRECTIONS, EVERY, INSIDE, MOE, NOT_HERE, ROW_OF, ROWS, ids, model
from transformers import AutoModelForCausalLM

from seap.compensation.compensate import Repair, Repairs, weight_of
from seap.errors import UserError
from seap.models import arch as architectures
from seap.models.families import FAMILIES
from seap.pruning.surgery import cut_


def some_masks(arch: architectures.Arch, seed: int = 0) -> dict[str, torch.Tensor]:
    """Different widths in every layer; at least one unit each. Every layer loses an expert."""
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for axis in arch.axes:
        if axis.usage_key:
            order = torch.rand(axis.experts, axis.units, generator=generator).argsort(1)
            mask = order < 3 + 2 * axis.layer
            mask[axis.layer] = False
            masks[axis.key] = mask.flatten()
            continue
        mask = torch.rand(axis.units, generator=generator) < 0.3 + 0.2 * axis.layer
        mask[int(torch.randint(axis.units, (), generator=generator))] = True
        masks[axis.key] = mask
    return masks


def some_repairs(arch: architectures.Arch, masks: dict[str, torch.Tensor]) -> Repairs:
    """A bias everywhere, new weights for the channels."""
    bias = torch.linspace(-1, 1, arch.model.config.hidden_size, dtype=torch.float64)
    repairs = {axis.key: Repair(bias) for axis in arch.axes if not masks[axis.key].all()}
    for axis in arch.axes:
        if axis.name != "kv_groups" and axis.key in repairs:
            repairs[axis.key] = Repair(bias, weight_of(arch, axis)[:, masks[axis.key]] * 1.5 - 0.01)
    return repairs


@torch.no_grad()
def zeroed(dense: Any, masks: dict[str, torch.Tensor], repairs: Repairs) -> Any:
    """The dense model with the removed units' columns of each consumer set to zero, and the repairs made."""
    masked = copy.deepcopy(dense)
    arch = architectures.describe(masked)
    for axis in arch.axes:
        if axis.usage_key:
            zero_experts(arch, axis, masks[axis.key], repairs.get(axis.key))
            continue
        gone = (~masks[axis.key]).repeat_interleave(axis.unit_inputs)
        arch.weight(axis.layer, axis.consumer)[:, gone] = 0
        if axis.key in repairs:
            repair = repairs[axis.key]
            if repair.weight is not None:
                arch.weight(axis.layer, axis.consumer)[:, ~gone] = repair.weight.float()
            consumer = arch.consumer(axis)
            old = consumer.bias if consumer.bias is not None else torch.zeros(1)
            consumer.bias = torch.nn.Parameter(old + repair.bias.float())
    return masked


def zero_experts(arch: architectures.Arch, axis: architectures.Axis, mask: torch.Tensor, repair: Repair | None) -> None:
    """Zeros in the experts' last linears, and a router that sees the dropped experts at −∞."""
    experts, chosen = arch.experts_of(axis), mask.view(axis.experts, axis.units)
    new = torch.zeros_like(experts.consumer_weight())
    new[:, mask] = experts.consumer_weight()[:, mask] if repair is None else repair.weight.float()  # type: ignore[union-attr]
    for expert, columns in enumerate(new.split(axis.units, 1)):
        experts.matrix(experts.layout.down, expert).copy_(columns)
    for path in experts.by_expert:
        if path.endswith(CORRECTIONS):
            experts[path][~chosen.any(1)] = -torch.inf
    router: Any = experts.layer.get_submodule(experts.layout.router)
    own, linear = router.forward, torch.nn.functional.linear

    def forgetful(*given: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                torch.nn.functional,
                "linear",
                lambda *args: linear(*args).masked_fill(~chosen.any(1), -torch.inf),
            )
            return own(*given)

    router.forward = forgetful


@pytest.fixture(params=sorted(EVERY))
def cut(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """(masked dense model, sliced model)"""
    dense = model(request.param)
    arch = architectures.describe(dense)
    masks = some_masks(arch)
    repairs = some_repairs(arch, masks)
    reference = zeroed(dense, masks, repairs)
    cut_(dense, masks, repairs)
    return reference, dense


def test_every_row_has_a_tiny_model() -> None:
    made = {row.model_type for name, row in ROW_OF.items() if name in ROWS or name in MOE}
    assert made | NOT_HERE | INSIDE == set(FAMILIES)


@torch.no_grad()
def test_sliced_equals_masked(cut: tuple[Any, Any]) -> None:
    reference, sliced = cut
    assert sum(p.numel() for p in sliced.parameters()) < sum(p.numel() for p in reference.parameters())
    torch.testing.assert_close(sliced(ids()).logits, reference(ids()).logits, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_save_and_load_are_bit_identical(cut: tuple[Any, Any], tmp_path: Path) -> None:
    _, sliced = cut
    sliced.save_pretrained(tmp_path / "once")
    once = AutoModelForCausalLM.from_pretrained(tmp_path / "once")
    once.save_pretrained(tmp_path / "twice")  # as push_to_hub does
    twice = AutoModelForCausalLM.from_pretrained(tmp_path / "twice")
    for loaded in (once, twice):
        assert type(loaded).__name__ == "SeapForCausalLM"
        assert loaded.config.architectures == ["SeapForCausalLM"]
        assert torch.equal(loaded(ids()).logits, sliced(ids()).logits)
        assert loaded.state_dict().keys() == sliced.state_dict().keys()
    assert (tmp_path / "twice" / "modeling_seap.py").is_file()


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generation_with_a_cache_equals_the_full_forward(cut: tuple[Any, Any], cache: str) -> None:
    assert_a_cache_changes_nothing(cut[1], cache)


def test_left_padding_changes_nothing(cut: tuple[Any, Any]) -> None:
    assert_left_padding_changes_nothing(cut[1])


@torch.no_grad()
def test_attention_implementation_can_be_changed_afterwards(cut: tuple[Any, Any]) -> None:
    _, sliced = cut
    before = sliced(ids()).logits
    sliced.set_attn_implementation("eager")
    attention = [m for m in sliced.modules() if hasattr(m, "config") and "Attention" in type(m).__name__]
    assert attention and all(m.config._attn_implementation == "eager" for m in attention)
    torch.testing.assert_close(sliced(ids()).logits, before, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", sorted(EVERY))
def test_masks_that_keep_all_change_nothing(name: str, tmp_path: Path) -> None:
    dense = model(name)
    before = {key: value.clone() for key, value in dense.state_dict().items()}
    with torch.no_grad():
        logits = dense(ids()).logits
        cut_(
            dense, {axis.key: torch.ones(axis.entries, dtype=torch.bool) for axis in architectures.describe(dense).axes}
        )
        after = dense.state_dict()
        assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
        dense.save_pretrained(tmp_path)
        assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(ids()).logits, logits)


@pytest.mark.parametrize("name", ["llama", "olmoe"])
def test_without_seap_the_checkpoint_loads_as_remote_code(name: str, tmp_path: Path) -> None:
    dense = model(name)
    arch = architectures.describe(dense)
    masks = some_masks(arch)
    cut_(dense, masks, some_repairs(arch, masks))
    dense.save_pretrained(tmp_path / "pruned")
    model(name).save_pretrained(tmp_path / "dense")
    torch.save(dense(ids()).logits, tmp_path / "logits")
    program = f"""
import sys, torch
sys.modules["seap"] = None
from transformers import AutoModel, AutoModelForCausalLM
folder = {str(tmp_path)!r}
try:
    AutoModelForCausalLM.from_pretrained(folder + "/pruned")
except ValueError as error:
    assert "import seap before loading it, or pass trust_remote_code=True" in str(error), error
else:
    raise AssertionError("a stock class took it")
model = AutoModelForCausalLM.from_pretrained(folder + "/pruned", trust_remote_code=True)
expected = torch.load(folder + "/logits", weights_only=True)
ids = torch.tensor({ids().tolist()})
assert torch.equal(model(ids).logits, expected)
model.save_pretrained(folder + "/again")
again = AutoModelForCausalLM.from_pretrained(folder + "/again", trust_remote_code=True)
assert torch.equal(again(ids).logits, expected)
assert AutoModel.from_pretrained(folder + "/pruned", trust_remote_code=True)(ids).last_hidden_state.shape[:2] == (3, 12)
dense = AutoModelForCausalLM.from_pretrained(folder + "/dense")
assert type(dense).__name__ == {type(model(name)).__name__!r}
print("equal")
"""
    environment = {
        "HF_HOME": str(tmp_path / "hf"),
        "PATH": "/usr/bin:/bin",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),  # sums of experts depend on it in their last bit
    }
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert done.stdout.strip().endswith("equal"), done.stderr
    assert "import seap" in json.loads((tmp_path / "again/config.json").read_text())["attn_implementation"]


@pytest.mark.parametrize("name", ["llama", "qwen2_moe"])
def test_a_pruned_model_can_be_copied_and_pruned_again(name: str) -> None:
    dense = model(name)
    cut_(dense, some_masks(architectures.describe(dense)))
    copied = copy.deepcopy(dense)
    arch = architectures.describe(copied)
    masks = some_masks(arch, seed=5)
    reference = zeroed(copied, masks, {})
    cut_(copied, masks)
    with torch.no_grad():
        torch.testing.assert_close(copied(ids()).logits, reference(ids()).logits, atol=2e-5, rtol=1e-4)


def test_masks_of_another_model_are_refused() -> None:
    small, large = model("llama"), model("llama", intermediate_size=48)
    masks = some_masks(architectures.describe(large))
    with pytest.raises(UserError, match=r"layers\.0\.channels has 48 units in the mask, 40 in the model"):
        cut_(small, masks)


def test_quantized_models_are_refused() -> None:
    dense = model("llama")
    dense.config.quantization_config = {"quant_method": "torchao"}
    with pytest.raises(UserError, match="quantized"):
        cut_(dense, some_masks(architectures.describe(dense)))
