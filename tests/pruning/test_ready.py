"""What can't be cut is refused before anything changes, what fails says so, and what can't run is never saved."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from cut import random_masks, random_repairs
from tiny import EVERY, MOE, ROWS, SMALL, ids, model
from torch import nn
from toy import folder, texts_file
from toy import tokenizer as words

import seap
from seap.errors import UserError
from seap.models import loader
from seap.models.arch import describe
from seap.pruning import probe, surgery
from seap.pruning.commands import prune_to_folder
from seap.pruning.surgery import cut_

QUICK: dict[str, Any] = {"method": "magnitude", "min_channels": 4, "progress": False, "sparsity": 0.3}


def as_it_was(net: Any) -> tuple[dict[str, torch.Tensor], str, type]:
    """All that a cut changes."""
    inner = getattr(net, "_orig_mod", net)
    return {k: v.clone() for k, v in inner.state_dict().items()}, inner.config.to_json_string(), type(inner)


def assert_unchanged(net: Any, before: tuple[dict[str, torch.Tensor], str, type]) -> None:
    weights, config, kind = as_it_was(net)
    assert config == before[1] and kind is before[2] and weights.keys() == before[0].keys()
    assert all(torch.equal(weights[name], value) for name, value in before[0].items())


class PeftModel(nn.Module):
    """As peft's: a module that holds the model and says its config."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.base_model = inner
        self.config = inner.config


PeftModel.__module__ = "peft.peft_model"


class Lora(nn.Linear):
    """As peft puts them in place of linears."""


Lora.__module__ = "peft.tuners.lora.layer"


def compiled(net: Any) -> Any:
    return torch.compile(net)


def compiled_layers(net: Any) -> Any:
    net.model.layers[1] = torch.compile(net.model.layers[1])
    return net


def in_peft(net: Any) -> Any:
    return PeftModel(net)


def with_adapter(net: Any) -> Any:
    net.model.layers[0].mlp.up_proj = Lora(24, 40)
    return net


def parallel(net: Any) -> Any:
    return nn.DataParallel(net)


def backbone(net: Any) -> Any:
    return net.model


def no_model(net: Any) -> Any:
    return nn.Linear(2, 2)


def shared_weight(net: Any) -> Any:
    net.model.layers[0].mlp.up_proj.weight = net.model.layers[1].mlp.up_proj.weight
    return net


def parametrized(net: Any) -> Any:
    nn.utils.parametrizations.weight_norm(net.model.layers[0].mlp.up_proj)
    return net


def offloaded(net: Any) -> Any:
    net.model.layers[1].to("meta")
    return net


def quantized(net: Any) -> Any:
    net.config.quantization_config = {"quant_method": "bitsandbytes"}
    return net


def foreign_layer(net: Any) -> Any:
    class Layer(type(net.model.layers[0])):  # type: ignore[misc]
        pass

    for layer in net.model.layers:
        layer.__class__ = Layer
    return net


def needless_weight(net: Any) -> Any:
    net.model.layers[0].self_attn.extra = nn.Parameter(torch.zeros(3))
    return net


def cannot_run(net: Any) -> Any:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no kernel")

    net.model.norm.forward = broken
    return net


UNFIT = {
    compiled: "model._orig_mod",
    compiled_layers: "compiled in part",
    in_peft: "merge_and_unload",
    with_adapter: "merge_and_unload",
    parallel: "model.module",
    backbone: "no output layer|whole causal language model",
    no_model: "no causal language model",
    shared_weight: "share one weight",
    parametrized: "isn't a parameter",
    offloaded: "is offloaded",
    quantized: "is quantized",
    foreign_layer: "can't be built as cut",
    needless_weight: "self_attn.extra",
    cannot_run: "no kernel",
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's, as torch.compile is imported
@pytest.mark.parametrize("change", UNFIT, ids=lambda change: change.__name__)
def test_what_cannot_be_cut_is_refused_and_left_as_it_was(change: Any) -> None:
    net = change(model("llama"))
    before = as_it_was(net) if change not in (no_model, in_peft, parallel) else None
    with pytest.raises(UserError, match=UNFIT[change]):
        seap.prune(net, **QUICK)
    if before is not None and change is not offloaded:
        assert_unchanged(net, before)


@pytest.mark.parametrize("error", [MemoryError("no room"), RuntimeError("odd"), KeyboardInterrupt()])
def test_a_cut_that_fails_half_way_says_so(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    net, own = model("llama"), surgery.cut_layer_

    def failing(arch: Any, layer: int, *rest: Any) -> None:
        if layer == 1:
            raise error
        own(arch, layer, *rest)

    monkeypatch.setattr(surgery, "cut_layer_", failing)
    expected = UserError if isinstance(error, Exception) else KeyboardInterrupt
    with pytest.raises(expected) as told:
        seap.prune(net, **QUICK)
    said = str(told.value) + " ".join(getattr(told.value, "__notes__", []))
    assert "cut in part; load it again" in said


def switches(name: str) -> list[str]:
    """The on/off entries of a family's config that change which weights a layer has, and aren't refused altogether."""
    class_name, own = EVERY[name]
    model_class = getattr(transformers, class_name)
    options = {k: v for k, v in (SMALL | own).items() if v is not None}

    def weights(**changed: Any) -> set[str]:
        with torch.device("meta"):
            built = model_class(model_class.config_class(**(options | changed)))
        return {name for name, _ in describe(built).layers[0].named_parameters()}

    plain, found = weights(), []
    for key, value in model_class.config_class(**options).to_dict().items():
        if type(value) is bool and weights(**{key: not value}) != plain:
            found.append(key)
    return found


@pytest.mark.parametrize("name", sorted(ROWS | MOE))
def test_every_option_that_gives_layers_other_weights_is_cut_or_refused(name: str, tmp_path: Path) -> None:
    for key in switches(name):
        default = getattr(model(name).config, key)
        more = {"head_dim": 4} if (name, key) == ("phi", "qk_layernorm") else {}
        net = model(name, **{key: not default}, **more)
        try:
            seap.prune(net, **QUICK)
        except UserError as refused:
            assert "can't be met" not in str(refused)
            net = model(name, **{key: not default}, **more)
            seap.prune(net, axes=("channels",), **QUICK)
        net.save_pretrained(tmp_path / key)
        again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / key)
        with torch.no_grad():
            assert torch.equal(again(ids()).logits, net(ids()).logits)


@pytest.mark.parametrize(("name", "option"), [("cohere", "use_qk_norm"), ("phi", "qk_layernorm")])
def test_heads_stay_whole_where_an_option_normalises_each(name: str, option: str) -> None:
    net = model(name, **{option: True}, **({"head_dim": 4} if name == "phi" else {}))
    arch = describe(net)
    assert not arch.can_cut_heads and {axis.name for axis in arch.axes} == {"channels"}
    report = seap.prune(net, **QUICK)
    assert any("heads" in note and option in note for note in report.notes)
    with pytest.raises(UserError, match=option):
        seap.prune(model(name, **{option: True}), axes=("kv_groups",), **QUICK)
    assert describe(model(name)).can_cut_heads


def test_a_weight_that_the_row_does_not_know_is_seen_before_the_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """As cohere's norms, were its row silent about them."""
    net = model("cohere", use_qk_norm=True)
    monkeypatch.setattr("seap.models.arch.Arch.heads_refused", "")
    before = as_it_was(net)
    with pytest.raises(UserError, match=r"layer \d can't be cut as asked: its self_attn.[qk]_norm.weight"):
        cut_(net, random_masks(net, 0))
    assert_unchanged(net, before)


@pytest.mark.parametrize("name", sorted(EVERY))
def test_the_masked_model_says_what_the_cut_one_says(name: str) -> None:
    net = model(name)
    masks = random_masks(net, 3) if name not in MOE else None
    if masks is None:
        assert probe.before_cut(describe(net), {}, {}) is None
        return
    repairs = random_repairs(net, masks, 3)
    expected = probe.before_cut(describe(net), masks, repairs)
    assert expected is not None
    cut_(net, masks, repairs)
    found = probe.logits(net)
    assert float((found - expected.logits).norm() / expected.logits.norm()) < 1e-4
    probe.check_cut(net, expected)
    with pytest.raises(UserError, match="says something else than the masked one: "):
        probe.check_cut(net, replace(expected, logits=-expected.logits))
    axis = describe(net).axes[-1]
    describe(net).weight(axis.layer, axis.consumer).data.mul_(-1)
    with pytest.raises(UserError, match=f"says something else than the masked one in layer {axis.layer}: "):
        probe.check_cut(net, expected)


def rounding() -> Any:
    """Forty layers in bfloat16, through which rounding grows."""
    net = model("llama", num_hidden_layers=40, dtype=torch.bfloat16)
    with torch.no_grad():
        for name, parameter in net.model.layers.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(60 if "q_proj" in name or "k_proj" in name else 6)
    return net


@pytest.mark.parametrize("fault", [False, True])
def test_rounding_that_grows_from_layer_to_layer_is_no_fault(fault: bool) -> None:
    """What the sound cut model says is far from the masked one, and no layer of it is."""
    net = rounding()
    masks = random_masks(net, 3)
    repairs = random_repairs(net, masks, 3)
    expected = probe.before_cut(describe(net), masks, repairs)
    assert expected is not None
    cut_(net, masks, repairs)
    apart = (probe.logits(net) - expected.logits).norm() / expected.logits.norm()
    assert apart > probe.HALF
    if fault:
        net.model.layers[20].mlp.down_proj.weight.data.mul_(-1)
        with pytest.raises(UserError, match="in layer 20"):
            probe.check_cut(net, expected)
    else:
        probe.check_cut(net, expected)


@pytest.mark.parametrize("fault", [False, True])
def test_rounding_is_no_fault_of_what_was_saved(fault: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same weights, rounded otherwise, say something far off in bfloat16, and not in float32."""
    net = rounding()
    saved = copy.deepcopy(net)
    saved.set_attn_implementation("sdpa" if net.config._attn_implementation == "eager" else "eager")
    apart = (probe.logits(saved) - probe.logits(net)).norm() / probe.logits(net).norm()
    assert apart > probe.HALF
    if fault:
        saved.model.layers[20].mlp.down_proj.weight.data.mul_(-1)
    monkeypatch.setattr(loader, "load", lambda *_, **__: (saved, None))
    if fault:
        with pytest.raises(UserError, match="says something else than the model in memory"):
            probe.check_saved(tmp_path, net)
    else:
        assert probe.check_saved(tmp_path, net) == ""
    assert net.dtype == torch.bfloat16


def test_what_is_saved_but_cannot_run_is_never_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense, task = str(folder(tmp_path / "dense")), f"toy={texts_file(tmp_path / 'toy.txt')}"
    own = loader.load
    options: dict[str, Any] = QUICK | {"tasks": [task], "loading": {"device": "cpu"}}

    def damaged(name: str, **given: Any) -> Any:
        net, tokens = own(name, **given)
        if "dense" not in Path(name).name:
            net.model.layers[0].mlp.down_proj.weight.data.mul_(-3)
        return net, tokens

    monkeypatch.setattr(loader, "load", damaged)
    with pytest.raises(UserError, match="says something else than the model in memory"):
        prune_to_folder(dense, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    prune_to_folder(dense, tmp_path / "kept", verify=False, **options)
    monkeypatch.setattr(loader, "load", own)
    monkeypatch.setattr(loader, "free_memory", lambda: 10)
    monkeypatch.setattr(loader, "check_memory", lambda name: None)
    report = prune_to_folder(dense, tmp_path / "unseen", **options)
    assert any("wasn't loaded again" in note for note in report.notes) and (tmp_path / "unseen").is_dir()
    assert json.loads((tmp_path / "kept" / "seap.json").read_text())["method"] == "magnitude"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_refused_pruning_with_text_leaves_the_model_as_it_was() -> None:
    net = model("llama")
    before = as_it_was(copy.deepcopy(net))
    with pytest.raises(UserError):
        seap.prune(torch.compile(net), words(), task={"t": ["w3 w4 w5 w6"] * 4}, min_channels=4, progress=False)
    assert_unchanged(net, before)
