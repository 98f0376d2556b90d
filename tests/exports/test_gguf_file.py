"""GGUF files: what is written reads back equal, what llama.cpp can't hold is refused, and llama.cpp computes the same.

The last needs `pip install llama-cpp-python`, which builds for minutes; without it those tests are skipped.
"""

import ctypes
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from llama import check_same, library, opened
from tiny import model
from vocabularies import TEXTS as VOCABULARY_TEXTS
from vocabularies import byte_level, sentencepiece, whole_words

import seap
from seap.cli.main import main
from seap.compensation.compensate import Repair
from seap.errors import UserError
from seap.exports.options import Export
from seap.models.arch import describe
from seap.models.loader import model_path
from seap.pruning.surgery import cut_

gguf = pytest.importorskip("gguf", reason='needs pip install "seap[gguf]"')

from seap.exports.gguf_file import NAMES, check_config, write_gguf  # noqa: E402
from seap.exports.gguf_vocabulary import PRE_TOKENIZERS, Vocabulary, find_pre_tokenizer, vocabulary_of  # noqa: E402

SHAPE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "num_attention_heads": 4}
SHAPE |= {"num_key_value_heads": 2, "vocab_size": 420}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 32}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
YARNS = {
    "plain": YARN,
    "other ramp": YARN | {"beta_fast": 16.0, "beta_slow": 2.0, "truncate": False},
    "own attention factor": YARN | {"attention_factor": 0.7},
    "mscale": YARN | {"mscale": 0.707, "mscale_all_dim": 0.4},
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
MODELS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "llama with biases everywhere": ("llama", {}, True),
    "tied llama": ("llama-tied", {}, True),
    "llama with llama 3's rope": ("llama", {"rope_parameters": LLAMA3}, False),
    "llama with yarn's rope": ("llama", {"rope_parameters": YARN}, False),
    "llama, dynamic": ("llama", {"rope_parameters": DYNAMIC}, False),
    "mistral": ("mistral", {"sliding_window": None}, True),
    "qwen2": ("qwen2", {"head_dim": None}, True),
    "qwen3": ("qwen3", {"tie_word_embeddings": True}, False),
}


def pruned(name: str) -> Any:
    """A tiny model whose three layers keep 2, 1 and 2 KV groups and 96, 40 and 64 channels."""
    row, changes, biases = MODELS[name]
    built, draw = model(row, **(SHAPE | changes)), torch.Generator().manual_seed(0)
    kept = {"kv_groups": (2, 1, 2), "channels": (96, 40, 64)}
    masks, repairs = {}, {}
    for axis in describe(built).axes:
        masks[axis.key] = torch.randperm(axis.units, generator=draw) < kept[axis.name][axis.layer]
        repairs[axis.key] = Repair(torch.randn(64, generator=draw).double())
    cut_(built, masks, repairs if biases else None)
    return built


def fields(path: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def halves(rows: np.ndarray, head_size: int = 16) -> np.ndarray:
    """llama.cpp's rotary order back to transformers'."""
    return rows.reshape(-1, head_size // 2, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


@pytest.mark.parametrize("name", MODELS)
def test_a_file_reads_back_equal(name: str, tmp_path: Path) -> None:
    built, path = pruned(name), tmp_path / "model.gguf"
    write_gguf(built, Vocabulary("none"), path, Export(quantize="f32"))
    said, kind = fields(path), "openelm" if name == "qwen3" else "deci"
    assert said["general.architecture"] == kind
    assert said[f"{kind}.attention.head_count"] == [4, 2, 4] and said[f"{kind}.attention.head_count_kv"] == [2, 1, 2]
    assert said[f"{kind}.feed_forward_length"] == [96, 40, 64] and said[f"{kind}.attention.key_length"] == 16
    stored = {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}
    found = 0
    for layer, block in enumerate(describe(built).layers):
        for parameter, value in block.named_parameters():
            module, _, part = parameter.rpartition(".")
            short = NAMES[module]
            if short in ("attn_q", "attn_k", "attn_v") and kind == "openelm":
                rows = stored[f"blk.{layer}.attn_qkv.weight"]
                q, k = (block.get_submodule(f"self_attn.{p}_proj").weight.shape[0] for p in "qk")
                got = {"attn_q": rows[:q], "attn_k": rows[q : q + k], "attn_v": rows[q + k :]}[short]
            else:
                got = stored[f"blk.{layer}.{short}.{part}"]
                got = halves(got) if short in ("attn_q", "attn_k") else got
            np.testing.assert_array_equal(got, value.detach().numpy())
            found += 1
    assert found == len(list(describe(built).layers.parameters()))
    np.testing.assert_array_equal(stored["token_embd.weight"], built.get_input_embeddings().weight.detach().numpy())
    assert ("output.weight" in stored) != built.config.tie_word_embeddings
    assert ("rope_freqs.weight" in stored) == ("rope" in name)


@pytest.mark.parametrize("name", YARNS)
def test_yarn_turns_as_transformers_does(name: str, tmp_path: Path) -> None:
    """ggml: angle = position · base^(-2i / K) / factor_i, cosine and sine times attn_factor; no ramp of its own."""
    built, path = model("llama", **(SHAPE | {"rope_parameters": YARNS[name]})), tmp_path / "m.gguf"
    write_gguf(built, Vocabulary("none"), path, Export(quantize="f32"))
    said, stored = fields(path), {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}
    assert said["deci.rope.scaling.type"] == "none" and "deci.rope.scaling.factor" not in said
    plain = said["deci.rope.freq_base"] ** (-np.arange(0, 16, 2) / 16)
    angles = np.arange(64)[:, None] * plain / stored["rope_freqs.weight"]
    cos, sin = (part(angles) * said["deci.rope.scaling.attn_factor"] for part in (np.cos, np.sin))
    found = built.model.rotary_emb(torch.zeros(1, 64, 64), torch.arange(64)[None])
    for ours, theirs in zip((cos, sin), found, strict=True):
        np.testing.assert_allclose(ours, theirs[0, :, :8].numpy(), atol=1e-4)


def test_dynamic_rope_is_written_plain_and_that_is_said(tmp_path: Path) -> None:
    built, path = pruned("llama, dynamic"), tmp_path / "m.gguf"
    notes = write_gguf(built, Vocabulary("none"), path, Export(quantize="f32"))
    assert any("up to 64 tokens it is the same" in note for note in notes)
    assert not any("scaling" in key for key in fields(path))


def test_eight_bits_where_a_row_fits_and_sixteen_elsewhere(tmp_path: Path) -> None:
    built, path = pruned("tied llama"), tmp_path / "model.gguf"
    about = {"tasks": ["toy"], "realised_sparsity": 0.5, "model": "a/b", "method": "flap", "versions": {"seap": "0.1"}}
    notes = write_gguf(built, Vocabulary("none"), path, Export(quantize="q8_0"), about)
    assert fields(path)["general.description"].startswith("50.0% of the attention and MLP parameters of b removed")
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    kinds = {name: tensor.tensor_type.name for name, tensor in stored.items()}
    assert kinds["blk.0.ffn_down.weight"] == "Q8_0" and kinds["blk.1.ffn_down.weight"] == "F16"  # 96 and 40 channels
    assert kinds["blk.0.attn_norm.weight"] == "F32" and kinds["blk.1.ffn_down.bias"] == "F32"
    assert any("1 matrices stay f16" in note and "--round-to 32" in note for note in notes)
    [note] = write_gguf(built, Vocabulary("none"), tmp_path / "f16.gguf", Export())
    assert note.startswith("1 layers") and "llama-quantize leaves" in note and "--round-to 32" in note
    tensor = stored["blk.0.ffn_up.weight"]
    expected = describe(built).weight(0, "mlp.up_proj").detach().numpy()
    np.testing.assert_allclose(gguf.quants.dequantize(tensor.data, tensor.tensor_type), expected, atol=0.01)


@pytest.mark.parametrize(
    ("row", "changes", "message"),
    [
        ("gemma2", {}, "no architecture with a width per layer for gemma2"),
        ("mistral", {}, "sliding window"),
        ("llama", {"hidden_act": "gelu"}, "not silu"),
        ("qwen3", {}, "tied embeddings"),
    ],
)
def test_what_has_no_place_is_refused_before_the_weights_are_read(
    row: str, changes: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model(row, **changes).save_pretrained(tmp_path / "dense")
    (tmp_path / "dense" / "model.safetensors").unlink()
    assert main(["export", str(tmp_path / "dense"), "--to", "gguf", "--out", str(tmp_path / "m.gguf")]) == 1
    told = capsys.readouterr().err
    assert message in told and not (tmp_path / "m.gguf").exists()
    assert "reads this checkpoint as it is" in told and "--to padded" not in told  # nothing was cut


def test_a_pruned_model_that_has_no_place_is_sent_to_padded() -> None:
    built = model("gemma2")
    axes = describe(built).axes
    cut_(built, {a.key: torch.arange(a.units) < max(a.units - 8, 1) for a in axes})
    with pytest.raises(UserError, match=r"width per layer for gemma2; use --to padded and llama.cpp's convert_hf"):
        check_config(built.config)


def test_biases_of_qwen3_and_numbers_beyond_float16_are_refused(tmp_path: Path) -> None:
    built = model("qwen3", **SHAPE, tie_word_embeddings=True)
    axes = describe(built).axes
    cut_(built, {a.key: torch.ones(a.units, dtype=torch.bool) for a in axes}, {axes[1].key: Repair(torch.ones(64))})
    with pytest.raises(UserError, match=r"openelm.*has no biases.*--compensate none"):
        write_gguf(built, Vocabulary("none"), tmp_path / "m.gguf", Export())
    built = pruned("tied llama")
    with torch.no_grad():
        built.get_input_embeddings().weight[3, 3] = 1e5
    with pytest.raises(UserError, match=r"token_embd.weight holds 1e\+05.*--quantize bf16"):
        write_gguf(built, Vocabulary("none"), tmp_path / "m.gguf", Export())


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_the_pre_tokenizer_is_found_by_what_it_does(name: str) -> None:
    described = json.loads(byte_level(*PRE_TOKENIZERS[name].splits, size=600).backend_tokenizer.to_str())
    described["model"]["ignore_merges"] = PRE_TOKENIZERS[name].ignore_merges
    found = PRE_TOKENIZERS[find_pre_tokenizer(described)]
    assert len(found.splits) == len(PRE_TOKENIZERS[name].splits) or name == "gpt-2"  # few texts tell all of them apart


def test_a_split_that_llama_cpp_lacks_is_refused() -> None:
    described = json.loads(byte_level(r"[aeiou]").backend_tokenizer.to_str())
    with pytest.raises(UserError, match="--tokenizer none"):
        find_pre_tokenizer(described)


def test_pieces_have_the_ranks_of_their_merges_as_scores() -> None:
    tokenizer = sentencepiece()
    found = vocabulary_of(tokenizer, model("llama", **SHAPE).config)
    assert found.model == "llama" and found.space_first is True and len(found.tokens) == 420
    kinds = {text: gguf.TokenType(kind).name for text, kind in zip(found.tokens, found.types, strict=True)}
    assert (kinds["<unk>"], kinds["<s>"], kinds["<0x0A>"], kinds["▁"]) == ("UNKNOWN", "CONTROL", "BYTE", "NORMAL")
    first, second = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"][:2]
    scores = dict(zip(found.tokens, found.scores or (), strict=True))
    assert scores["".join(first)] == 0 and scores["".join(second)] == -1 > scores["<0x0A>"]
    assert found.special.add_special_token["bos"] and not found.special.add_special_token["eos"]


def test_a_named_pre_tokenizer_is_taken_as_it_is_and_that_is_said() -> None:
    config = model("llama", **SHAPE).config
    found = vocabulary_of(byte_level(r"[aeiou]"), config, "deepseek-coder")
    assert found.pre == "deepseek-coder" and "was not looked at" in found.notes[0]
    with pytest.raises(UserError, match="SentencePiece"):
        vocabulary_of(sentencepiece(), config, "gpt-2")


def test_the_command_on_the_builtin_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "m.gguf"
    assert main(["export", str(model_path()), "--to", "gguf", "--quantize", "q8_0", "--out", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["bytes"] == out.stat().st_size and "same tokens on every sample" in told["notes"][0]
    said = fields(out)
    assert said["tokenizer.ggml.model"] == "gpt2" and len(said["tokenizer.ggml.tokens"]) == 1024
    assert said["tokenizer.ggml.add_bos_token"] is True and len(said["tokenizer.ggml.merges"]) > 100
    assert main(["export", str(model_path()), "--to", "gguf", "--out", str(out)]) == 1
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_gives_the_same_logits_and_greedy_text(name: str, tmp_path: Path) -> None:
    built, path = pruned(name), tmp_path / "m.gguf"
    words = byte_level(*PRE_TOKENIZERS["gpt-2"].splits)
    write_gguf(built, vocabulary_of(words, built.config), path, Export(quantize="f32"))
    check_same(built, path)


@pytest.mark.parametrize("kind", ["gpt-2", "qwen2", "smollm", "llama-bpe", "tekken", "pieces", "pieces, metaspace"])
def test_llama_cpp_gives_the_same_tokens(kind: str, tmp_path: Path) -> None:
    pre = PRE_TOKENIZERS.get(kind)
    tokenizer = byte_level(*pre.splits) if pre else sentencepiece(metaspace="metaspace" in kind)
    built, path = pruned("tied llama"), tmp_path / "m.gguf"
    write_gguf(built, vocabulary_of(tokenizer, built.config), path, Export(quantize="f32"))
    engine = opened(path)
    texts = ["The cat's 12 logs, sat.", "a  b\n\n  c = 3.14159\t(x)", "jaźń 你好 🙂 I'LL", "THE END", " lead"]
    for text in texts[: 4 if "metaspace" in kind else 5]:  # Metaspace puts no space before one; SentencePiece does
        assert engine.tokenize(text.encode(), special=True) == tokenizer(text)["input_ids"], text
    engine.close()


@pytest.mark.parametrize("kind", ["gpt-2", "llama-bpe", "pieces"])
def test_llama_cpp_gives_the_same_tokens_with_fewer_of_them(kind: str, tmp_path: Path) -> None:
    """And the same logits: a vocabulary that is cut, its tokenizer with it."""
    pre = PRE_TOKENIZERS.get(kind)
    whole = whole_words(byte_level(*pre.splits)) if pre and pre.ignore_merges else None
    whole = whole or (byte_level(*pre.splits) if pre else sentencepiece())
    built, path = model("llama-tied", **(SHAPE | {"vocab_size": len(whole)})), tmp_path / "m.gguf"
    options: dict[str, Any] = {"sparsity": 0, "vocabulary": len(whole) - 40, "progress": False}
    seap.prune(built, whole, task={"toy": VOCABULARY_TEXTS}, **options)
    write_gguf(built, vocabulary_of(whole, built.config), path, Export(quantize="f32"))
    engine = opened(path)
    for text in [
        "The cat's 12 logs, sat.",
        "a  b\n\n  c = 3.14159\t(x)",
        "jaźń 你好 🙂 I'LL",
        "THE END",
        "unseen words",
    ]:
        ids = whole(text)["input_ids"]
        assert engine.tokenize(text.encode(), special=True) == ids, text
        engine.reset()
        engine.eval(ids)
        expected = built(torch.tensor([ids])).logits[0].detach().numpy()
        np.testing.assert_allclose(engine.scores[: len(ids)], expected, atol=1e-4 * np.abs(expected).max())
    engine.close()


def test_llama_cpp_runs_the_builtin_model_without_a_tokenizer(tmp_path: Path) -> None:
    built, _ = seap.load(str(model_path()), dtype="float32", device="cpu")
    out = tmp_path / "m.gguf"
    assert (
        main(["export", "builtin", "--to", "gguf", "--quantize", "f32", "--tokenizer", "none", "--out", str(out)]) == 0
    )
    engine = opened(out)
    engine.eval([5, 17, 230])
    expected = built(torch.tensor([[5, 17, 230]])).logits[0].detach().numpy()
    np.testing.assert_allclose(engine.scores[:3], expected, atol=1e-3)
    engine.close()


def test_llama_cpp_quantizes_layer_by_layer_widths(tmp_path: Path) -> None:
    llama_cpp = library()
    """Down projections of 256 channels become K-quants, of 96 what has blocks of 32, of 45 stay in float16."""
    built, draw = model("llama-tied", **(SHAPE | {"hidden_size": 256, "intermediate_size": 256})), torch.Generator()
    kept = {"kv_groups": (2, 2, 2), "channels": (256, 96, 45)}
    axes = describe(built).axes
    cut_(built, {a.key: torch.randperm(a.units, generator=draw) < kept[a.name][a.layer] for a in axes})
    ids = torch.randint(3, 400, (1, 24), generator=torch.Generator().manual_seed(3))
    expected, whole = built(ids).logits[0].detach().numpy(), tmp_path / "f16.gguf"
    write_gguf(built, Vocabulary("none"), whole, Export(quantize="f16"))
    parameters, sizes = llama_cpp.llama_model_quantize_default_params(), [whole.stat().st_size]
    for name, kinds, near in (("Q8_0", ("Q8_0", "Q8_0", "F16"), 0.1), ("Q4_K_M", ("Q4_K", "Q5_0", "F16"), 0.4)):
        path = tmp_path / f"{name}.gguf"
        parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}")
        assert llama_cpp.llama_model_quantize(bytes(whole), bytes(path), ctypes.byref(parameters)) == 0
        stored = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}
        assert tuple(stored[f"blk.{layer}.ffn_down.weight"] for layer in range(3)) == kinds
        engine = opened(path)
        engine.eval(ids[0].tolist())
        assert 0 < np.linalg.norm(engine.scores[:24] - expected) / np.linalg.norm(expected) < near
        engine.close()
        sizes.append(path.stat().st_size)
    assert sizes == sorted(sizes, reverse=True)
