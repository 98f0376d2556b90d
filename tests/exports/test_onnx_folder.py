"""ONNX: onnxruntime computes what transformers does, with a cache, and onnxruntime-genai writes the same text."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import model
from vocabularies import byte_level

import seap
from seap.cli.main import main
from seap.models.arch import describe
from seap.pruning.surgery import cut_

onnx = pytest.importorskip("onnx", reason='needs pip install "seap[onnx]"')
onnxruntime = pytest.importorskip("onnxruntime", reason='needs pip install "seap[onnx]"')

from seap.exports.onnx_folder import write_onnx  # noqa: E402

SHAPE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "num_attention_heads": 4}
SHAPE |= {"num_key_value_heads": 2, "vocab_size": 420}
IDS = torch.randint(3, 400, (2, 12), generator=torch.Generator().manual_seed(1))
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"head_dim": None},
    "qwen3": {"tie_word_embeddings": True},
    "phi3": {"head_dim": None},
    "gpt2": {"n_inner": 96, "head_dim": None, "num_key_value_heads": None},
    "mistral": {"sliding_window": 5},
    "gemma2": {"sliding_window": 5},
    "gemma3_text": {"sliding_window": 5},
}


def pruned(row: str, groups: tuple[int, ...] = (2, 1, 2)) -> Any:
    """A tiny model whose three layers keep so many KV groups, and 96, 37 and 64 channels."""
    built, draw = model(row, **(SHAPE | MODELS[row])), torch.Generator().manual_seed(0)
    kept = {"kv_groups": groups, "channels": (96, 37, 64)}
    axes = describe(built).axes
    cut_(built, {a.key: torch.randperm(a.units, generator=draw) < kept[a.name][a.layer] for a in axes})
    return built


def run(session: Any, ids: torch.Tensor, past: dict[str, np.ndarray], length: int) -> dict[str, np.ndarray]:
    rows, tokens = ids.shape
    given = {
        "input_ids": ids.numpy(),
        "attention_mask": np.ones((rows, length + tokens), dtype=np.int64),
        "position_ids": np.tile(np.arange(length, length + tokens), (rows, 1)),
    }
    names = [output.name for output in session.get_outputs()]
    needed = {one.name for one in session.get_inputs()}
    return dict(zip(names, session.run(None, {k: v for k, v in (given | past).items() if k in needed}), strict=True))


@pytest.mark.parametrize("row", MODELS)
def test_onnxruntime_computes_the_same_whole_and_with_a_cache(row: str, tmp_path: Path) -> None:
    built = pruned(row)
    expected = built(IDS).logits.detach().numpy()
    write_onnx(built, byte_level(r"\w+"), tmp_path)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    shapes = {one.name: one.shape for one in session.get_inputs() if one.name.startswith("past")}
    empty = {name: np.zeros((2, shape[1], 0, shape[3]), dtype=np.float32) for name, shape in shapes.items()}
    whole = run(session, IDS, empty, 0)
    np.testing.assert_allclose(whole["logits"], expected, atol=1e-4 * np.abs(expected).max())
    first = run(session, IDS[:, :7], empty, 0)
    past = {name: first[name.replace("past_key_values", "present")] for name in empty}
    rest = run(session, IDS[:, 7:], past, 7)
    np.testing.assert_allclose(rest["logits"], expected[:, 7:], atol=1e-4 * np.abs(expected).max())
    if row != "gpt2":
        assert [shapes[f"past_key_values.{layer}.key"][1] for layer in range(3)] == [2, 1, 2]


def test_sixteen_bits_halve_the_matrices_and_vectors_stay(tmp_path: Path) -> None:
    built = pruned("llama").bfloat16()
    with torch.no_grad():
        expected = pruned("llama").bfloat16().float()(IDS).logits.numpy()
    write_onnx(built, byte_level(r"\w+"), tmp_path)
    kinds = {held.name: held.data_type for held in onnx.load(tmp_path / "model.onnx").graph.initializer}
    halves = [name for name, kind in kinds.items() if kind == onnx.TensorProto.FLOAT16]
    assert len(halves) >= 3 * 7 + 1 and any(kind == onnx.TensorProto.FLOAT for kind in kinds.values())
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    shapes = {one.name: one.shape for one in session.get_inputs() if one.name.startswith("past")}
    empty = {name: np.zeros((2, shape[1], 0, shape[3]), dtype=np.float32) for name, shape in shapes.items()}
    found = run(session, IDS, empty, 0)["logits"]
    np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(expected).max())


@pytest.mark.parametrize("groups", [(2, 2, 2), (1, 1, 1), (2, 1, 2)])
def test_onnxruntime_genai_writes_the_same_text(groups: tuple[int, ...], tmp_path: Path) -> None:
    genai = pytest.importorskip("onnxruntime_genai", reason="needs pip install onnxruntime-genai")
    built, out = pruned("llama", groups), tmp_path / "onnx"
    built.save_pretrained(tmp_path / "small")
    byte_level(r"\w+").save_pretrained(tmp_path / "small")
    seap.export(tmp_path / "small", out, "onnx")
    parameters = genai.GeneratorParams(opened := genai.Model(str(out)))
    parameters.set_search_options(max_length=20, min_length=20)
    generator = genai.Generator(opened, parameters)
    generator.append_tokens(IDS[:1].numpy().astype(np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    built.generation_config.eos_token_id = None
    wanted = built.generate(IDS[:1], attention_mask=torch.ones(1, 12), max_new_tokens=8, do_sample=False)
    assert generator.get_sequence(0).tolist() == wanted[0].tolist()


def test_what_can_not_be_traced_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model("mixtral").save_pretrained(tmp_path / "mixtral")
    assert main(["export", str(tmp_path / "mixtral"), "--to", "onnx", "--out", str(tmp_path / "no")]) == 1
    assert "mixtures of experts" in capsys.readouterr().err and not (tmp_path / "no").exists()


def test_the_configs_say_what_the_graph_has(tmp_path: Path) -> None:
    write_onnx(pruned("llama"), byte_level(r"\w+"), tmp_path)
    decoder = json.loads((tmp_path / "genai_config.json").read_text())["model"]["decoder"]
    assert decoder["num_key_value_heads"] == 2 and decoder["head_size"] == 16
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


def test_a_graph_too_large_for_one_protobuf_goes_through_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over 2 GB torch keeps weights beside the graph, but only where it is given a place, which a Path isn't to it."""
    given, export = [], torch.onnx.export

    def seen(net: Any, example: Any, into: Any, **named: Any) -> Any:
        given.append(into)
        return export(net, example, into, **named)

    monkeypatch.setattr(torch.onnx, "export", seen)
    monkeypatch.setattr("seap.exports.onnx_folder._is_small", lambda model: False)
    built = pruned("qwen2")
    expected = built(IDS).logits.detach().numpy()
    write_onnx(built, byte_level(r"\w+"), tmp_path)
    assert [type(into) for into in given] == [str] and not (tmp_path / "traced").exists()
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    empty = {i.name: np.zeros((2, i.shape[1], 0, i.shape[3]), np.float32) for i in session.get_inputs()[3:]}
    np.testing.assert_allclose(run(session, IDS, empty, 0)["logits"], expected, atol=1e-4)
