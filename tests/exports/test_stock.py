"""Exports to stock classes: the same outputs from a class that knows one width, in a folder without code of its own."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import ALL, ids, model
from toy import folder, texts_file
from transformers import AutoModelForCausalLM

from seap.cli.main import main
from seap.compensation.compensate import Repair
from seap.errors import UserError
from seap.exports.export import export
from seap.exports.options import Export
from seap.exports.stock import stock_model
from seap.models.arch import describe
from seap.pruning.commands import prune_to_folder
from seap.pruning.surgery import cut_
from seap.selection.options import Pruning

HOLDS_BIASES = {"llama", "llama-mha", "llama-mqa", "llama-tied", "qwen2", "smollm3", "gpt_neox", "opt", "gpt2"}
HOLDS_BIASES |= {"arcee", "granite", "helium", "hyperclovax", "nemotron", "phi", "starcoder2"}
HOLDS_BIASES |= {"bamba", "falcon_h1", "minicpm3", "recurrent_gemma"}


def cut(name: str, *, biases: bool, **changes: Any) -> Any:
    """A tiny model whose layers differ in width."""
    built, draw = model(name, **changes), torch.Generator().manual_seed(0)
    masks, repairs = {}, {}
    for axis in describe(built).axes:
        kept = int(torch.randint(1, axis.units + 1, (1,), generator=draw))
        masks[axis.key] = torch.randperm(axis.units, generator=draw) < kept
        repairs[axis.key] = Repair(torch.randn(built.config.hidden_size, generator=draw).double())
    cut_(built, masks, repairs if biases else None)
    return built


def reloaded(built: Any, path: Path, own: tuple[str, ...] = ()) -> Any:
    """own: what the family's stock config has by the same name."""
    built.save_pretrained(path)
    config = json.loads((path / "config.json").read_text())
    ours = {"seap", "auto_map", "per_layer_config", "allow_global_per_layer_attribute_access"} - {*own}
    assert not ours & config.keys()
    return AutoModelForCausalLM.from_pretrained(path)


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_padding_changes_no_output_in_any_family(name: str, biases: bool, tmp_path: Path) -> None:
    pruned = cut(name, biases=biases)
    if biases and name not in HOLDS_BIASES:
        with pytest.raises(
            UserError, match=r"no stock class holds this model: .*no place for .*bias.*--compensate none"
        ):
            stock_model(pruned, pad=True)
        return
    stock, _ = stock_model(pruned, pad=True)
    again = reloaded(stock, tmp_path, ("per_layer_config",) if name.startswith("gemma4_text") else ())
    assert type(again).__module__.startswith("transformers.models")
    torch.testing.assert_close(again(ids()).logits, pruned(ids()).logits, atol=1e-5, rtol=0)


def test_a_config_that_lists_the_widths_needs_no_zeros_in_channels() -> None:
    pruned = cut("gemma3n_text", biases=False)
    widths = [describe(pruned).weight(layer, "mlp.down_proj").shape[1] for layer in range(4)]
    stock, _ = stock_model(pruned, pad=True)
    assert stock.config.intermediate_size == pruned.config.intermediate_size == widths and len(set(widths)) > 2
    assert stock.model.layers[0].self_attn.q_proj.weight.shape == (64, 24)  # as in the layers whose heads stay


def test_where_a_config_refuses_the_heads_more_are_padded_or_the_class_changes(tmp_path: Path) -> None:
    for biases, expected in ((False, "mistral"), (True, "llama")):
        masks = {axis.key: torch.arange(axis.units) < 3 for axis in describe(model("llama-tied", hidden_size=32)).axes}
        pruned = model("llama-tied", hidden_size=32)
        bias = {axis.key: Repair(torch.ones(32).double()) for axis in describe(pruned).axes}
        cut_(pruned, masks, bias if biases else None)
        stock, notes = stock_model(pruned, pad=True)  # 3 groups are 6 heads, and 32 is no multiple of 6
        assert stock.config.model_type == expected
        assert stock.config.num_attention_heads == (6 if expected == "mistral" else 8)
        assert bool(notes) == (expected == "mistral")
        again = reloaded(stock, tmp_path / expected)
        torch.testing.assert_close(again(ids()).logits, pruned(ids()).logits, atol=1e-5, rtol=0)


def test_a_window_that_hides_tokens_keeps_its_class() -> None:
    with pytest.raises(UserError, match="mistral has no place"):
        stock_model(cut("mistral", biases=True), pad=True)
    stock, notes = stock_model(cut("mistral", biases=True, sliding_window=None), pad=True)
    assert stock.config.model_type == "llama" and "computes the same" in notes[0]


@pytest.fixture
def dense(tmp_path: Path) -> str:
    return str(folder(tmp_path / "dense", intermediate_size=64))


@pytest.fixture
def task(tmp_path: Path) -> str:
    return f"toy={texts_file(tmp_path / 'toy.txt')}"


def pruned_to(out: Path, dense: str, task: str, allocate: str, **options: Any) -> Path:
    options = {"sparsity": 0.4, "score": "wanda", "min_channels": 4, "sequential": False} | options
    prune_to_folder(dense, out, tasks=[task], allocate=allocate, progress=False, loading={"device": "cpu"}, **options)
    return out


def test_one_width_in_stock_class_out(
    dense: str, task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = pruned_to(tmp_path / "small", dense, task, "one-width", round_to=8)
    out = tmp_path / "stock"
    assert main(["export", str(small), "--to", "uniform", "--out", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["to"] == "uniform" and told["bytes"] > 1000 and told["notes"] == []
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"] and config["head_dim"] == 8
    assert config["intermediate_size"] % 8 == 0 and 24 % config["num_attention_heads"] == 0
    before, after = (AutoModelForCausalLM.from_pretrained(path) for path in (small, out))
    torch.testing.assert_close(after(ids()).logits, before(ids()).logits, atol=1e-6, rtol=0)
    assert not (out / "modeling_seap.py").exists() and (out / "tokenizer.json").exists()
    card = (out / "README.md").read_text()
    assert "stock `LlamaForCausalLM`" in card and "import seap" not in card


def test_padded_says_that_it_is_no_faster(dense: str, task: str, tmp_path: Path) -> None:
    small = pruned_to(tmp_path / "small", dense, task, "logistic", logistic_k=4.0)
    told = export(str(small), tmp_path / "padded", "padded")
    assert "no faster" in told["notes"][0] and "more parameters" in told["notes"][0]
    export(str(small), tmp_path / "dense-widths", "padded", Export(pad_to="dense"))
    config = json.loads((tmp_path / "dense-widths" / "config.json").read_text())
    assert config["intermediate_size"] == 64 and config["num_key_value_heads"] == 4
    before, after = (AutoModelForCausalLM.from_pretrained(tmp_path / n) for n in ("small", "dense-widths"))
    torch.testing.assert_close(after(ids()).logits, before(ids()).logits, atol=1e-6, rtol=0)


def test_what_cannot_be_exported_is_refused_and_nothing_written(dense: str, task: str, tmp_path: Path) -> None:
    small = str(pruned_to(tmp_path / "small", dense, task, "logistic", logistic_k=4.0))
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"the layers keep .* channels.*--allocate one-width.*--to padded"):
        export(small, out, "uniform")
    with pytest.raises(UserError, match="isn't pruned by seap"):
        export(dense, out, "padded")
    with pytest.raises(UserError, match="--quantize is for --to gguf"):
        export(small, out, "padded", Export(quantize="f32"))
    with pytest.raises(UserError, match=r"no seap/mask\.safetensors"):
        (Path(small) / "seap" / "mask.safetensors").unlink()
        export(small, out, "padded", Export(pad_to="dense"))
    assert not out.exists()


def test_one_width_refuses_protected_layers_and_layers_that_differ(dense: str, task: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cuts every layer alike"):
        Pruning(allocate="one-width", protect_first=1)
    small = pruned_to(tmp_path / "small", dense, task, "logistic", logistic_k=4.0)
    with pytest.raises(UserError, match="layers that are alike"):
        pruned_to(tmp_path / "again", str(small), task, "one-width", sparsity=0.1)
