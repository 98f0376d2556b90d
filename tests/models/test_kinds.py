"""What a folder is, said in prune, inspect and check alike; and what of a stranger's folder is never read."""

import fnmatch
import io
import json
import os
import pickle
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from paths import SHARED
from safetensors.torch import load_file, save_file
from tiny import model
from toy import folder, texts_file

import seap
from seap.cli.main import main
from seap.errors import UserError
from seap.models import kinds, loader
from seap.page.describe import describe

CASES = SHARED / "cases"


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    return folder(tmp_path / "dense")


def edit(path: Path, **changes: Any) -> None:
    """Change entries of a JSON file; None takes one out."""
    told = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({key: value for key, value in (told | changes).items() if value is not None}))


def said(*arguments: str) -> tuple[int, str]:
    """Exit code and what a command says on stderr."""
    errors = io.StringIO()
    with redirect_stderr(errors), redirect_stdout(io.StringIO()):
        code = main(arguments)
    return code, " ".join(errors.getvalue().split())


def quantize(path: Path) -> None:
    edit(path / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})


def quantize_in_silence(path: Path) -> None:
    weights = load_file(path / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.qweight"] = torch.zeros(2, dtype=torch.int32)
    save_file(weights, path / "model.safetensors")


def only_adapter(path: Path) -> None:
    for file in path.iterdir():
        file.unlink()
    edit(path / "adapter_config.json", base_model_name_or_path="org/base", peft_type="LORA")


def pointer(path: Path) -> None:
    (path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")


def pickled(path: Path) -> None:
    (path / "model.safetensors").rename(path / "pytorch_model.bin")


def as_gguf(path: Path) -> None:
    (path / "model.safetensors").rename(path / "model.gguf")


def more_layers(path: Path) -> None:
    edit(path / "config.json", num_hidden_layers=500)


def endless_layers(path: Path) -> None:
    edit(path / "config.json", num_hidden_layers=10**9)


def fewer_layers(path: Path) -> None:
    edit(path / "config.json", num_hidden_layers=2)


def layers_in_words(path: Path) -> None:
    edit(path / "config.json", num_hidden_layers="three")


def other_vocabulary(path: Path) -> None:
    edit(path / "config.json", vocab_size=10**12)


def other_hidden(path: Path) -> None:
    edit(path / "config.json", hidden_size=32)


def other_heads(path: Path) -> None:
    edit(path / "config.json", num_attention_heads=16)


def strange_type(path: Path) -> None:
    edit(path / "config.json", rms_norm_eps=["much"], hidden_act=7)


def wrapper(path: Path) -> None:
    edit(path / "config.json", model_type="gemma3", text_config={"model_type": "rwkv"})


def adapter_beside(path: Path) -> None:
    edit(path / "adapter_config.json", base_model_name_or_path="org/base")


def shards_missing(path: Path) -> None:
    (path / "model.safetensors").unlink()
    edit(path / kinds.INDEX, weight_map={"a": "model-00001-of-00002.safetensors"})


def named_pickle(path: Path) -> None:
    torch.save(load_file(path / "model.safetensors"), path / "w.bin")
    (path / "model.safetensors").unlink()
    edit(path / kinds.INDEX, weight_map={"a": "w.bin"})


def named_outside(path: Path) -> None:
    (path / "model.safetensors").rename(path.parent / "w.safetensors")
    edit(path / kinds.INDEX, weight_map={"a": "../w.safetensors"})


def linked_weights(path: Path) -> None:
    (path / "model.safetensors").rename(path.parent / "w.safetensors")
    (path / "model.safetensors").symlink_to("../w.safetensors")


def linked_template(path: Path) -> None:
    (path.parent / "secret").write_text("key")
    (path / "chat_template.jinja").symlink_to(path.parent / "secret")


def linked_folder(path: Path) -> None:
    (path.parent / "elsewhere").mkdir()
    (path / "additional_chat_templates").symlink_to(path.parent / "elsewhere")


def huge(path: Path) -> None:
    os.truncate(path / "config.json", 1 << 40)


def huge_tokenizer(path: Path) -> None:
    os.truncate(path / "tokenizer.json", 1 << 40)


def nested(path: Path) -> None:
    (path / "config.json").write_text('{"a":' * 100_000)


def no_object(path: Path) -> None:
    (path / "config.json").write_text("[1]")


def other_tokenizer_file(path: Path) -> None:
    edit(path / "tokenizer_config.json", fast_tokenizer_files=["../tokenizer.4.0.json"])


def sharded_by_rank(path: Path) -> None:
    shutil.copy(path / "model.safetensors", path / "shard-00001-model-00001-of-00001.safetensors")


def longer(path: Path) -> None:
    os.truncate(path / "model.safetensors", 1 << 40)


def gap(path: Path) -> None:
    weights = load_file(path / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "layers.1." not in k}, path / "model.safetensors")


def other_model(path: Path) -> None:
    save_file({"encoder.weight": torch.zeros(2)}, path / "model.safetensors")


KINDS: dict[Callable[[Path], None], str] = {
    quantize: "quantized (gptq, 4 bits)",
    quantize_in_silence: "quantized (model.layers.0.mlp.up_proj.qweight)",
    only_adapter: "an adapter (LoRA or the like) of 'org/base'",
    pointer: "Git LFS pointer",
    pickled: "pickles, which are never read",
    as_gguf: "GGUF",
    more_layers: "500 layers, the weights have 3",
    endless_layers: "1,000,000,000 layers, the weights have 3",
    fewer_layers: "2 layers, the weights have 3",
    layers_in_words: "'three' layers",
    other_vocabulary: "vocab_size 1000000000000, where the weights have 97",
    other_hidden: "hidden_size 32, where the weights have 24",
    other_heads: "correct it",
    strange_type: "can't load model",
    wrapper: "multimodal wrapper around a text decoder (rwkv)",
    adapter_beside: "beside the model it holds an adapter",
    shards_missing: "model-00001-of-00002.safetensors",
    named_pickle: "names 'w.bin'; only safetensors",
    named_outside: "names '../w.safetensors'; only safetensors",
    linked_weights: "link that leads out",
    linked_template: "link that leads out",
    linked_folder: "link that leads out",
    huge: "1,099,511,627,776 bytes",
    huge_tokenizer: "1,099,511,627,776 bytes",
    nested: "can't be read as JSON",
    no_object: "expected an object",
    other_tokenizer_file: "no file of this folder",
    sharded_by_rank: "distributed checkpoint",
    longer: "truncated or damaged",
    gap: "none of layer 1",
    other_model: "none of its weights is of a layer",
}


@pytest.mark.parametrize("spoil", KINDS, ids=lambda spoil: spoil.__name__)
def test_every_kind_is_named_in_prune_inspect_and_check(
    dense: Path, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    spoil(dense)
    task = f"toy={texts_file(tmp_path / 'toy.txt')}"
    for command in (["prune", "--task", task, "--out", str(tmp_path / "out")], ["inspect"], ["check"]):
        code, text = said(command[0], str(dense), *command[1:])
        assert code == 1 and text.startswith("error: can't load model") and KINDS[spoil] in text, text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("./nope", "no such folder"),
        ("/nope/nope/nope", "no such folder"),
        ("m.gguf", "can't read .*m.gguf"),
        ("m.bin", "pickle, which is never read"),
        ("m.safetensors", "give the folder"),
        ("notes.txt", "not a Hugging Face model folder"),
    ],
)
def test_what_is_no_folder_is_named(name: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if "." in name.lstrip("./"):
        Path(name).write_bytes(b"x")
    with pytest.raises(UserError, match=text):
        seap.load(name)


def test_a_name_that_is_neither_a_folder_nor_on_the_hub() -> None:
    with pytest.raises(UserError, match="no such folder here, and it couldn't be fetched from the Hub"):
        seap.load("nope-such-org/nope")


def test_a_folder_without_tokenizer_says_so(dense: Path) -> None:
    for file in dense.glob("*token*"):
        file.unlink()
    with pytest.raises(UserError, match="has no tokenizer"):
        seap.load(str(dense))
    assert describe(str(dense))["kind"] == "dense model"


@pytest.mark.parametrize("wrong", ["many", [512], {"tokens": 512}])
def test_a_tokenizer_that_fails_where_it_reads_says_so(dense: Path, wrong: Any) -> None:
    config = json.loads((dense / "tokenizer_config.json").read_text())
    (dense / "tokenizer_config.json").write_text(json.dumps(config | {"model_max_length": wrong}))
    with pytest.raises(UserError, match=r"its tokenizer can't be read .*TypeError"):
        seap.load(str(dense))


def test_a_config_alone_is_inspected_but_not_with_absurdly_many_layers(dense: Path) -> None:
    (dense / "model.safetensors").unlink()
    assert describe(str(dense))["family"] == "llama"
    with pytest.raises(UserError, match="it has no weights"):
        seap.load(str(dense))
    endless_layers(dense)
    with pytest.raises(UserError, match="at most 1000"):
        describe(str(dense))


def test_the_hub_s_cache_with_its_links_is_read(dense: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "c0ffee", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in dense.iterdir():
        shutil.move(file, blobs / f"sha-{file.name}")
        (snapshot / file.name).symlink_to(f"../../blobs/sha-{file.name}")
    built, _ = seap.load(str(snapshot), device="cpu")
    assert built.config.num_hidden_layers == 3
    (tmp_path / "secret").write_text("key")
    (snapshot / "chat_template.jinja").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match="leads out of the folder"):
        seap.load(str(snapshot))


@pytest.mark.parametrize("sharded", [False, True])
def test_a_model_of_the_hub_is_fetched_as_a_folder(
    dense: Path, tmp_path: Path, sharded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def snapshot(name: str, *, allow_patterns: list[str]) -> str:
        assert name == "me/small"
        asked.extend(allow_patterns)
        return str(dense)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    if sharded:
        weights = load_file(dense / "model.safetensors")
        (dense / "model.safetensors").rename(dense / "model-00001-of-00001.safetensors")
        named = dict.fromkeys(weights, "model-00001-of-00001.safetensors")
        edit(dense / kinds.INDEX, metadata={}, weight_map=named)
    loader.load_config("me/small")
    assert not any(fnmatch.fnmatch("model.safetensors", pattern) for pattern in asked)
    built, _ = seap.load("me/small", device="cpu")
    assert built.config._name_or_path == "me/small"
    fetched = {name for name in os.listdir(dense) if any(fnmatch.fnmatch(name, pattern) for pattern in asked)}
    assert set(os.listdir(dense)) == fetched
    for never in ("pytorch_model.bin", "consolidated.safetensors", "modeling_x.py", ".env"):
        assert not any(fnmatch.fnmatch(never, pattern) for pattern in asked)


def test_blobs_that_are_a_link_themselves_are_no_cache(dense: Path, tmp_path: Path) -> None:
    home = tmp_path / "a" / "snapshots" / "b"
    shutil.copytree(dense, home)
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "key").write_text("key")
    (tmp_path / "a" / "blobs").symlink_to(tmp_path / "secrets")
    (home / "chat_template.jinja").symlink_to(tmp_path / "a" / "blobs" / "key")
    with pytest.raises(UserError, match="leads out of the folder"):
        seap.load(str(home))


def test_no_pickle_runs_whatever_names_it(dense: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (marker,)

    (dense / "w.bin").write_bytes(pickle.dumps(Evil()))
    (dense / "w.safetensors").write_bytes(pickle.dumps(Evil()))
    edit(dense / "config.json", transformers_weights="w.bin")
    seap.load(str(dense), device="cpu")  # the entry is ours to choose: model.safetensors is read
    edit(dense / kinds.INDEX, weight_map={"a": "w.bin"})
    (dense / "model.safetensors").unlink()
    for named in ("w.bin", "../dense/w.bin", "w.safetensors", ".safetensors", "x/w.safetensors"):
        edit(dense / kinds.INDEX, weight_map={"a": named})
        with pytest.raises(UserError):
            seap.load(str(dense), device="cpu")
    assert not marker.exists()


@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation", "_attn_implementation_internal"])
@pytest.mark.parametrize("kernel", ["org/kernel", "kernels-community/flash-attn@v1:f", "flash_attention_2"])
def test_the_attention_is_ours_to_choose(dense: Path, key: str, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers.integrations.hub_kernels as hub_kernels

    fetched: list[Any] = []
    for name in ("load_and_register_attn_kernel", "lazy_load_kernel", "get_kernel"):
        if hasattr(hub_kernels, name):
            monkeypatch.setattr(hub_kernels, name, lambda *a, **k: fetched.append(a))
    edit(dense / "config.json", **{key: kernel, "experts_implementation": "sonicmoe", "use_kernels": True})
    built, _ = seap.load(str(dense), device="cpu")
    assert built.config._attn_implementation in ("sdpa", "eager") and not fetched
    built(torch.tensor([[3, 4]]))
    assert describe(str(dense))["kind"] == "dense model" and not fetched


def test_memory_is_asked_for_what_is_read_only(dense: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (dense / "consolidated.safetensors").open("wb") as file:
        file.truncate(200 << 30)
    loader.check_memory(str(dense))
    monkeypatch.setattr(loader, "free_memory", lambda: 1000)
    with pytest.raises(UserError, match=r"0\.0 GB of weights"):
        loader.check_memory(str(dense))


def with_weights(path: Path, **more: torch.Tensor) -> None:
    weights = load_file(path / "model.safetensors")
    save_file(weights | {k: v.clone() for k, v in more.items()}, path / "model.safetensors", metadata={"format": "pt"})


def test_weights_beside_the_decoder_are_left_out_and_said(dense: Path, tmp_path: Path, caplog: Any) -> None:
    with_weights(dense, **{"mtp.fc.weight": torch.zeros(2, 2), "mtp.layers.0.up.weight": torch.zeros(2)})
    edit(dense / "config.json", num_nextn_predict_layers=1)
    task = f"toy={texts_file(tmp_path / 'toy.txt')}"
    for extra in ([], ["--stream"]):
        out = tmp_path / f"out{len(extra)}"
        quick = ["--method", "wanda-sp", "--device", "cpu", "--min-channels", "4", "--sparsity", "0.3", *extra]
        code, text = said("prune", str(dense), "--task", task, "--out", str(out), *quick)
        assert code == 0 and "2 weights that the model's class doesn't take are left out: mtp.*" in text
        assert json.loads((out / "config.json").read_text())["num_nextn_predict_layers"] == 0
        assert any("left out" in note for note in json.loads((out / "seap.json").read_text())["notes"])


def test_a_layer_that_predicts_further_tokens_is_no_decoder_layer(dense: Path) -> None:
    with_weights(dense, **{"model.layers.3.eh_proj.weight": torch.zeros(2, 2)})
    with pytest.raises(UserError, match="3 layers, the weights have 4, 1 of which would be lost"):
        seap.load(str(dense))
    edit(dense / "config.json", num_nextn_predict_layers=1)
    built, _ = seap.load(str(dense), device="cpu")
    assert built.config.num_nextn_predict_layers == 0


@pytest.mark.parametrize(
    "name", ["model.layers.0.self_attn.q_proj.bias", "model.layers.1.mlp.norm.weight", "lm_head.bias"]
)
def test_weights_of_the_decoder_are_never_dropped(dense: Path, name: str) -> None:
    with_weights(dense, **{name: torch.zeros(24)})
    if name.endswith("q_proj.bias"):
        weights = load_file(dense / "model.safetensors")
        save_file(
            {k: v for k, v in weights.items() if not k.endswith(("k_proj.bias", "v_proj.bias", "o_proj.bias"))}
            | {name: torch.zeros(64)},
            dense / "model.safetensors",
        )
        edit(dense / "config.json", attention_bias=False)
    with pytest.raises(UserError, match="would be lost"):
        seap.load(str(dense), device="cpu")


def test_buffers_that_old_versions_stored_are_no_loss(dense: Path) -> None:
    with_weights(dense, **{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)})
    seap.load(str(dense), device="cpu")


@pytest.mark.parametrize("family", ["gpt2", "opt", "gpt_neox", "mixtral", "qwen2_moe", "gemma3_text"])
def test_families_with_other_names_agree_with_their_weights(family: str, tmp_path: Path) -> None:
    path = folder(tmp_path / family, family)
    built, _ = seap.load(str(path), device="cpu")
    expected = model(family)
    ids = torch.tensor([[3, 4, 5]])
    assert torch.equal(built(ids).logits, expected(ids).logits)
    raw = json.loads((path / "config.json").read_text())
    key = "n_layer" if "n_layer" in raw else "num_hidden_layers"
    edit(path / "config.json", **{key: 10**9})
    with pytest.raises(UserError, match="the weights have 3"):
        seap.load(str(path))


CASE_SAYS = {
    "m11_gptq": "quantized (gptq",
    "m12_lora": "adapter",
    "m19_fewer_layers": "would be lost",
    "m29_layer_types_extra": "layer_types",
    "m31_vocab_mismatch": "vocab_size 4160",
    "m24_no_tokenizer": "has no tokenizer",
}


@pytest.mark.skipif(not CASES.is_dir(), reason="the workshop's cases aren't here")
@pytest.mark.parametrize("case", CASE_SAYS)
def test_cases_from_bug_reports(case: str, tmp_path: Path) -> None:
    code, text = said("prune", str(CASES / case), "--task", f"t={CASES / 't.jsonl'}", "--out", str(tmp_path / "x"))
    assert code == 1 and "can't load model" in text and CASE_SAYS[case] in text
