"""Folders: what is in them, that they reload, and that bad ones are refused with nothing left behind."""

import contextlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import ids, model
from toy import folder, texts_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import seap
from seap import files
from seap.activations.stats import load_statistics
from seap.disk.whole import written_whole
from seap.errors import UserError
from seap.models import loader
from seap.pruning import checkpoint
from seap.pruning.commands import prune_to_folder
from seap.pruning.stages import calibrate_to_files, mask_to_file, merge_files
from seap.selection.options import Pruning
from seap.text.options import Calibration

QUICK: dict[str, Any] = {"min_channels": 4, "progress": False, "loading": {"device": "cpu"}}


@pytest.fixture
def dense(tmp_path: Path) -> str:
    return str(folder(tmp_path / "dense"))


@pytest.fixture
def task(tmp_path: Path) -> str:
    return f"toy={texts_file(tmp_path / 'toy.txt')}"


def listing(path: Path) -> set[str]:
    return {str(p.relative_to(path)) for p in path.rglob("*")}


def test_the_folder_holds_all_that_a_model_needs(dense: str, task: str, tmp_path: Path) -> None:
    out = tmp_path / "runs" / "pruned"  # the parent doesn't exist yet
    report = prune_to_folder(dense, out, tasks=[task], **QUICK)
    names = {path.name for path in out.iterdir()}
    assert [path.name for path in out.glob("*.safetensors")] == ["model.safetensors"]  # vLLM loads all of them
    assert names >= {"config.json", "model.safetensors", "tokenizer.json", "modeling_seap.py", "README.md"}
    masks = load_file(out / "seap" / "mask.safetensors")
    assert set(masks) == {f"layers.{i}.{axis}" for i in range(3) for axis in ("kv_groups", "channels")}
    for layer, widths in enumerate(report.layers):
        for axis, kept in widths.items():
            mask = masks[f"layers.{layer}.{axis}"]
            assert mask.dtype == torch.bool and int(mask.sum()) == kept
    config = json.loads((out / "config.json").read_text())
    assert config["model_type"] == "llama" and config["architectures"] == ["SeapForCausalLM"]
    assert config["auto_map"]["AutoModelForCausalLM"] == "modeling_seap.SeapForCausalLM"
    assert config["head_dim"] == 8 and config["hidden_size"] == 24
    about = json.loads((out / "seap.json").read_text())
    assert about["realised_sparsity"] == report.realised_sparsity and about["versions"]["torch"] == torch.__version__
    assert about["corpora"]["toy"]["hash"] and about["calibration"]["seed"] == 0
    card = (out / "README.md").read_text()
    assert "pruned for toy" in card and "Off task this model is worse" in card
    assert not [path for path in tmp_path.rglob(".*.tmp")]


def test_it_reloads_generates_and_tokenises(dense: str, task: str, tmp_path: Path) -> None:
    prune_to_folder(dense, tmp_path / "out", tasks=[task], **QUICK)
    first, tokenizer = seap.load(str(tmp_path / "out"), device="cpu")
    second = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(first(ids()).logits, second(ids()).logits)
    batch = AutoTokenizer.from_pretrained(tmp_path / "out")(["w3 w4 w5"], return_tensors="pt")
    assert first.generate(**batch, max_new_tokens=3, min_new_tokens=3, pad_token_id=0).shape == (1, 6)
    assert tokenizer("w3 w4")["input_ids"] == [3, 4]


def test_pushing_sends_what_saving_writes(
    dense: str, task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers.utils.hub as hub

    prune_to_folder(dense, tmp_path / "out", tasks=[task], **QUICK)
    pruned, _ = seap.load(str(tmp_path / "out"), device="cpu")
    sent: list[str] = []

    class Hub:
        def create_repo(self, repo_id: str, **_: Any) -> Any:
            return type("Url", (), {"repo_id": repo_id})()

        def create_commit(self, operations: Any, **_: Any) -> None:
            sent.extend(operation.path_in_repo for operation in operations)

    card = type("Card", (), {"save": lambda self, path: Path(path).write_text("card")})
    monkeypatch.setattr(hub, "hf_api", Hub)
    monkeypatch.setattr(hub, "create_and_tag_model_card", lambda *_, **__: card())
    pruned.push_to_hub("me/pruned")
    assert {"config.json", "model.safetensors", "modeling_seap.py"} <= set(sent)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_the_dtype_is_as_asked(dense: str, task: str, tmp_path: Path, dtype: Any) -> None:
    quick = QUICK | {"loading": {"device": "cpu", "dtype": dtype}}
    prune_to_folder(dense, tmp_path / "out", tasks=[task], **quick)
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert {str(weight.dtype) for weight in weights.values()} == {f"torch.{dtype}"}


@pytest.mark.parametrize("fast", [True, False])
def test_sixteen_bits_are_computed_in_float32_where_they_are_slow_and_saved_as_they_were(
    tmp_path: Path, task: str, monkeypatch: pytest.MonkeyPatch, fast: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: fast)
    path = str(folder(tmp_path / "half", dtype=torch.bfloat16))
    model, _ = loader.load_for_work(path, device="cpu")
    assert model.dtype == (torch.bfloat16 if fast else torch.float32)
    assert loader.load_for_work(path, device="cpu", dtype="float16")[0].dtype == torch.float16
    assert loader.load(path, device="cpu")[0].dtype == torch.bfloat16
    for asked in (None, "float32"):
        prune_to_folder(path, tmp_path / f"out{asked}", tasks=[task], save_dtype=asked, **QUICK)
        weights = load_file(tmp_path / f"out{asked}" / "model.safetensors")
        assert {str(weight.dtype) for weight in weights.values()} == {f"torch.{asked or 'bfloat16'}"}


def test_stages_apart_give_what_one_command_gives(dense: str, task: str, tmp_path: Path) -> None:
    stats, mask = tmp_path / "stats", tmp_path / "masks" / "toy.safetensors"
    loading = {"device": "cpu"}
    [made] = calibrate_to_files(dense, [task], stats, Calibration(), loading=loading, progress=False)
    assert not made["skipped"]
    [again] = calibrate_to_files(dense, [task], stats, Calibration(), loading=loading, progress=False)
    assert again["skipped"] and again["key"] == made["key"]
    options = Pruning(min_channels=4)
    about = mask_to_file(dense, [stats / "toy.safetensors"], mask, options, loading=loading)
    assert not about["skipped"]
    assert mask_to_file(dense, [stats / "toy.safetensors"], mask, options, loading=loading)["skipped"]
    prune_to_folder(dense, tmp_path / "one", tasks=[task], **QUICK)
    prune_to_folder(dense, tmp_path / "two", stats_files=[stats / "toy.safetensors"], **QUICK)
    given = {"stats_files": [stats / "toy.safetensors"], "mask_file": mask}
    prune_to_folder(dense, tmp_path / "three", **given, **QUICK)
    one = load_file(tmp_path / "one" / "model.safetensors")
    for other in ("two", "three"):
        weights = load_file(tmp_path / other / "model.safetensors")
        assert all(torch.equal(one[name], weights[name]) for name in one)


def test_merged_shards_are_the_whole(dense: str, tmp_path: Path) -> None:
    from toy import TEXTS

    parts = {"a": TEXTS[:15], "b": TEXTS[15:], "whole": TEXTS}
    for name, texts in parts.items():
        train = tmp_path / name
        train.mkdir()
        texts_file(train / "train.txt", texts)
        texts_file(train / "test.txt", texts[:2])
        calibrate_to_files(
            dense,
            [f"toy={train}"],
            tmp_path / f"stats-{name}",
            Calibration(),
            loading={"device": "cpu"},
            progress=False,
        )
    shards = [tmp_path / f"stats-{name}" / "toy.safetensors" for name in ("a", "b")]
    about = merge_files(shards, tmp_path / "merged.safetensors")
    whole = load_file(tmp_path / "stats-whole" / "toy.safetensors")
    merged = load_file(tmp_path / "merged.safetensors")
    assert about["task"] == "toy" and len(about["parts"]) == 2
    rows = [
        sorted(load_statistics(tmp_path / name)[0].rows)
        for name in ("merged.safetensors", "stats-whole/toy.safetensors")
    ]
    assert rows[0] == rows[1]
    for name in whole.keys() - {"rows", "row_lengths"}:
        expected = whole[name]
        torch.testing.assert_close(merged[name], expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match="hold the same text"):
        merge_files([shards[0], shards[0]], tmp_path / "twice.safetensors")
    with pytest.raises(UserError, match="at least two"):
        merge_files(shards[:1], tmp_path / "one.safetensors")


def test_a_pruned_folder_can_be_pruned_again(dense: str, task: str, tmp_path: Path) -> None:
    prune_to_folder(dense, tmp_path / "once", tasks=[task], sparsity=0.3, **QUICK)
    report = prune_to_folder(str(tmp_path / "once"), tmp_path / "twice", tasks=[task], sparsity=0.3, **QUICK)
    assert any("already pruned" in note for note in report.notes)
    masks = load_file(tmp_path / "twice" / "seap" / "mask.safetensors")
    assert masks["layers.0.channels"].numel() == 40  # over the original model's units
    assert int(masks["layers.0.channels"].sum()) == report.layers[0]["channels"]


def refused(message: str, dense: str, out: Path, **options: Any) -> None:
    """Expect an error, and the output's parent exactly as it was."""
    before = listing(out.parent)
    with pytest.raises(UserError, match=message):
        prune_to_folder(dense, out, **(QUICK | options))
    assert listing(out.parent) == before


def test_bad_input_is_refused_with_nothing_left_behind(dense: str, task: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused("sparsity 2", dense, out, tasks=[task], sparsity=2)
    refused("can't be met", dense, out, tasks=[task], sparsity=0.95)
    refused("no/such/file", dense, out, tasks=["toy=no/such/file.txt"])
    refused("add --task NAME", dense, out)
    (tmp_path / "empty.jsonl").touch()
    refused("empty", dense, out, tasks=[f"toy={tmp_path / 'empty.jsonl'}"])
    (tmp_path / "columns.jsonl").write_text('{"words": "w3 w4"}\n{"words": "w3 w5"}\n')
    refused("words", dense, out, tasks=[f"toy={tmp_path / 'columns.jsonl'}"])
    short = texts_file(tmp_path / "short.txt", ["w3", "w4"])
    refused("two tokens", dense, out, tasks=[f"toy={short}"])
    refused("can't load model 'no/model'", "no/model", out, tasks=[task])
    refused("no config.json", str(tmp_path), out, tasks=[task])
    refused("two tasks have one name", dense, out, tasks=[task, task], method="seap-gen")


def test_full_output_folders_are_refused_and_kept(dense: str, task: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious").write_text("mine")
    refused("isn't empty, and it isn't a checkpoint of seap's", dense, out, tasks=[task])
    assert (out / "precious").read_text() == "mine"
    refused("is a file", dense, out / "precious", tasks=[task])
    refused("isn't a checkpoint of seap's", dense, out, tasks=[task], overwrite=True)
    assert (out / "precious").read_text() == "mine"
    refused("is the model itself", dense, Path(dense), tasks=[task], overwrite=True)
    made = tmp_path / "made"
    prune_to_folder(dense, made, tasks=[task], **QUICK)
    (made / "stale").touch()
    prune_to_folder(dense, made, tasks=[task], overwrite=True, **QUICK)
    assert (made / "stale").exists() and (made / "config.json").is_file()  # not seap's own
    refused("add --overwrite", dense, made, tasks=[task])


def test_a_failing_overwrite_keeps_what_was_there(
    dense: str, task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    prune_to_folder(dense, out, tasks=[task], **QUICK)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "weight_digests", full)
    refused("the disk is full; nothing was left behind", dense, out, tasks=[task], overwrite=True, sparsity=0.2)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_too_little_room_is_said_before_the_work(
    dense: str, task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 99, 1000))  # type: ignore[attr-defined]
    refused("the pruned model needs 1 MB", dense, tmp_path / "out", tasks=[task])


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc/version").exists(), reason="needs a file system that refuses")
def test_folders_that_cannot_be_written_are_refused(dense: str, task: str) -> None:
    with pytest.raises(UserError, match="/proc"):
        prune_to_folder(dense, Path("/proc/seap/out"), tasks=[task], **QUICK)


def test_statistics_and_masks_of_another_model_are_refused(dense: str, task: str, tmp_path: Path) -> None:
    other = str(folder(tmp_path / "other", seed=1))
    loading = {"device": "cpu"}
    calibrate_to_files(other, [task], tmp_path / "stats", Calibration(), loading=loading, progress=False)
    stats = tmp_path / "stats" / "toy.safetensors"
    refused("was made with another model", dense, tmp_path / "out", stats_files=[stats])
    mask_to_file(other, [stats], tmp_path / "mask.safetensors", Pruning(min_channels=4), loading=loading)
    refused(
        "mask.safetensors was made with another model",
        dense,
        tmp_path / "out",
        mask_file=tmp_path / "mask.safetensors",
        tasks=[task],
    )
    refused("holds mask, expected stats", dense, tmp_path / "out", stats_files=[tmp_path / "mask.safetensors"])
    with pytest.raises(UserError, match="with other text, options or another model"):
        calibrate_to_files(dense, [task], tmp_path / "stats", Calibration(), loading=loading, progress=False)


def test_damaged_models_are_named(dense: str, task: str, tmp_path: Path) -> None:
    weights = Path(dense) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    refused("can't load model", dense, tmp_path / "out", tasks=[task])


def test_pickles_are_never_read(dense: str, task: str, tmp_path: Path) -> None:
    weights = Path(dense) / "model.safetensors"
    torch.save(load_file(weights), Path(dense) / "pytorch_model.bin")
    weights.unlink()
    refused("can't load model", dense, tmp_path / "out", tasks=[task])


def test_a_stranger_s_safetensors_is_no_artefact(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="none of seap's"):
        files.read_about(tmp_path / "a.safetensors")


def test_files_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "new" / "value.json"
    with pytest.raises(RuntimeError), written_whole(target, "result") as draft:
        draft.write_text("half")
        raise RuntimeError("interrupted")
    assert listing(tmp_path) == set()
    files.write_json(target, {"a": 1})
    assert json.loads(target.read_text()) == {"a": 1} and listing(target.parent) == {"value.json"}


def test_a_pruned_checkpoint_without_seap_s_class_fails_loudly(dense: str, task: str, tmp_path: Path) -> None:
    """An engine that takes the widths for uniform must not load wrong weights in silence."""
    prune_to_folder(dense, tmp_path / "out", tasks=[task], **QUICK)
    stock = model("llama")
    weights = load_file(tmp_path / "out" / "model.safetensors")
    with pytest.raises(RuntimeError, match="size mismatch"):
        stock.load_state_dict(weights, strict=False)


def test_a_linked_output_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "big")
    with written_whole(tmp_path / "out", "checkpoint") as draft:
        (draft / "a").touch()
    assert (tmp_path / "out").is_symlink() and (tmp_path / "big" / "a").is_file()


def test_the_same_seed_gives_the_same_files(dense: str, task: str, tmp_path: Path) -> None:
    for run in ("one", "two"):
        prune_to_folder(dense, tmp_path / run, tasks=[task], **QUICK)
        calibrate_to_files(
            dense, [task], tmp_path / f"stats-{run}", Calibration(), loading={"device": "cpu"}, progress=False
        )
    one, two = ((tmp_path / run / "model.safetensors").read_bytes() for run in ("one", "two"))
    assert one == two
    one, two = ((tmp_path / f"stats-{run}" / "toy.safetensors").read_bytes() for run in ("one", "two"))
    assert one == two


def test_models_with_missing_weights_are_refused(dense: str, task: str, tmp_path: Path) -> None:
    path = Path(dense) / "model.safetensors"
    weights = load_file(path)
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    refused("1 weights are missing or misshapen, such as model.layers.1", dense, tmp_path / "out", tasks=[task])


def test_a_checkpoint_s_own_code_does_not_run_unasked(dense: str, task: str, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    code = f"from pathlib import Path\nPath({str(marker)!r}).touch()\n"
    for name in ("configuration_evil.py", "tokenization_evil.py"):
        (Path(dense) / name).write_text(code)
    for name, entry in (
        ("config.json", {"AutoConfig": "configuration_evil.Evil", "AutoModelForCausalLM": "configuration_evil.Evil"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["tokenization_evil.Evil", None]}),
    ):
        path = Path(dense) / name
        path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": entry}))
    with contextlib.suppress(UserError):
        prune_to_folder(dense, tmp_path / "out", tasks=[task], **QUICK)
    assert not marker.exists()


def test_two_files_of_one_task_are_not_dropped_in_silence(dense: str, task: str, tmp_path: Path) -> None:
    for seed in (0, 1):
        calibrate_to_files(
            dense,
            [task],
            tmp_path / f"s{seed}",
            Calibration(num_texts=9, seed=seed),
            loading={"device": "cpu"},
            progress=False,
        )
    both = [tmp_path / f"s{seed}" / "toy.safetensors" for seed in (0, 1)]
    refused("two files are of task toy; add them up first: seap merge", dense, tmp_path / "out", stats_files=both)
    with pytest.raises(UserError, match="add them up first"):
        mask_to_file(dense, both, tmp_path / "mask.safetensors", Pruning(min_channels=4))


def test_a_mask_brings_its_own_provenance(dense: str, task: str, tmp_path: Path) -> None:
    loading = {"device": "cpu"}
    calibrate_to_files(dense, [task], tmp_path / "stats", Calibration(), loading=loading, progress=False)
    stats, mask = tmp_path / "stats" / "toy.safetensors", tmp_path / "mask.safetensors"
    options = Pruning(min_channels=4, sparsity=0.3, score="wanda", allocate="uniform", compensate="none")
    mask_to_file(dense, [stats], mask, options, loading=loading)
    plain = {"progress": False, "loading": loading}
    report = prune_to_folder(dense, tmp_path / "out", mask_file=mask, **plain)  # type: ignore[arg-type]
    about = json.loads((tmp_path / "out" / "seap.json").read_text())
    assert (
        about["tasks"] == ["toy"] and about["target_sparsity"] == 0.3 and about["num_tokens"] == report.num_tokens > 0
    )
    assert [about["options"][name] for name in ("score", "allocate", "compensate")] == ["wanda", "uniform", "none"]
    assert "pruned for toy" in (tmp_path / "out" / "README.md").read_text()
    refused("--sparsity 0.7 has no effect with --mask-file", dense, tmp_path / "two", mask_file=mask, sparsity=0.7)
    again = prune_to_folder(
        dense, tmp_path / "again", mask_file=tmp_path / "out" / "seap" / "mask.safetensors", **plain
    )  # type: ignore[arg-type]
    assert again.target_sparsity == 0.3 and again.realised_sparsity == report.realised_sparsity


def test_pruned_models_can_be_pickled(dense: str, task: str, tmp_path: Path) -> None:
    prune_to_folder(dense, tmp_path / "out", tasks=[task], **QUICK)
    pruned, _ = seap.load(str(tmp_path / "out"), device="cpu")
    (tmp_path / "pickled").write_bytes(pickle.dumps(pruned))
    program = f"""
import pickle, torch
from pathlib import Path
model = pickle.loads(Path({str(tmp_path / "pickled")!r}).read_bytes())
print(type(model).__name__, model(torch.tensor([[3, 4, 5]])).logits.sum().item())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    name, total = done.stdout.split()
    assert name == "SeapForCausalLM" and float(total) == pruned(torch.tensor([[3, 4, 5]])).logits.sum().item()


def test_loading_a_pruned_model_warns_of_nothing(dense: str, task: str, tmp_path: Path) -> None:
    prune_to_folder(dense, tmp_path / "out", tasks=[task], **QUICK)
    program = f"""
import seap
from transformers import AutoModelForCausalLM
AutoModelForCausalLM.from_pretrained({str(tmp_path / "out")!r})
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "global config value" not in done.stderr + done.stdout


def test_devices_that_are_not_here_are_refused(dense: str, task: str, tmp_path: Path) -> None:
    loading = {"loading": {"device": "cuda:99"}}
    refused("--device cuda:99", dense, tmp_path / "out", tasks=[task], **loading)
