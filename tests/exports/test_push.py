"""`seap push`: what would be sent, the card with its numbers, and what is refused before anything is sent."""

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from toy import folder, texts_file

from seap.cli.main import main
from seap.errors import UserError
from seap.exports.export import export
from seap.exports.options import Export
from seap.exports.push import push
from seap.pruning.commands import prune_to_folder

ROW = {"task": "toy", "loss": 1.25, "loss_stderr": 0.01, "ppl": 3.49, "acc": 0.5, "acc_stderr": 0.05, "n": 100}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("push")
    options: dict[str, Any] = {"sparsity": 0.3, "score": "wanda", "allocate": "uniform", "min_channels": 4}
    task = f"toy={texts_file(path / 'toy.txt')}"
    prune_to_folder(str(folder(path / "dense")), path / "small", tasks=[task], progress=False, **options)
    return path / "small"


class Hub:
    """The Hub's API, as far as it is used."""

    sent: dict[str, Any]
    down = False

    def create_repo(self, repo: str, **options: Any) -> None:
        if Hub.down:
            raise OSError("no route to host")
        Hub.sent = {"repo": repo} | options

    def create_commit(self, repo: str, operations: Any, **_: Any) -> None:
        Hub.sent |= {part.path_in_repo: part.path_or_fileobj for part in operations}


def test_a_dry_run_shows_the_card_and_the_files_and_sends_nothing(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", None)
    results = tmp_path / "eval.json"
    results.write_text(json.dumps({"model": str(small), "rows": [ROW, {"metric": "acc", "value": 1}]}))
    assert main(["push", str(small), "me/small", "--results", str(results), "--dry-run"]) == 0
    printed = capsys.readouterr()
    assert "| toy | 1.250 ± 0.010 | 3.49 | 50.0% ± 5.0%, n = 100 |  |" in printed.out
    assert "was not measured here" not in printed.out and "nothing was sent" in printed.out
    for snippet in ('from_pretrained("me/small")', "vllm serve me/small", "seap export me/small --to gguf"):
        assert snippet in printed.out
    assert "DIR" not in printed.out and "model.safetensors" in printed.out
    assert f"name {small.parent / 'dense'}, a path of this machine" in printed.err


def test_everything_goes_up_in_one_commit(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    beside = tmp_path / "small.gguf"
    beside.write_bytes(b"GGUF")
    told = push(small, "me/small", also=[beside], private=True)
    assert told["uploaded"] and Hub.sent["repo"] == "me/small" and Hub.sent["private"] is True
    names = {str(path.relative_to(small)) for path in small.rglob("*") if path.is_file()} | {"small.gguf"}
    assert not any("not uploaded" in note for note in told["notes"])
    assert names <= Hub.sent.keys() and Hub.sent["small.gguf"] == str(beside)
    assert b"pruned for toy" in Hub.sent["README.md"] and b"was not measured here" in Hub.sent["README.md"]


def test_what_is_no_part_of_a_checkpoint_stays(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(small, mine)
    secrets = (".env", ".ssh/id", "notes.txt", "seap/key", "wandb/run.json", "training_args.bin", "optimizer.pt")
    for name in secrets:
        (mine / name).parent.mkdir(exist_ok=True)
        (mine / name).write_text("secret")
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    told = push(mine, "me/mine", also=[mine / "notes.txt"])
    assert not {name for name in secrets if name in Hub.sent} - {"notes.txt"} and "notes.txt" in Hub.sent
    assert {"model.safetensors", "config.json", "tokenizer.json", "seap/mask.safetensors"} <= Hub.sent.keys()
    assert any("not uploaded" in note and ".env" in note and ".ssh/" in note for note in told["notes"])
    (tmp_path / "outside").write_text("secret")
    (mine / "chat_template.jinja").symlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match="link that leads out"):
        push(mine, "me/mine")


def test_a_stock_export_has_a_card_without_code_of_its_own(small: Path, tmp_path: Path) -> None:
    export(str(small), tmp_path / "padded", "padded")
    card = push(tmp_path / "padded", "me/padded", dry_run=True)["card"]
    assert "stock `LlamaForCausalLM`" in card and "import seap" not in card and '("me/padded")' in card
    about = tmp_path / "padded" / "seap.json"  # an OpenVINO folder has the same files beside its own
    about.write_text(about.read_text().replace('"exported": "padded"', '"exported": "openvino"'))
    assert 'snapshot_download("me/ov")' in push(tmp_path / "padded", "me/ov", dry_run=True)["card"]


def test_a_quantized_export_has_a_card_that_names_torchao(small: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchao", reason='needs pip install "seap[torchao]"')
    export(str(small), tmp_path / "int8", "torchao", Export(weights="int8"))
    told = push(tmp_path / "int8", "me/int8", dry_run=True)
    assert "pip install torchao" in told["card"] and 'from_pretrained("me/int8")' in told["card"]
    assert {"model.safetensors", "modeling_seap.py", "config.json", "seap.json"} <= set(told["files"])


def test_a_folder_that_lost_its_seap_json_goes_up_with_what_is_known(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned = tmp_path / "tuned"
    shutil.copytree(small, tuned)
    (tuned / "seap.json").unlink()
    told = push(tuned, "me/tuned", dry_run=True)
    assert "neither what this was pruned from" in told["notes"][0]
    assert "`llama` model that seap pruned" in told["card"] and "for toy" in told["card"]
    assert "intermediate_size from" in told["card"] and 'from_pretrained("me/tuned")' in told["card"]
    shutil.rmtree(tuned / "seap")
    assert "for toy" not in push(tuned, "me/tuned", dry_run=True)["card"]
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    told = push(tuned, "me/tuned", provenance=small)
    sent = json.loads(Hub.sent["seap.json"])
    assert sent["saved_again"] is True and "digests" not in sent and sent["tasks"] == ["toy"]
    assert Hub.sent["seap/mask.safetensors"] == (small / "seap" / "mask.safetensors").read_bytes()
    assert "pruned for toy" in told["card"] and "may have been trained since" in told["card"]
    assert not any("no seap.json" in note for note in told["notes"])


def test_provenance_is_of_the_folder_that_was_trained(small: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has a seap\.json of its own"):
        push(small, "me/small", provenance=small, dry_run=True)
    other = folder(tmp_path / "dense")
    with pytest.raises(UserError, match="wasn't trained from it: they differ in seap, per_layer_config"):
        push(other, "me/small", provenance=small, dry_run=True)


@pytest.mark.parametrize(
    ("repo", "content", "message"),
    [
        ("a/b/c", None, "is no name on the Hub"),
        ("me/small", "{}", "isn't what seap eval"),
        ("me/small", json.dumps({"model": "other", "rows": []}), "are of other"),
    ],
)
def test_what_is_wrong_is_refused(repo: str, content: str | None, message: str, small: Path, tmp_path: Path) -> None:
    results = tmp_path / "eval.json"
    results.write_text(content or json.dumps({"model": str(small), "rows": []}))
    with pytest.raises(UserError, match=message):
        push(small, repo, results=results)


def test_no_checkpoint_no_file_no_network(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no checkpoint of seap's"):
        push(folder(tmp_path / "dense"), "me/small")
    with pytest.raises(UserError, match="no such file"):
        push(small, "me/small", also=[tmp_path / "no.gguf"])
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="rename it"):
        push(small, "me/small", also=[tmp_path / "config.json"])
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(Hub, "down", True)
    with pytest.raises(UserError, match=r"no route to host.*logged in"):
        push(small, "me/small")
