"""Results are written whole or not at all, and nothing that isn't seap's is ever removed."""

import json
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from seap import files
from seap.disk import replace, rooms
from seap.disk.claim import LOCK, claimed, claimed_results
from seap.disk.kinds import COLLECTION, kind_of
from seap.disk.manifest import MANIFEST, read_manifest
from seap.disk.whole import temporary, written_together, written_whole
from seap.errors import UserError

OWN = {"versions": {"seap": "1"}}


def checkpoint(target: Path, **content: str) -> None:
    """A folder of seap's with such files."""
    with written_whole(target, "checkpoint") as draft:
        for name, text in content.items():
            path = draft / name.replace("__", "/").replace("_", ".")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)


def tree(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }


def foreign_places(folder: Path) -> dict[str, Path]:
    """Whatever a user may have under the name of an output."""
    (folder / "full").mkdir()
    (folder / "full" / "mine.txt").write_text("mine")
    (folder / "notes.md").write_text("mine")
    (folder / "data.json").write_text('{"kind": "analyze", "mine": 1}')
    save_file({"a": torch.zeros(1)}, folder / "weights.safetensors")
    os.mkfifo(folder / "fifo")
    (folder / "dangling").symlink_to(folder / "nowhere")
    (folder / "circle").symlink_to(folder / "circle")
    (folder / "link").symlink_to(folder / "notes.md")
    (folder / "linked").symlink_to(folder / "full")
    return {path.name: path for path in folder.iterdir()} | {"null": Path("/dev/null")}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", ["analyze", "stats", "written texts", "gguf", "page", "checkpoint", "page files"])
def test_foreign_places_are_refused_and_kept(tmp_path: Path, kind: str, overwrite: bool) -> None:
    places = foreign_places(tmp_path)
    before = {path: (path.lstat().st_ino, path.lstat().st_mode) for path in tmp_path.rglob("*")}
    null = os.stat("/dev/null").st_mode
    for place in places.values():
        with pytest.raises(UserError, match="--out"), claimed(place, kind, overwrite=overwrite):
            pass
        with pytest.raises(UserError, match="--out"), written_whole(place, kind):
            pass
    assert {path: (path.lstat().st_ino, path.lstat().st_mode) for path in tmp_path.rglob("*")} == before
    assert os.stat("/dev/null").st_mode == null and stat.S_ISCHR(null)


def test_a_result_replaces_its_own_kind_and_others_when_told(tmp_path: Path) -> None:
    out = tmp_path / "a.json"
    files.write_json(out, {"kind": "analyze", **OWN})
    files.write_json(out, {"kind": "analyze", "second": 1, **OWN})
    assert kind_of(out) == "analyze" and json.loads(out.read_text())["second"] == 1
    with pytest.raises(UserError, match="is there already, a analyze; name another file or add --overwrite"):
        files.write_json(out, {"kind": "bench", **OWN})
    with claimed(out, "bench", overwrite=True):
        files.write_json(out, {"kind": "bench", **OWN})
    assert kind_of(out) == "bench"


def test_texts_that_were_edited_are_the_user_s(tmp_path: Path) -> None:
    out, about = tmp_path / "texts.jsonl", {"kind": "written texts", **OWN}
    files.write_lines(out, "written texts", [{"text": "a"}], about)
    assert kind_of(out) == "written texts"
    with pytest.raises(UserError, match="add --overwrite"), claimed(out, "written texts"):
        pass
    out.write_text('{"text": "mine"}\n')
    with pytest.raises(UserError, match="isn't seap's own"), claimed(out, "written texts", overwrite=True):
        pass


def test_replacing_a_folder_keeps_what_is_foreign_and_what_was_edited(tmp_path: Path) -> None:
    out = tmp_path / "out"
    checkpoint(out, config_json="old", README_md="card", sub__mask="old", stale_txt="old")
    (out / "mine.txt").write_text("mine")
    (out / "deep" / "er").mkdir(parents=True)
    (out / "deep" / "er" / "mine").write_text("mine too")
    (out / "empty").mkdir()
    (out / "link").symlink_to("mine.txt")
    (out / "README.md").write_text("edited")
    (out / "new.txt").write_text("where the new result has a file")
    with claimed(out, "checkpoint", overwrite=True):
        checkpoint(out, config_json="new", README_md="new card", sub__mask="new", new_txt="new")
    assert tree(out) == {
        "config.json": "new",
        "README.md": "new card",
        "README.md.before": "edited",
        "sub/mask": "new",
        "mine.txt": "mine",
        "deep/er/mine": "mine too",
        "link": "mine",
        "new.txt": "new",
        "new.txt.before": "where the new result has a file",
    }
    assert (out / "link").is_symlink() and (out / "empty").is_dir()
    with claimed(out, "checkpoint", overwrite=True):
        checkpoint(out, config_json="third")
    assert {"mine.txt", "README.md.before", "new.txt.before", "config.json"} <= tree(out).keys()
    assert "sub/mask" not in tree(out) and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_list_of_files_that_leads_outside_makes_nothing_seap_s(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in ("../mine", "/etc/passwd"):
        (out / MANIFEST).write_text(json.dumps({"kind": "checkpoint", "files": {name: {}}}))
        assert read_manifest(out) is None and kind_of(out) is None


@pytest.mark.parametrize("where", ["model", "inside", "above", "input", "here"])
def test_outputs_apart_from_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    work, model, texts = tmp_path / "work", tmp_path / "p" / "model", tmp_path / "q" / "texts.txt"
    for folder in (work, model, texts.parent):
        folder.mkdir(parents=True)
    texts.write_text("a")
    monkeypatch.chdir(work)
    out = {
        "model": model,
        "inside": model / "out",
        "above": model.parent,
        "input": texts.parent,
        "here": Path(".."),
    }[where]
    for kind in ("checkpoint", COLLECTION):
        reads = {"the model": model, "the texts": texts}
        with (
            pytest.raises(UserError, match=r"which is read|itself, which would be lost|you are in"),
            claimed(out, kind, overwrite=True, inputs=reads),
        ):
            pass
    assert texts.read_text() == "a" and model.is_dir() and not (model / "out").exists()
    with claimed(Path("file.json"), "analyze", inputs={"the model": model}):  # a file where one works is fine
        pass


def test_a_second_run_is_refused_at_once_and_told_of_the_first(tmp_path: Path) -> None:
    for out, kind in ((tmp_path / "a.json", "analyze"), (tmp_path / "folder", COLLECTION)):
        said: list[str] = []

        def second(out: Path = out, kind: str = kind, said: list[str] = said) -> None:
            try:
                with claimed(out, kind):
                    said.append("let in")
            except UserError as error:
                said.append(str(error))

        with claimed(out, kind):
            thread = threading.Thread(target=second)
            thread.start()
            thread.join()
        assert "is being written by" in said[0]
        second()
        assert said[1] == "let in"
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(LOCK)]


def test_the_holder_of_a_lock_is_named(tmp_path: Path) -> None:
    from filelock import FileLock

    path = tmp_path / f".a.json{LOCK}"
    with FileLock(path):
        told = {"pid": 42, "started": 1, "host": "far", "since": "today", "command": "seap analyze"}
        path.write_text(json.dumps(told))
        said = r"process 42 on far since today \(seap analyze\)"
        with pytest.raises(UserError, match=said), claimed(tmp_path / "a.json", "analyze"):
            pass


def test_what_another_wrote_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "a.json"
    refused = pytest.raises(UserError, match="written by another run meanwhile")
    with claimed(out, "analyze"), refused, written_whole(out, "analyze") as draft:
        draft.write_text("late")
        out.write_text(json.dumps({"kind": "analyze", **OWN}))
    assert kind_of(out) == "analyze" and [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_for_results_keeps_a_foreign_one_of_that_name(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "compare.json").write_text("mine")
    refused = pytest.raises(UserError, match="isn't seap's own")
    with refused, claimed_results(tmp_path / "out", "compare", overwrite=True):
        pass


def test_all_files_have_one_mode_by_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with written_whole(tmp_path / "out", "checkpoint") as draft:
            for name, mode in (("a", 0o600), ("b", 0o777)):
                (draft / name).touch()
                (draft / name).chmod(mode)
            (draft / "sub").mkdir(mode=0o700)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [tmp_path / "out", *(tmp_path / "out").iterdir()]}
    assert modes == {"out": 0o750, "a": 0o640, "b": 0o640, MANIFEST: 0o640, "sub": 0o750}


def test_a_file_s_own_mode_stays(tmp_path: Path) -> None:
    out = tmp_path / "a.json"
    files.write_json(out, {"kind": "analyze", **OWN})
    out.chmod(0o600)
    files.write_json(out, {"kind": "analyze", **OWN})
    assert stat.S_IMODE(out.stat().st_mode) == 0o600


@pytest.mark.parametrize("exchange", [True, False])
def test_everything_is_on_the_disk_before_it_takes_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    order: list[str] = []
    real = os.fsync, os.rename, replace._rename2

    def fsync(handle: int) -> None:
        order.append(f"sync {Path(os.readlink(f'/proc/self/fd/{handle}')).name}")
        real[0](handle)

    def rename2(source: Path, target: Path, flags: int) -> bool:
        order.append("rename")
        return exchange and real[2](source, target, flags)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(replace, "_rename2", rename2)
    checkpoint(tmp_path / "out", a="1", sub__b="2")
    first = order.index("rename")
    assert {"sync a", "sync b", "sync sub", "sync out", f"sync {MANIFEST}"} <= set(order[:first])
    assert f"sync {tmp_path.name}" in order[first:]
    order.clear()
    with claimed(tmp_path / "out", "checkpoint", overwrite=True):
        checkpoint(tmp_path / "out", a="3")
    assert tree(tmp_path / "out") == {"a": "3"} and "sync a" in order[: order.index("rename")]


def test_an_interrupt_leaves_what_was_there(tmp_path: Path) -> None:
    checkpoint(tmp_path / "out", a="old")
    claim, stopped = claimed(tmp_path / "out", "checkpoint", overwrite=True), pytest.raises(KeyboardInterrupt)
    with claim, stopped, written_whole(tmp_path / "out", "checkpoint") as draft:
        (draft / "a").write_text("half")
        raise KeyboardInterrupt
    assert tree(tmp_path / "out") == {"a": "old"} and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_two_files_are_replaced_together_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [(tmp_path / "a.json", "analyze"), (tmp_path / "b.json", "analyze")]
    for path, _ in wanted:
        files.write_json(path, {"kind": "analyze", "value": 0, **OWN})

    def dying(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(replace, "_write_journal", dying)
    with pytest.raises(KeyboardInterrupt), written_together(wanted) as drafts:
        for draft in drafts:
            draft.write_text(json.dumps({"kind": "analyze", "value": 1, **OWN}))
    assert [json.loads(path.read_text())["value"] for path, _ in wanted] == [0, 0]
    monkeypatch.undo()
    real = replace._put

    def dying_at_second(room: Path, index: int, target: Path) -> None:
        if index == 1 and not monkeypatch_done:
            monkeypatch_done.append(True)
            raise KeyboardInterrupt
        real(room, index, target)

    monkeypatch_done: list[bool] = []
    monkeypatch.setattr(replace, "_put", dying_at_second)
    with pytest.raises(KeyboardInterrupt), written_together(wanted) as drafts:
        for draft in drafts:
            draft.write_text(json.dumps({"kind": "analyze", "value": 2, **OWN}))
    assert [json.loads(path.read_text())["value"] for path, _ in wanted] == [2, 2]


def test_temporary_folders_are_removed_once_their_process_is_gone(tmp_path: Path) -> None:
    with temporary("mine", tmp_path) as own:
        gone = tmp_path / f".old.seap-{rooms._host()}-4194303999-100-0.tmp"
        reused = tmp_path / f".old.seap-{rooms._host()}-{os.getpid()}-100-0.tmp"  # the number is another process's now
        elsewhere = tmp_path / ".old.seap-000000-1-100-0.tmp"
        foreign = tmp_path / ".old.tmp"
        for room in (gone, reused, elsewhere, foreign):
            (room / "new0").mkdir(parents=True)
        with claimed(tmp_path / "out", "checkpoint"):
            pass
        assert own.is_dir() and elsewhere.is_dir() and foreign.is_dir()
        assert not gone.exists() and not reused.exists()
    assert not own.exists()
