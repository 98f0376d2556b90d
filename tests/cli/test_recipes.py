"""Recipes: the same options as on a command line, checked with line numbers, run step by step, resumed and told."""

import json
import shlex
from pathlib import Path

import pytest
from toy import folder, texts_file

from seap.cli.app import app
from seap.cli.main import main
from seap.cli.recipes import as_recipe, read_recipe
from seap.cli.words import command_of, names_of_commands
from seap.errors import UserError


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model and a task in it."""
    folder(tmp_path / "dense")
    texts_file(tmp_path / "toy.txt")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def recipe(text: str) -> Path:
    Path("recipe.yaml").write_text(text)
    return Path("recipe.yaml")


STEPS = """steps:
  - calibrate: {model: dense, task: [toy=toy.txt], out: stats}
  - prune:
      model: dense
      stats: [stats/toy.safetensors]
      method: wanda-sp
      sparsity: 40%
      min-channels: 4
      out: small
"""


def test_steps_run_in_order_and_only_once(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(recipe(STEPS)), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["steps"]
    assert [step["state"] for step in found] == ["done", "done"]
    assert found[1]["result"]["target_sparsity"] == 0.4 and (here / "small" / "config.json").is_file()
    about = json.loads((here / "small" / "seap.json").read_text())
    assert about["recipe"] == {"file": "recipe.yaml", "step": 2, "content": STEPS}
    assert about["command"].startswith("seap prune dense --") and "--sparsity=40%" in about["command"]
    assert main(["run", "recipe.yaml", "--json"]) == 0
    assert [step["state"] for step in json.loads(capsys.readouterr().out)["steps"]] == ["done already"] * 2


def test_a_changed_step_and_those_after_it_run_again(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(recipe(STEPS)), "-q"]) == 0
    recipe(STEPS.replace("40%", "0.3"))
    assert main(["run", "recipe.yaml", "--json"]) == 1, "what stands there was asked to be kept"
    assert "recipe.yaml, line 9 (prune): --out small isn't empty" in capsys.readouterr().err
    assert main(["run", "recipe.yaml", "--overwrite", "--json"]) == 0
    assert [step["state"] for step in json.loads(capsys.readouterr().out)["steps"]] == ["done already", "done"]
    assert json.loads((here / "small" / "seap.json").read_text())["target_sparsity"] == 0.3


def test_an_interrupted_recipe_goes_on_where_it_stopped(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = STEPS + "  - export: {model: small, to: uniform, out: stock}\n"
    assert main(["run", str(recipe(broken)), "-q"]) == 1
    assert "recipe.yaml, line 10 (export):" in capsys.readouterr().err
    assert main(["run", str(recipe(broken.replace("uniform", "padded"))), "--json"]) == 0
    states = [step["state"] for step in json.loads(capsys.readouterr().out)["steps"]]
    assert states == ["done already", "done already", "done"]


def test_a_plan_starts_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(recipe(STEPS)), "--plan"]) == 0
    assert "1. seap calibrate dense --task=toy=toy.txt --out=stats" in capsys.readouterr().out
    assert not (here / "stats").exists() and not (here / "recipe.yaml.state.json").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("steps:\n  - prun: {model: m}\n", "line 2: unknown command 'prun'; did you mean 'prune'"),
        ("steps:\n  - prune:\n      model: m\n      sparcity: 0.5\n", "line 4: unknown option of prune 'sparcity'"),
        (
            "steps:\n  - prune:\n      model: m\n      out: o\n      sparsity: much\n",
            "line 5 (prune): Invalid value for --sparsity: got 'much', expected a number",
        ),
        ("steps:\n  - prune:\n      model: m\n      out: o\n      sparsity: 1.5\n", "line 5 (prune): --sparsity 1.5"),
        ("steps:\n  - prune:\n      model: m\n      out: o\n      effort: lots\n", "line 5 (prune):"),
        ("steps:\n  - prune:\n      model: m\n      out: [a, b]\n", "line 4 (prune): out: takes one value"),
        ("steps:\n  - prune:\n      model: m\n      out: o\n      json: maybe\n", "line 5 (prune): json: 'maybe'"),
        ("steps:\n  - prune:\n      model: m\n", "line 2 (prune):"),
        ("steps:\n  - prune:\n    model: m\n", "line 2: a step is one command"),
        ("steps:\n  - prune:\n      model: m\n      model: n\n", "line 4: model stands there twice"),
        ("steps:\n  - prune: {out: {a: {b: c}}}\n", "line 2: a value is one text"),
        ("steps: []\n", "line 1: `steps` is a list"),
        ("stops:\n  - prune: {model: m}\n", "line 2: a recipe has one entry"),
        ("steps:\n\t- prune\n", "line 2: no YAML"),
        ("", "is empty"),
        ("- a\n", "line 1: a recipe must be names with values"),
        ("steps:\n  - run: {recipe: recipe.yaml}\n", "line 2: unknown command 'run'"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(here: Path, text: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        read_recipe(recipe(text))
    assert f"recipe.yaml{' ' if said.startswith('is') else ', '}{said}" in str(refused.value)


def test_yaml_guesses_nothing(here: Path) -> None:
    text = "steps:\n  - prune: {model: no, out: 1_000, task: [on=toy.txt], seed: 010, save-dtype: null, no-verify: }\n"
    with pytest.raises(UserError, match="'no-verify'"):
        read_recipe(recipe(text))
    [step], _ = read_recipe(recipe(text.replace(", no-verify: ", ", verify: false")))
    assert step.values == {"model": "no", "out": "1_000", "task": ["on=toy.txt"], "seed": "010", "verify": False}


COMMANDS = [
    "prune dense --task toy=toy.txt --task more=toy.txt --sparsity 0.4 --out x --weights.toy 2 --no-sequential --json",
    "mask dense stats/a.safetensors stats/b.safetensors --out m.safetensors --axes channels",
    "compare dense --tasks a=toy.txt,b=toy.txt --methods flap --score wifv --allocate uniform --controls --general g",
    "corpus write dense --like toy.txt --num 3 --out t.jsonl",
    "bench dense small --batch 1 --batch 8 --mode eager",
    "route predict dense some words --router r.safetensors",
]


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_line_is_a_recipe_and_back(here: Path, line: str) -> None:
    [step], _ = read_recipe(recipe(as_recipe(shlex.split(line))))
    first, second = (app.parse_args(words, exit_on_error=False, print_error=False) for words in (line, step.words))
    assert first[0] is second[0] and first[1].arguments == second[1].arguments


def test_every_command_can_be_a_step() -> None:
    named = names_of_commands()
    assert {"prune", "compare", "sweep", "pack", "export", "corpus write", "route fit"} <= set(named)
    for name in named:
        found = command_of([*name.split(), "x"])
        assert found is not None and found[0].name == name and found[0].options


def test_a_command_is_saved_as_a_recipe_and_read_as_a_config(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "prune dense --task toy=toy.txt --method wanda-sp --sparsity 0.4 --min-channels 4 --out".split()
    assert main([*words, "one", "--save-recipe", "saved.yaml", "--json"]) == 0
    [step], _ = read_recipe(Path("saved.yaml"))
    assert (
        step.values["method"] == "wanda-sp" and step.values["task"] == ["toy=toy.txt"] and step.values["json"] is True
    )
    assert main([*words, "two", "--save-recipe", "saved.yaml"]) == 1
    assert "saved.yaml is there already" in capsys.readouterr().err and not Path("two").exists()
    Path("own.yaml").write_text("task: [toy=toy.txt]\nmethod: wanda-sp\nsparsity: 0.9\nmin-channels: 4\n")
    assert main(["prune", "dense", "--config", "own.yaml", "--sparsity", "30%", "--out", "two", "--json"]) == 0
    found = json.loads(Path("two/seap.json").read_text())
    assert found["target_sparsity"] == 0.3 and found["method"] == "wanda-sp"
    Path("own.yaml").write_text("task: [toy=toy.txt]\nmethods: flap\n")
    assert main(["prune", "dense", "--config", "own.yaml", "--out", "three"]) == 1
    assert "own.yaml, line 2: unknown option of prune 'methods'" in capsys.readouterr().err


def test_a_refused_command_leaves_no_recipe(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "prune dense --method wanda-sp --sparsity 0.4 --min-channels 4 --out one --save-recipe".split()
    assert main([*words, "saved.yaml", "--task", "toy=none.txt"]) == 1 and not Path("saved.yaml").exists()
    assert main([*words, "saved.yaml", "--task", "toy=toy.txt"]) == 0 and Path("saved.yaml").exists()
    capsys.readouterr()
