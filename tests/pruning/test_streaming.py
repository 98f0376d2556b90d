"""A model pruned layer by layer from its files is the one pruned in memory, bit for bit, and in memory in parts."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tiny import MOE, ROWS, model
from toy import TEXTS, folder, texts_file, tokenizer

import seap
from seap import files
from seap.activations.stats import load_statistics
from seap.cli.main import main
from seap.models import loader, residency
from seap.models.arch import describe
from seap.models.options import Streaming
from seap.pruning import checkpoint
from seap.pruning.commands import prune_to_folder
from seap.text.corpus import Corpus
from seap.text.options import Calibration

BY_LAYER = {"score": "obs", "allocate": "logistic", "sequential": False}


def weights(path: Path) -> dict[str, torch.Tensor]:
    found = {}
    for file in sorted(path.glob("*.safetensors")):
        if file.name.startswith("model"):
            with safe_open(file, framework="pt") as opened:
                found |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return found


def pruned(dense: Path, out: Path, streaming: Streaming | None = None, **options: Any) -> Path:
    task = f"toy={texts_file(dense / 'toy.txt')}"
    prune_to_folder(
        str(dense), out, tasks=[task], streaming=streaming or Streaming(), progress=False, min_channels=4, **options
    )
    return out


@pytest.mark.parametrize("name", [*ROWS, *MOE])
def test_every_family_is_pruned_as_in_memory(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = tokenizer()
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *_, **__: words)  # not the family's own
    dense = folder(tmp_path / "dense", name)
    one = pruned(dense, tmp_path / "one", method="flap", batch_tokens=32, sparsity=0.2)
    streaming = Streaming(stream=True)
    other = pruned(dense, tmp_path / "other", streaming, method="flap", batch_tokens=32, sparsity=0.2)
    # their own outputs differ in the last bit with where their weights lie in memory, Jamba's on AMD's processors
    assert_same(one, other, exact=name not in ("recurrent_gemma", "jamba"))


@pytest.mark.parametrize(
    "options",
    [
        {"method": "seap-paper"},
        {"method": "wanda-sp", "sparsity": 0.3},
        {"method": "magnitude"},
        {"method": "seap-paper", "sparsity": 0.0},
        BY_LAYER,
        {**BY_LAYER, "moments": "block:20", "compensate": "bias"},
        {**BY_LAYER, "save_dtype": "bfloat16"},
        {"method": "flap", "loading": {"dtype": "bfloat16"}},
        {},
        {"effort": "quick", "moments": "block:20"},
        {"effort": "thorough", "sparsity": 0.3, "save_dtype": "float16"},
        {"loading": {"dtype": "bfloat16"}, "sparsity": 0.3},
        {"allocate": "damage", "protect_first": 1, "compensate": "bias"},
        {"allocate": "search", "compensate": "none", "score": "wanda-sp", "search_evaluations": 3},
    ],
)
def test_every_kind_of_method_is_as_in_memory(options: dict[str, Any], tmp_path: Path) -> None:
    dense = folder(tmp_path / "dense")
    one = pruned(dense, tmp_path / "one", **options)
    other = pruned(dense, tmp_path / "other", Streaming(stream=True, offload_dir=tmp_path / "states"), **options)
    assert_same(one, other)
    assert list((tmp_path / "states").iterdir()) == [] if (tmp_path / "states").exists() else True


def assert_same(one: Path, other: Path, *, exact: bool = True) -> None:
    expected, found = weights(one), weights(other)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        same = torch.equal(value, found[name]) if exact else torch.allclose(value, found[name], rtol=1e-5, atol=1e-6)
        assert value.dtype == found[name].dtype and same, name
    configs = [json.loads((path / "config.json").read_text()) for path in (one, other)]
    assert configs[0] == configs[1]
    masks = [checkpoint.load_masks(path / "seap" / "mask.safetensors")[0] for path in (one, other)]
    assert all(torch.equal(masks[0][key], masks[1][key]) for key in masks[0])
    logits = [seap.load(str(path))[0](torch.arange(3, 15).unsqueeze(0)).logits for path in (one, other)]
    assert torch.equal(*logits) if exact else torch.allclose(*logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "options"), [("olmoe", {}), ("mixtral", {"effort": "quick", "experts": 3})])
def test_experts_are_pruned_by_the_default_as_in_memory(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    """A layer's experts are read from its stack, written once; pruned, and streamed again."""
    dense = folder(tmp_path / "dense", name)
    one, other = pruned(dense, tmp_path / "one", **options), tmp_path / "other"
    assert_same(one, pruned(dense, other, Streaming(stream=True, offload_dir=tmp_path / "states"), **options))
    again = {"method": "magnitude", "sparsity": 0.2}
    assert_same(pruned(one, tmp_path / "a", **again), pruned(other, tmp_path / "b", Streaming(stream=True), **again))


def test_half_precision_is_computed_in_float32_layer_by_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "has_16_bit", lambda: False)
    dense = tmp_path / "dense"
    folder(dense)
    model(dtype=torch.bfloat16).save_pretrained(dense)
    one = pruned(dense, tmp_path / "one", method="flap")
    other = pruned(dense, tmp_path / "other", Streaming(stream=True), method="flap")
    assert_same(one, other)
    assert {value.dtype for value in weights(other).values()} == {torch.bfloat16}


def test_one_layer_at_a_time_is_in_memory(tmp_path: Path) -> None:
    """While a layer is measured its weights are the only copies; all others are what the file holds."""
    dense, _ = loader.load_streamed(str(folder(tmp_path / "dense")), tmp_path / "shards", dtype="bfloat16")
    arch = describe(dense)
    before = {name: value.data_ptr() for name, value in dense.named_parameters()}
    seen = []
    for layer in range(len(arch.layers)):

        def note(_: Any, __: Any, layer: int = layer) -> None:
            moved = {name for name, value in dense.named_parameters() if value.data_ptr() != before[name]}
            seen.append((layer, {".".join(name.split(".")[:3]) for name in moved}))

        arch.layers[layer].register_forward_pre_hook(note)
    corpus = Corpus("toy", ((3, 4, 5, 6), (7, 8, 9)), "test")
    seap.activations.calibration.calibrate(dense, corpus, Calibration(), progress=False)
    embedding = {"model.embed_tokens.weight", "model.norm.weight"}
    assert seen == [(i, embedding) for i in range(3)] + [(i, {f"model.layers.{i}"}) for i in range(3)]
    assert {name: value.data_ptr() for name, value in dense.named_parameters()} == before


def test_paging_out_and_reading_ahead_lose_nothing() -> None:
    tensor = torch.arange(1 << 16).float()
    expected = tensor.clone()
    residency.page_out([tensor, tensor[::2]])
    residency.read_ahead([tensor, tensor[1::2], tensor[:0]])
    assert torch.equal(tensor, expected)


@pytest.mark.parametrize("piece", [1, 3, 1 << 19])
def test_what_is_written_is_what_safetensors_reads(piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "PIECE", piece)
    drawn = torch.randn(3, 5)
    given = {
        "flags": torch.tensor([True, False, True]),
        "a": drawn.bfloat16(),
        "count": torch.tensor(7),
        "none": drawn[:0],
        "columns": drawn.t()[1:4],
    }
    files.write_safetensors(tmp_path / "a.safetensors", given, {"format": "pt"}, dtype=torch.float16)
    found = load_file(tmp_path / "a.safetensors")
    assert found.keys() == given.keys()
    for name, value in given.items():
        expected = value.half() if value.is_floating_point() else value
        assert found[name].dtype == expected.dtype and torch.equal(found[name], expected), name


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--stream --curves measured", "--curves measured needs the whole model in memory"),
        ("--stream --allocate damage --cost milliseconds", "--cost milliseconds needs the whole model in memory"),
        ("--stream --mix auto", "--mix auto needs the whole model in memory"),
        ("--stream --method gisp", "a score of gradients or of block influence needs the whole model in memory"),
        ("--stream --method wanda-sp-sequential", "--method wanda-sp-sequential needs the whole model in memory"),
        (
            "--stream --score wifv --compensate none --allocate whole-layers",
            "--allocate whole-layers needs the whole model in memory",
        ),
        ("--stream --method seap-all --worst-task", "--worst-task needs the whole model in memory"),
        ("--stream --max-loss 1%", "a promise is measured with the whole model in memory"),
        ("--offload-dir x", "--offload-dir x has no effect without --stream"),
    ],
)
def test_what_needs_the_whole_model_is_refused(
    words: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense = folder(tmp_path / "dense")
    task = texts_file(tmp_path / "toy.txt", TEXTS * 4)
    assert main(["prune", str(dense), "--task", f"toy={task}", "--out", str(tmp_path / "o"), *words.split()]) == 1
    assert said in " ".join(capsys.readouterr().err.split())
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")] and not (tmp_path / "o").exists()


def test_too_large_a_model_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "free_memory", lambda: 1000)
    dense = folder(tmp_path / "dense")
    with pytest.raises(seap.errors.UserError, match="add --stream"):
        pruned(dense, tmp_path / "out", method="flap")
    pruned(dense, tmp_path / "out", Streaming(stream=True), method="flap")


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = folder(tmp_path / "dense")

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_streamed", stop)
    with pytest.raises(KeyboardInterrupt):
        pruned(dense, tmp_path / "out", Streaming(stream=True), method="flap")
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]


def test_statistics_are_the_same_from_the_command_line(tmp_path: Path) -> None:
    dense, task = str(folder(tmp_path / "dense")), f"toy={texts_file(tmp_path / 'toy.txt')}"
    for out, more in (("one", []), ("other", ["--stream"])):
        assert main(["calibrate", dense, "--task", task, "--out", str(tmp_path / out), "--second-moments", *more]) == 0
    one, other = (load_statistics(tmp_path / out / "toy.safetensors")[0] for out in ("one", "other"))
    for key, moments in one.items():
        assert torch.equal(moments.mean, other[key].mean) and torch.equal(moments.covariance, other[key].covariance)
