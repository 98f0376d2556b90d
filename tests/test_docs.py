"""Every page's commands and snippets parse (test_guide.py runs them), the notebook runs, and the site builds."""

import ast
import importlib
import json
import re
import shlex
import subprocess
import sys
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from pprint import pformat
from typing import Any

import pytest
import yaml
from guide import PAGES as EVERY_PAGE
from guide import commands, name_of, snippets
from paths import ROOT
from toy import TEXTS, folder

from seap.cli.globals import GLOBALS, Globals
from seap.cli.main import app, main
from seap.cli.recipes import read_recipe
from seap.cli.words import Command, names_of_commands

PAGES = [page for page in EVERY_PAGE if page.name != "README.md"]
MADE = {"reference/commands.md", "howto/first_prune_notebook.md", "changelog.md"}  # by docs/reference/hooks.py


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_commands_parse_and_the_snippets_compile(page: Path) -> None:
    for command in commands(page):
        words = Globals.of(shlex.split(command)[1:]).words
        if "--shape" not in words:
            app.parse_args(words, exit_on_error=False, print_error=False)
    for snippet in snippets(page, "python"):
        ast.parse(snippet)


OF_OTHER_PROGRAMS = set(  # that pages and messages name
    "--tensor-parallel-size --pipeline-parallel-size --nproc-per-node --apply_chat_template --model_args "
    "--include_path --model --prompt --merge --always --dirty --exclude --option".split()
)
OF_SCRIPTS = set("--replicas --shape --streamed".split())  # in runs/
OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*")
SOURCES = sorted((ROOT / "seap").rglob("*.py"))


@lru_cache
def options() -> set[str]:
    """Every option of every command, and those that all of them take."""
    named = [option for name in [*names_of_commands(), "run"] for option in Command(name).options.values()]
    flags = {flag for option in named for flag in (option.flag, option.negative) if flag}
    return flags | set(OPTION.findall(GLOBALS)) | {"--help", "--version", "--install-completion"}


@pytest.mark.parametrize("page", [*EVERY_PAGE, ROOT / "CHANGELOG.md"], ids=name_of)
def test_an_option_that_a_page_names_is_there(page: Path) -> None:
    named = set() if page.name == "LOG.md" else set(OPTION.findall(page.read_text()))
    assert named <= options() | OF_OTHER_PROGRAMS | OF_SCRIPTS


def test_an_option_that_a_message_names_is_there() -> None:
    named = {path: set(OPTION.findall(path.read_text())) - options() - OF_OTHER_PROGRAMS for path in SOURCES}
    assert not {name_of(path): wrong for path, wrong in named.items() if wrong}


def test_every_environment_variable_that_is_read_is_told() -> None:
    texts = [text for path in SOURCES if "environ" in (text := path.read_text()) and path.name != "programs.py"]
    named = {name for text in texts for name in re.findall(r'"([A-Z]{2,}_[A-Z_]+)"', text)}
    page = (ROOT / "docs" / "reference" / "settings.md").read_text()
    assert {"SEAP_API_KEY", "WORLD_SIZE", "KMP_BLOCKTIME"} <= named
    assert not {name for name in named if name.rstrip("_") not in page}


def test_the_recipe_of_the_page_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, _ = snippets(ROOT / "docs" / "howto" / "recipes.md", "yaml")
    (tmp_path / "recipe.yaml").write_text(text)
    steps, _ = read_recipe(tmp_path / "recipe.yaml")
    assert [step.command.name for step in steps] == ["calibrate", "prune", "compare", "export"]


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft's
def test_fine_tuning_after_pruning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("peft", reason="needs peft (pip install peft)")
    monkeypatch.chdir(tmp_path)
    folder(Path("my-model"), intermediate_size=120)
    Path("tickets.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    given = ["--task", "tickets=tickets.jsonl", "--min-channels", "4", "--method", "wanda-sp"]
    assert main(["prune", "my-model", *given, "--out", "small"]) == 0
    page = ROOT / "docs" / "howto" / "after_pruning.md"
    [snippet] = snippets(page, "python")
    exec(snippet, {})
    for command in commands(page):
        words = shlex.split(command)[1:]
        words += ["--metric", "loss"] if words[0] == "eval" else []  # the toy's texts are short
        if "--provenance" in words:
            assert json.loads(Path("tuned/seap.json").read_text())["saved_again"] is True
            Path("tuned/seap.json").unlink()
        if words[0] != "export":  # the toy's tokenizer is none that llama.cpp knows
            assert main(words) == 0, command
    assert not Path("tuned/seap.json").exists(), "a folder without it went up"


NOTEBOOK = ROOT / "examples" / "first_prune.ipynb"


def code_cells() -> list[dict[str, Any]]:
    return [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]


def form(value: str) -> list[str]:
    """Of HTML its tags, of other text how many lines."""
    return re.findall(r"</?\w+", value) or [str(value.strip().count("\n"))]


def stored(cell: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """What a cell shows, as it is stored: kinds and forms, not numbers and pictures."""
    found = []
    for output in cell["outputs"]:
        [(kind, text)] = output.get("data", {output.get("name"): output.get("text", [])}).items()
        found.append((kind, [] if kind == "image/png" else form("".join(text))))
    return found


def shown_as(shown: Any, printed: str) -> list[tuple[str, list[str]]]:
    """The same of what a cell showed just now."""
    found = [("stdout", form(printed))] if printed else []
    if type(shown).__name__ == "Figure":
        return [*found, ("image/png", [])]
    if hasattr(shown, "_repr_html_"):
        return [*found, ("text/html", form(shown._repr_html_()))]
    return [*found, ("text/plain", form(pformat(shown, width=79)))] if shown is not None else found


def test_the_notebook_runs_and_shows_what_is_stored_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for cell in code_cells():
        shown = None
        lines = [line for line in "".join(cell["source"]).splitlines() if not line.startswith("%")]
        tree = ast.parse("\n".join(lines))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "cell", "exec"), names)
        if isinstance(last, ast.Expr):
            shown = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
            assert repr(shown) and (not hasattr(shown, "_repr_html_") or shown._repr_html_() != "")
        assert shown_as(shown, capsys.readouterr().out) == stored(cell), cell["source"]
    assert Path("small/seap.json").is_file() and Path("comparison/compare.json").is_file()


def test_what_the_notebook_shows_is_fit_to_be_read() -> None:
    """Made by runs/pages/notebook.py: in one go from the top, without errors, and of no machine in particular."""
    assert NOTEBOOK.stat().st_size < 300_000
    cells = code_cells()
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"execute_result", "display_data", "stream"}
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3
    told = [text for output in outputs for kind, text in (output.get("data") or output).items() if kind != "image/png"]
    assert not re.search(r"/(home|root|tmp|work|Users|usr|opt|var)/|[A-Z]:\\\\", json.dumps(told))


def test_the_tables_of_costs_are_those_of_the_results() -> None:
    script = str(ROOT / "runs" / "pages" / "cost_page.py")
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, f"docs/cost.md is of other results; run {script} {done.stderr}"


def test_every_page_is_in_the_site() -> None:
    named = set(re.findall(r"[\w/]+\.md", (ROOT / "mkdocs.yml").read_text()))
    assert {str(page.relative_to(ROOT / "docs")) for page in PAGES} | MADE == named


def test_links_lead_to_pages_and_places_that_are_there() -> None:
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        for place in re.findall(r"\]\(([^)#:]+)?(?:#[\w-]+)?\)", text):
            if place and Path(place).name not in {Path(made).name for made in MADE}:
                assert (page.parent / place).exists(), f"{page}: {place}"


def test_the_issue_forms_are_yaml() -> None:
    for form in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        assert yaml.safe_load(form.read_text())


def test_a_notebook_is_a_page_with_what_its_cells_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "reference"))
    outputs = [
        {"data": {"text/html": ["<table>1</table>"], "text/plain": ["1"]}},
        {"data": {"image/png": "iVBO"}},
        {"name": "stderr", "text": ["noise"]},
        {"name": "stdout", "text": ["a < b"]},
    ]
    cells = [{"cell_type": "markdown", "source": ["# Title"]}]
    cells += [{"cell_type": "code", "source": ["x = 1\n", "x"], "outputs": outputs}]  # type: ignore[dict-item]
    (tmp_path / "one.ipynb").write_text(json.dumps({"cells": cells}))
    parts = importlib.import_module("hooks").notebook(tmp_path / "one.ipynb").strip().split("\n\n")
    shown = ["<table>1</table>", '<img alt="" src="data:image/png;base64,iVBO">', "<pre>a &lt; b</pre>"]
    assert parts == ["# Title", "```python\nx = 1\nx\n```", *shown]


@pytest.mark.skipif(find_spec("mkdocs") is None or find_spec("mkdocstrings") is None, reason="needs seap[docs]")
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(build, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    shown = (tmp_path / "site" / "reference" / "commands.html").read_text()
    assert "--sparsity" in shown and "seap corpus write" in shown
    notebook = (tmp_path / "site" / "howto" / "first_prune_notebook.html").read_text()
    assert "What did it cost?" in notebook and "effort" in notebook
    python = (tmp_path / "site" / "reference" / "python.html").read_text()
    assert "Prune a model in place" in python
