"""What the documentation says of each family is what its row says, and layers of several kinds are seen as such."""

import re

import pytest
import torch
from paths import ROOT
from tiny import EVERY, KEEP_STATES, model

import seap
from seap.errors import UserError
from seap.exports import gguf_file, onnx_folder, openvino_folder
from seap.models.arch import describe
from seap.models.axes import ATTENTION, MLP
from seap.models.families import FAMILIES

TABLE = re.compile(r"^\| (`\w+`(?:, `\w+`)*) \| *(✓?) *\| *(✓?) *\| *([\w, ]*?) *\|$", flags=re.MULTILINE)


def test_the_table_of_families_is_true() -> None:
    told = {}
    for names, heads, experts, stays in TABLE.findall((ROOT / "docs" / "usage.md").read_text()):
        for name in re.findall(r"\w+", names):
            told[name] = (bool(heads), bool(experts), {part for part in stays.split(", ") if part})
    assert told == {
        name: (
            not row.heads_refused,
            row.experts is not None,
            {mixer.name for mixer in row.mixers} | ({"heads"} if row.heads_refused else set()),
        )
        for name, row in FAMILIES.items()
    }


@pytest.mark.parametrize("name", sorted(KEEP_STATES))
def test_layers_are_seen_by_what_they_have(name: str) -> None:
    net = model(name)
    arch = describe(net)
    inside = sum(p.numel() for layer in arch.layers for p in layer.parameters())
    assert 0 < arch.prunable_params < inside
    for layer in range(len(arch.layers)):
        names = {axis.name for axis in arch.layer_axes(layer)}
        assert ("kv_groups" in names) == arch.has(layer, ATTENTION)
        assert bool(names & {"channels", "expert_channels"}) == arch.has(layer, MLP)
        stays = sum(
            linear.weight.numel() + (0 if linear.bias is None else linear.bias.numel())
            for mixer in arch.mixers(layer)
            for linear in arch.layers[layer].get_submodule(mixer.path).modules()
            if isinstance(linear, torch.nn.Linear)
        )
        assert arch.uncut_params(layer) == stays and (stays > 0) == bool(arch.mixers(layer))
    assert any(arch.mixers(layer) for layer in range(len(arch.layers)))


@pytest.mark.parametrize("name", ["qwen3_5_text", "nemotron_h-dense"])
def test_what_stays_is_said_and_what_does_not_know_states_refuses_them(name: str) -> None:
    net = model(name)
    report = seap.prune(net, method="magnitude", sparsity=0.2, min_channels=4, progress=False)
    mixer = FAMILIES[name.partition("-")[0]].mixers[0]
    assert any(f"its {mixer.name} stays as it is: {mixer.why}" == note for note in report.notes)
    others = (
        [gguf_file.check_config] if name != "nemotron_h-dense" else []
    )  # which has an architecture of its own there
    for check in (*others, openvino_folder.check_config, onnx_folder.check_config):
        with pytest.raises(UserError, match=f"doesn't know layers of {mixer.name}"):
            check(net.config)


def test_a_group_of_experts_stays_as_large_as_the_others() -> None:
    """A router that chooses two of three groups first: its experts lose channels, and none of them goes."""
    if "nemotron_h" not in EVERY:
        pytest.skip("needs a newer transformers")
    net = model("nemotron_h", n_group=3, topk_group=2)
    arch = describe(net)
    [axis] = [axis for axis in arch.axes if axis.usage_key]
    assert arch.experts_of(axis).least == axis.experts == 6
    assert describe(model("nemotron_h")).experts_of(axis).least == 2
    with pytest.raises(UserError, match="chooses among 3 groups of equally many, so all stay"):
        seap.prune(net, method="magnitude", sparsity=0.3, experts=4, min_channels=4, progress=False)
