"""The command line as a user types it: JSON on standard output, everything else on standard error, exit codes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from toy import folder, texts_file

import seap
from seap.cli.app import expanded
from seap.cli.main import app, main
from seap.errors import UserError
from seap.methods import METHODS
from seap.selection.options import Pruning

COMMANDS = [
    *"prune calibrate mask merge eval compare sweep analyze report inspect explore diff".split(),
    *"tasks demo export check push".split(),
    "corpus write",
]


@pytest.fixture
def dense(tmp_path: Path) -> str:
    return str(folder(tmp_path / "dense"))


@pytest.fixture
def task(tmp_path: Path) -> str:
    return f"toy={texts_file(tmp_path / 'toy.txt')}"


def test_prune_prints_one_json_object(
    dense: str, task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    assert (
        main(["prune", dense, "--task", task, "--sparsity", "0.4", "--min-channels", "4", "--out", out, "--json"]) == 0
    )
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert printed.err == ""
    assert report["target_sparsity"] == 0.4 and abs(report["realised_sparsity"] - 0.4) < 0.01
    assert report["params_after"] < report["params_before"] and 0 < report["total_sparsity"] < 0.4
    assert [set(layer) for layer in report["layers"]] == [{"kv_groups", "channels"}] * 3
    assert report["seconds"] > 0 and report["out"] == out and report["num_tokens"] > 100


def test_prune_tells_people_what_it_did(
    dense: str, task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--sparsity", "0.4", "--min-channels", "4", "--allocate", "uniform", "--logistic-k", "2"]
    assert main(["prune", dense, "--task", task, *arguments, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    assert "of the prunable parameters, asked 0.4" in printed.out and "kv groups" in printed.out
    assert "note: --logistic-k has no effect" in printed.err


def test_a_folder_of_results_is_told_by_its_files(
    dense: str, task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stats = tmp_path / "stats"
    assert main(["calibrate", dense, "--task", task, "--out", str(stats), "-q"]) == 0
    (stats / "note.txt").write_text("mine")
    capsys.readouterr()
    assert main(["inspect", str(stats), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"] == {"toy.safetensors": "stats"}
    assert main(["inspect", str(stats)]) == 0
    assert f"seap inspect {stats / 'toy.safetensors'} explains" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    assert main(["inspect", str(tmp_path / "empty")]) == 1
    assert "no config.json" in capsys.readouterr().err


def test_the_stages_one_by_one(dense: str, task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stats, mask, out = str(tmp_path / "stats"), str(tmp_path / "mask.safetensors"), str(tmp_path / "out")
    statistics = f"{stats}/toy.safetensors"
    assert main(["calibrate", dense, "--task", task, "--out", stats, "--json"]) == 0
    [made] = json.loads(capsys.readouterr().out)["files"]
    assert made["path"] == statistics and not made["skipped"]
    assert main(["calibrate", dense, "--task", task, "--out", stats]) == 0
    assert "was there already" in capsys.readouterr().out
    assert main(["mask", dense, statistics, "--sparsity", "0.4", "--min-channels", "4", "--out", mask, "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert abs(about["realised_sparsity"] - 0.4) < 0.01
    assert main(["prune", dense, "--mask-file", mask, "--stats", statistics, "--out", out, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["realised_sparsity"] == about["realised_sparsity"] and report["target_sparsity"] == 0.4
    for path, kind in ((statistics, "stats"), (mask, "mask"), (out, "pruned checkpoint"), (dense, "dense model")):
        assert main(["inspect", path, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["kind"] == kind and len(found["layers"]) == 3
        assert main(["inspect", path]) == 0
        assert "kv groups" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["prune", "M", "--task", "t", "--out", "o", "--sparsity", "1.5"], 1, "--sparsity 1.5: must be at least 0"),
        (["prune", "M", "--task", "gsm8q", "--out", "o"], 1, "did you mean 'gsm8k'"),
        (["prune", "no/such/model", "--out", "o", "--method", "random"], 1, "can't load model 'no/such/model'"),
        (["prune", "M", "--out", "o", "--method", "seab"], 1, "did you mean 'seap'"),
        (["inspect", "nowhere"], 1, "no such file or folder: nowhere"),
        (["mask", "builtin", "--out", "m.safetensors"], 1, "needs statistics"),
        (["prune", "M", "--out", "o", "--spasity", "0.5"], 1, "Did you mean"),
        (
            ["prune", "M", "--out", "o", "--sparsity", "half"],
            1,
            "--sparsity: got 'half', expected a number from 0 to 1",
        ),
        (["prune", "M", "--out", "o", "--effort", "lots"], 1, "lots"),
        (["prune", "--out", "o"], 1, "seap prune needs MODEL; seap prune --help says what it is"),
        (["prune", "M", "--task", "t"], 1, "seap prune needs --out; seap prune --help"),
        (["prune", "M", "--out"], 1, "--out needs a value; seap prune --help"),
        (["prune", "M", "--sparsty", "0.5"], 1, "needs --out (and has no option --sparsty)"),
        (["frobnicate"], 1, "seap --help lists them"),
        (["corpus", "write", "M"], 1, "seap corpus write needs --out"),
        (["prun"], 1, "prune"),
        (["prune", "./nope", "--out", "o", "--method", "random"], 1, "can't load model './nope': no such folder"),
        (["prune", "M", "--config"], 1, "--config needs a file"),
        (["prune", "M", "--out", "o", "--config", "none.yaml"], 1, "none.yaml can't be read"),
        (["run", "none.yaml"], 1, "none.yaml can't be read"),
        (["prune", "M", "--task", "t=~nobody-here/x.jsonl", "--out", "o"], 1, "~nobody-here/x.jsonl doesn't exist"),
        (["prune", "builtin", "--task", "facts", "--task", "facts", "--out", "o"], 1, "two tasks have one name"),
        (["calibrate", "builtin", "--task", "facts", "--task", "facts", "--out", "o"], 1, "two tasks have one name"),
    ],
)
def test_mistakes_get_one_line_and_an_exit_code(arguments: list[str], code: int, message: str, tmp_path: Path) -> None:
    run = [sys.executable, "-m", "seap", *arguments]
    done = subprocess.run(run, capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    assert done.returncode == code, done.stderr
    assert message in done.stderr and "Traceback" not in done.stderr and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_and_defaults(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert f"seap {command}" in text and "Example" in text


def test_help_imports_nothing_heavy() -> None:
    program = "import sys; from seap.cli.main import main; main(['--help']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("False")


def test_the_stages_import_transformers_where_they_use_it() -> None:
    program = "import sys; import seap.pruning, seap.evidence.sweep, seap.bench; print('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("False")


def test_methods_are_listed_with_what_they_choose(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["shortgpt"]["allocate"] == "whole-layers" and found["gisp"]["paper"] == "arXiv 2510.18030"
    assert main(["methods"]) == 0
    told = capsys.readouterr().out
    assert all(name in told for name in found)


def test_tasks_lists_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks", "--json"]) == 0
    named = json.loads(capsys.readouterr().out)
    assert "gsm8k" in named["hub"] and len(named["builtin"]) >= 8


def test_what_a_preset_turns_on_can_be_turned_off() -> None:
    words = ["prune", "builtin", "--task", "arithmetic", "--out", "x"]
    for more, expected in (([], None), (["--no-sequential"], False), (["--sequential"], True)):
        _, bound, _ = app.parse_args([*words, *more], exit_on_error=False, print_error=False)
        chosen = bound.arguments.get("pruning", Pruning())
        assert chosen.sequential is expected
        assert chosen.resolved().sequential is (expected is not False)


def test_every_method_is_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prune", "--help"]) == 0
    words = "".join(capsys.readouterr().out.replace("│", "").split())
    assert ",".join(METHODS) in words


@pytest.mark.parametrize("written", ["0.5", "50%", "50 %"])
def test_a_share_is_written_as_people_do(written: str) -> None:
    words = ["prune", "builtin", "--task", "arithmetic", "--out", "x", "--sparsity", written, "--confidence", "90%"]
    _, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
    assert bound.arguments["pruning"].sparsity == 0.5 and bound.arguments["promise"].confidence == 0.9
    assert Pruning(sparsity=written).sparsity == 0.5  # type: ignore[arg-type]


def test_comparisons_and_sweeps_take_what_prune_takes() -> None:
    more = [
        "--score",
        "wifv",
        "--allocate",
        "uniform",
        "--compensate",
        "bias",
        "--round-to",
        "8",
        "--min-channels",
        "4",
    ]
    for words in (["compare", "builtin", "--tasks", "arithmetic"], ["sweep", "builtin", "--task", "arithmetic"]):
        _, bound, _ = app.parse_args([*words, *more], exit_on_error=False, print_error=False)
        assert (bound.arguments["choices"].score, bound.arguments["choices"].round_to) == ("wifv", 8)


def test_what_most_need_comes_first_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prune", "--help"]) == 0
    text = capsys.readouterr().out
    places = [text.index(name) for name in ("What is removed", "Calibration text", "In detail")]
    assert places == sorted(places)
    assert places[0] < text.index("--sparsity FLOAT") < places[1] < text.index("--num-texts")
    assert places[2] < text.index("--logistic-k")
    assert len(text.splitlines()) < 100 and "Steepness" not in text, "expert options are named, not explained"
    assert main(["prune", "--help-all"]) == 0
    whole = capsys.readouterr().out
    assert "Steepness" in whole
    names = {word for word in text.split() if word.startswith("--")}
    assert names >= {word for word in whole.split() if word.startswith("--") and word.strip("-").isalpha()}
    assert main(["prune", "--help"]) == 0 and capsys.readouterr().out == text


def test_quiet_says_nothing_but_results(
    dense: str, task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--sparsity", "0.4", "--min-channels", "4", "--allocate", "uniform", "--logistic-k", "2", "-q"]
    assert main(["prune", dense, "--task", task, *arguments, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    assert printed.err == "" and "saved" in printed.out


def test_home_is_put_where_a_path_begins_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    given = ["~/x", "--out=~/x", "~", "~50 questions about ~/x", "~nobody-here/x", "--about=~50 questions"]
    assert [expanded(word) for word in given] == ["/home/me/x", "--out=/home/me/x", "/home/me", *given[3:]]


def test_what_has_no_effect_is_said(dense: str, task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--harness-limit", "3", "--say", "listed", "--program-seconds", "3", "--num-items", "4", "--window", "16"]
    assert main(["eval", dense, "--task", task, *more]) == 0
    told = capsys.readouterr().err
    for option, why in {
        "harness-limit": "harness",
        "say": "say-items",
        "program-seconds": "run-generated-code",
    }.items():
        assert f"--{option} has no effect without --{why}" in told
    small = ["--min-channels", "4", "--compensate", "none", "--method", "wanda-sp"]
    assert main(["prune", dense, "--task", task, *small, "--sparsity", "0.4", "--out", str(tmp_path / "one")]) == 0
    mask = ["--mask-file", str(tmp_path / "one" / "seap" / "mask.safetensors"), "--out"]
    capsys.readouterr()
    assert main(["prune", dense, *mask, str(tmp_path / "two"), "--sparsity", "0.5"]) == 1
    assert "--sparsity 0.5 has no effect with --mask-file" in capsys.readouterr().err
    assert main(["prune", dense, *mask, str(tmp_path / "two"), "--sparsity", "0.4"]) == 0
    packed = ["pack", dense, f"o={tmp_path / 'one'}", "--out", str(tmp_path / "tasks"), "--num-texts", "3"]
    assert main(packed) == 0
    assert "--num-texts has no effect without --task" in capsys.readouterr().err


def test_a_task_in_python_has_a_name(task: str) -> None:
    with pytest.raises(UserError, match=r"task toy.txt: a task has a name; .* such as toy=toy.txt"):
        seap.prune(tiny.model(), object(), task=Path("toy.txt"))  # type: ignore[arg-type]
