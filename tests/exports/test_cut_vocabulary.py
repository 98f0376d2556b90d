"""Exports of a model whose vocabulary is cut: rows, ids and the tokenizer beside them are the smaller ones.

GGUF is held in test_gguf_file.py, by llama.cpp's own tokens and logits.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import model
from transformers import AutoTokenizer
from vocabularies import TEXTS, byte_level

import seap
from seap.exports.gguf_vocabulary import PRE_TOKENIZERS

SHAPE: dict[str, Any] = {"hidden_size": 64, "head_dim": 16, "num_attention_heads": 4, "num_key_value_heads": 2}
SHAPE |= {"intermediate_size": 96}
READ = ["The cat's 12 logs, sat.", "a  b\n\n  c = 3.14159\t(x)", "jaźń 你好 🙂 I'LL", "unseen words"]
TOKENS = 320


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """The folder of a model with fewer tokens and narrower layers, the model, and its tokenizer."""
    path, words = tmp_path_factory.mktemp("fewer") / "small", byte_level(*PRE_TOKENIZERS["gpt-2"].splits)
    built = model("llama-tied", **SHAPE, vocab_size=len(words), max_position_embeddings=256)
    how: dict[str, Any] = {"method": "flap", "sparsity": 0.3, "min_channels": 8, "progress": False}
    seap.prune(built, words, task={"toy": TEXTS}, vocabulary=TOKENS, **how)
    for part in (built, words):
        part.save_pretrained(path)
    return path, built, words


def with_tokenizer(out: Path, words: Any) -> None:
    """The folder's own tokenizer reads as the smaller one does."""
    read = AutoTokenizer.from_pretrained(out)
    assert len(read) == TOKENS and all(read(text)["input_ids"] == words(text)["input_ids"] for text in READ)


def expected(built: Any, ids: list[int]) -> Any:
    with torch.no_grad():
        return built(torch.tensor([ids])).logits[0].numpy()


@pytest.mark.filterwarnings("ignore")  # of the engine's own imports
def test_openvino_and_its_tokenizer(small: tuple[Path, Any, Any], tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino", reason='needs pip install "seap[openvino]"')
    pytest.importorskip("openvino_tokenizers")
    path, built, words = small
    seap.export(path, tmp_path / "ov", "openvino")
    with_tokenizer(tmp_path / "ov", words)
    reads = openvino.compile_model(tmp_path / "ov" / "openvino_tokenizer.xml", "CPU")
    writes = openvino.compile_model(tmp_path / "ov" / "openvino_detokenizer.xml", "CPU")
    exact = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    engine = openvino.Core().compile_model(tmp_path / "ov" / "openvino_model.xml", "CPU", exact)
    for text in READ:
        ids = words(text)["input_ids"]
        assert reads([text])["input_ids"].tolist() == [ids], text
        assert writes([np.array([ids])])[0].tolist() == [words.decode(ids, skip_special_tokens=True)], text
        request, length = engine.create_infer_request(), len(ids)
        given = {"input_ids": np.array([ids]), "attention_mask": np.ones((1, length), dtype=np.int64)}
        given |= {"position_ids": np.arange(length)[None], "beam_idx": np.zeros(1, dtype=np.int32)}
        request.infer(given)
        found = request.get_tensor("logits").data[0]
        assert found.shape == (length, TOKENS)
        np.testing.assert_allclose(found, expected(built, ids), atol=1e-4 * np.abs(found).max())


@pytest.mark.filterwarnings("ignore")
def test_onnx(small: tuple[Path, Any, Any], tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason='needs pip install "seap[onnx]"')
    pytest.importorskip("onnx")
    path, built, words = small
    seap.export(path, tmp_path / "onnx", "onnx")
    with_tokenizer(tmp_path / "onnx", words)
    told = json.loads((tmp_path / "onnx" / "genai_config.json").read_text())["model"]
    assert told["vocab_size"] == TOKENS and max(np.atleast_1d(told["eos_token_id"])) < TOKENS
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])
    for text in READ:
        ids = words(text)["input_ids"]
        given: dict[str, Any] = {
            one.name: np.zeros((1, one.shape[1], 0, one.shape[3]), dtype=np.float32)
            for one in session.get_inputs()
            if one.name.startswith("past")
        }
        given |= {"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), dtype=np.int64)}
        given |= {"position_ids": np.arange(len(ids))[None]}
        found = session.run(["logits"], {k: v for k, v in given.items() if k in {i.name for i in session.get_inputs()}})
        np.testing.assert_allclose(found[0][0], expected(built, ids), atol=1e-4 * np.abs(found[0]).max())


def test_mlx(small: tuple[Path, Any, Any], tmp_path: Path) -> None:
    path, built, words = small
    seap.export(path, tmp_path / "mlx", "mlx")
    with_tokenizer(tmp_path / "mlx", words)
    assert json.loads((tmp_path / "mlx" / "config.json").read_text())["vocab_size"] == TOKENS
    mx = pytest.importorskip("mlx.core", reason='needs pip install "mlx[cpu]" mlx-lm')
    utils = pytest.importorskip("mlx_lm.utils", reason="needs pip install mlx-lm")
    mx.set_default_device(mx.cpu)
    loaded, _ = utils.load_model(tmp_path / "mlx", trust_remote_code=True)
    for text in READ:
        ids = words(text)["input_ids"]
        found = np.array(loaded(mx.array([ids]))[0].astype(mx.float32))
        np.testing.assert_allclose(found, expected(built, ids), atol=1e-4 * np.abs(found).max())


@pytest.mark.parametrize("to", ["padded", "compressed-tensors"])
def test_folders_that_transformers_reads(to: str, small: tuple[Path, Any, Any], tmp_path: Path) -> None:
    path, built, words = small
    how: dict[str, Any] = {"weights": "int8"} if to == "compressed-tensors" else {}
    seap.export(path, tmp_path / "out", to, **how)
    with_tokenizer(tmp_path / "out", words)
    again, _ = seap.load(str(tmp_path / "out"), device="cpu", dtype="float32")
    assert again.config.vocab_size == TOKENS
    for text in READ:
        ids = words(text)["input_ids"]
        found, wanted = expected(again, ids), expected(built, ids)
        near = 1e-4 if to == "padded" else 0.05
        assert np.linalg.norm(found - wanted) <= near * np.linalg.norm(wanted)
