"""README and docs say what is so: the tree is that on disk, commands parse, figures are those measured."""

import ast
import importlib
import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from statistics import fmean

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


def test_the_numbers_of_the_engines_are_those_measured() -> None:
    page = (ROOT / "docs" / "deploy.md").read_text()
    found = json.loads((ROOT / "results" / "engines" / "engines_natural.json").read_text())
    for row in found["rows"]:
        [line] = [line for line in page.splitlines() if line.startswith(f"| `{row.get('quantize') or row['weights']}`")]
        cells = [cell.strip() for cell in line.split("|")[2:5]]
        size, difference = f"{row['bytes'] / 1e6:.1f} MB", f"{row['largest_difference']:.2g}"
        assert cells == [size, difference, f"{row['same_greedy']} of {found['texts']}"]
        assert row["same_tokens"] == found["texts"]
    loss = {name: part["loss"] for name, part in found["loss"].items()}
    for name in ("search", "one-width"):
        assert f"{loss[name] - loss['dense']:.3f}" in page


def test_the_numbers_of_quantized_models_are_those_measured() -> None:
    page = (ROOT / "docs" / "findings.md").read_text().split("## Quantized")[1].split("\n## ")[0]
    found = json.loads((ROOT / "results" / "quality" / "quantized.json").read_text())
    means = {(row["engine"], row["weights"], row["network"]): row for row in found["natural"]["means"]}
    lines = [line.split("|")[1:-1] for line in page.splitlines() if re.match(r"\| .*MB: \d\.\d{3} \|$", line)]
    assert len(lines) == 9
    for label, *cells in lines:
        *engine, weights = label.replace("16 bits", "torchao bf16").split()
        for network, cell in zip(("dense", "25%", "50%"), cells, strict=True):
            row = means[engine[0], weights, network]
            assert cell.strip() == f"{row['layer_bytes'] / 1e6:.2f} MB: {abs(row['added_loss']):.3f}"
    for pair in found["natural"]["equal_bytes"]:
        told = [sum(pair[name]) / pair["of"] for name in ("dense in low", "pruned in high")]
        end = f"| {told[0]:.3f} | {told[1]:.3f} | {pair['pruned is better on']} of 3"
        assert f"{pair['engine']}: dense {pair['low']}, pruned {pair['high']} {end}" in page


def test_half_of_the_bytes_costs_what_was_measured() -> None:
    """README's sentence, and the rows of findings.md that it is of."""
    rows = json.loads((ROOT / "results" / "quality" / "equal_bytes.json").read_text())["rows"]
    added: dict[tuple[str, str, str], float] = {}
    for row in rows:  # the first of a key is the one in use
        if row["effort"] == "quick" and "refused" not in row:
            added.setdefault((row["model"].split("-")[0], row["task"], row["axes"]), row["nats_per_byte_added"])
    told = re.search(
        r"Gemma-3-270M cost (0\.\d+) nats.*?Coder-0.5B's (0\.\d+) on GSM8K and (0\.\d+) on\s+MBPP"
        r".*?cost (0\.\d+)\s+and (0\.\d+)",
        README,
        re.DOTALL,
    )
    assert told is not None
    assert float(told[1]) == pytest.approx(added["gemma", "piqa", "vocabulary"], abs=6e-4)
    assert float(told[1]) == pytest.approx(added["gemma", "arc_easy", "vocabulary"], abs=6e-4)
    qwen = [added["qwen2.5", task, axes] for axes in ("vocabulary", "layers") for task in ("gsm8k", "mbpp")]
    assert [float(one) for one in told.groups()[1:]] == pytest.approx(qwen, abs=6e-3)
    assert [float(one) for one in told.groups()[1:3]] == pytest.approx(qwen[:2], abs=6e-4)
    findings = (ROOT / "docs" / "findings.md").read_text().split("## Half of the bytes")[1].split("\n## ")[0]
    names = {"SmolLM2, ARC-Easy": ("smollm2", "arc_easy"), "SmolLM2, GSM8K": ("smollm2", "gsm8k")}
    names |= {"Qwen2.5-Coder, GSM8K": ("qwen2.5", "gsm8k"), "Qwen2.5-Coder, MBPP": ("qwen2.5", "mbpp")}
    for name, key in names.items():
        cells = re.search(rf"^\| {re.escape(name)}, `quick` \|(.*)\|$", findings, re.MULTILINE)
        assert cells is not None
        shown = [re.search(r"\d\.\d+", cell) for cell in cells[1].split("|")]
        for axes, found in zip(("layers", "heads", "drop", "vocabulary"), shown, strict=False):
            if (*key, axes) in added:
                assert found and float(found[0]) == pytest.approx(added[*key, axes], abs=6e-4), (name, axes)


@pytest.mark.parametrize(
    ("file", "model", "task", "begins", "ends"),
    [
        ("real_gemma", "gemma3", "arc_easy", "Gemma-3-270M (pretrained", "\n## "),
        ("real_asked_gemma", "gemma", "arc_easy", "Gemma-3-270M, ARC-Easy, by the same", "\n\n`seap` adds"),
    ],
)
def test_rows_of_public_models_are_those_measured(file: str, model: str, task: str, begins: str, ends: str) -> None:
    cells = json.loads((ROOT / "results" / "quality" / f"{file}.json").read_text())["cells"]
    cells = [one for one in cells if (one["model"], one["task"]) == (model, task)]
    findings = (ROOT / "docs" / "findings.md").read_text().split(begins)[1].split(ends)[0]
    rows = re.findall(ROW, findings, re.MULTILINE)
    assert {(float(share) / 100, method) for share, method, _ in rows} == {
        (cell["target_sparsity"], cell["method"]) for cell in cells
    }
    for share, method, told in rows:
        [cell] = [one for one in cells if (one["method"], one["target_sparsity"]) == (method, float(share) / 100)]
        places = {"added_loss": 2, "added_loss_stderr": 2, "kl": 2, "acc": 1, "acc_norm": 1, "said": 1, "loops": 1}
        names = places if "loop" in findings.split("\n|---")[0] else [name for name in places if name != "loops"]
        known = [n for n in names if cell.get(n) is not None and (n, method) != ("kl", "dense")]
        expected = [round(cell[n] * 100 ** (places[n] == 1), 6) for n in known]
        assert_shown(told, expected)


TOLD = ("added_loss", "acc", "acc_norm", "said")
ROW = r"^\| (\d+)% \| [*`]*([\w-]+)[*`]* \| (.*) \|$"


def assert_shown(told: str, wanted: list[float]) -> None:
    """Every decimal number of `told`, in order, is the one wanted, to the places it is shown with."""
    shown = re.findall(r"\d+\.\d+", told)
    for number, value in zip(shown, wanted, strict=True):
        assert abs(float(number) - round(value, 6)) <= 0.501 * 10.0 ** -len(number.split(".")[1]), (told, number, value)


def test_what_is_asked_as_tests_ask_is_what_was_measured() -> None:
    """The rows of findings.md, each over the draws that there are."""
    found = json.loads((ROOT / "results" / "quality" / "real_asked.json").read_text())
    draws: dict[tuple[str, str, float], list[dict[str, float]]] = {}
    for one in found["cells"]:
        draws.setdefault((one["task"], one["method"], one["target_sparsity"]), []).append(one)
    findings = (ROOT / "docs" / "findings.md").read_text().split("**As tests ask.**")[1].split("\n\nGemma")[0]
    rows = re.findall(ROW, findings, re.MULTILINE)
    assert len(rows) == len({(method, share) for _, method, share in draws})
    for share, method, told in rows:
        keys = [(task, method, int(share) / 100) for task in ("arc_easy", "piqa", "hellaswag")]
        own = [{name: fmean(one.get(name) or 0 for one in draws[key]) for name in TOLD} for key in keys if key in draws]
        wanted = [one["added_loss"] for one in own if method != "dense"]
        wanted += [100 * one[name] for one in own for name in ("acc", "acc_norm")]
        assert_shown(told, [*wanted, 100 * fmean(one["said"] for one in own)])


@pytest.mark.parametrize(
    ("file", "begins"), [("asked", "SmolLM2-135M-Instruct: mean"), ("asked_gemma", "Gemma-3-270M:")]
)
def test_the_first_screen_is_what_was_measured(file: str, begins: str) -> None:
    means = json.loads((ROOT / "results" / "quality" / f"real_{file}.json").read_text())["means"]
    table = README.split(f"| {begins}")[1].split("\n\n")[0]
    rows = re.findall(r"^\| [*`]*([\w-]+)[*`]*(?: \([a-z ]+\))? \| (\d+)% \| (.*) \|$", table, re.MULTILINE)
    assert {("seap", "20"), ("seap", "50"), ("flap", "20"), ("flap", "50")} <= {row[:2] for row in rows}
    for method, share, told in rows:
        [one] = [one for one in means if (one["method"], one["sparsity"]) == (method, int(share) / 100)]
        assert_shown(told, [one["added_loss"], one["added_loss_stderr"], one["kl"], *(100 * one[n] for n in TOLD[1:])])


def test_how_far_a_network_keeps_what_dense_answers_is_what_was_measured() -> None:
    keeps = json.loads((ROOT / "results" / "quality" / "real_asked.json").read_text())["keeps"]
    kept = {(one["method"], one["by"]): [100 * one[name]["sparsity"] for name in ("95%", "90%")] for one in keeps}
    told = re.search(
        r"keeps 95% up to a sparsity of (\d+)% and 90% up to (\d+)% .*?, (\d+) and (\d+)%\).*?95% up to (\d+)%", README
    )
    assert told is not None
    wanted = [*kept["seap", "choice"], *kept["seap-paper", "choice"], kept["seap", "generation"][0]]
    assert [int(one) for one in told.groups()] == pytest.approx(wanted, abs=0.51)


def test_ifeval_is_what_was_measured() -> None:
    rows = json.loads((ROOT / "results" / "quality" / "ifeval.json").read_text())["rows"]
    findings = (ROOT / "docs" / "findings.md").read_text().split("**Doing as it is told.**")[1].split("Gemma-3-270M")[0]
    names = [f"{what}_level_{how}_acc" for what in ("prompt", "inst") for how in ("strict", "loose")]
    for row in rows:
        told = re.search(rf"^\| [*`]*{row['method']}[*`]*.*?\| (.*) \|$", findings, re.MULTILINE)
        assert told is not None
        assert re.findall(r"\d+\.\d", told[1]) == [f"{100 * row[name]:.1f}" for name in names]
    strict = [f"{100 * row[names[0]]:.1f}" for row in rows]  # dense, seap, flap
    assert f"follows {strict[1]}% (dense {strict[0]}, FLAP {strict[2]};" in README
