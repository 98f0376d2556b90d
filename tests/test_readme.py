"""README and docs say what is so: the tree is that on disk, commands parse. Figures: test_figures.py."""

import ast
import importlib
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
from guide import commands
from paths import ROOT

from seap.cli.globals import Globals
from seap.cli.main import app
from seap.methods import METHODS

README = (ROOT / "README.md").read_text()
USAGE = (ROOT / "docs" / "usage.md").read_text()


COMMANDS = commands(ROOT / "docs" / "usage.md")


def tracked() -> list[str]:
    done = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT)
    if done.returncode != 0 or not done.stdout:
        pytest.skip("not a git checkout")
    return done.stdout.splitlines()


def test_the_tree_names_every_room_in_the_order_of_the_imports() -> None:
    tree = README.split("## Tree")[1].split("```")[1]
    rooms = re.findall(r"^  ([a-z]+)/ ", tree, flags=re.MULTILINE)
    assert set(rooms) == {name.split("/")[1] for name in tracked() if re.match(r"seap/\w+/", name)}
    layers = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]["layers"]
    assert rooms == [layer for layer in reversed(layers) if layer in rooms]
    folders = {line.split("/")[0] for line in tree.splitlines() if re.match(r"[a-z]+/", line)}
    assert folders == {name.split("/")[0] for name in tracked() if "/" in name and not name.startswith(".")}


ROOMS = sorted(path.parent for path in (ROOT / "seap").rglob("__init__.py"))


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: str(room.relative_to(ROOT)))
def test_a_room_says_what_it_is_and_names_files_that_are_there(room: Path) -> None:
    told = ast.get_docstring(ast.parse((room / "__init__.py").read_text())) or ""
    assert told.count("\n") >= 2
    named = {name for name in re.findall(r"`([\w/]+\.(?:py|html))`", told)}
    assert all((room / name).is_file() or (ROOT / "seap" / name).is_file() for name in named), named


@pytest.mark.parametrize("folder", ["runs", "results", "results/archive"])
def test_every_script_and_every_result_has_its_line(folder: str) -> None:
    lines = (ROOT / folder / "README.md").read_text().splitlines()
    named = [found[1] for line in lines if (found := re.match(r"\| `(\w+\.\w+)` \|", line))]
    kept = "" if folder == "results/archive" else r"(?:(?!archive/)\w+/)?"
    files = [name for name in tracked() if re.fullmatch(rf"{folder}/{kept}\w+\.(?!md$)\w+", name)]
    assert {Path(name).name for name in files} <= set(named) and len(named) == len(set(named))
    assert all(list((ROOT / folder).rglob(name)) for name in named)


def test_scripts_ask_the_package_for_what_it_has() -> None:
    """Most scripts take too long to be run by a test; what they import is looked up at least."""
    asked = {
        (node.module, alias.name, name)
        for name in tracked()
        if re.fullmatch(r"(runs|examples)/.*\.py", name)
        for node in ast.walk(ast.parse((ROOT / name).read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "seap"
        for alias in node.names
    }
    assert len(asked) > 100
    for module, wanted, name in sorted(asked):
        found = importlib.import_module(module)
        is_module = hasattr(found, "__path__") and importlib.util.find_spec(f"{module}.{wanted}")
        assert hasattr(found, wanted) or is_module, f"{name}: there is no {wanted} in {module}"


def test_the_table_of_methods_is_that_of_the_code() -> None:
    table = USAGE.split("| `--method` |")[1].split("\n\n")[0].splitlines()
    for name, method in METHODS.items():
        row = next(line for line in table if re.match(rf"\| .*`{name}`", line))
        assert method.allocate in row and (method.compensate in row or method.compensate == "none")
        assert f"`{method.score}`" in row or method.score in ("magnitude", "random")


def test_there_are_commands() -> None:
    named = "prune inspect calibrate mask merge corpus eval compare sweep analyze report".split()
    assert {command.split()[1] for command in COMMANDS} >= set(named)


@pytest.mark.parametrize("command", [*commands(ROOT / "README.md"), *COMMANDS])
def test_every_command_parses(command: str) -> None:
    words = Globals.of(shlex.split(command)[1:]).words
    chosen, _, _ = app.parse_args(words, exit_on_error=False, print_error=False)
    assert chosen.__name__.removesuffix("uate") in command.split()[1:3]
