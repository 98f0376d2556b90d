"""What is released is whole: data files travel in the wheel, and one version is named everywhere."""

import re
import subprocess
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml
from paths import ROOT

import seap


def tracked(folder: str) -> list[Path]:
    done = subprocess.run(["git", "ls-files", folder], capture_output=True, text=True, cwd=ROOT)
    if done.returncode != 0 or not done.stdout:
        pytest.skip("not a git checkout")
    return [Path(name) for name in done.stdout.splitlines()]


def test_every_file_of_the_package_is_in_the_wheel() -> None:
    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    for path in tracked("seap"):
        patterns = named.get(".".join(path.parent.parts), [])
        assert path.suffix == ".py" or any(fnmatch(path.name, pattern) for pattern in patterns), path


def test_one_version_is_named_everywhere() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+)?", seap.__version__)
    changes = re.findall(r"^## (\S+)(?: \((.*)\))?$", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    versions = [name for name, _ in changes if name != "Unreleased"]
    assert versions[0] == seap.__version__ and versions == sorted(versions, reverse=True)
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == seap.__version__
