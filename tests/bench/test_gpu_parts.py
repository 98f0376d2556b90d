"""Each part of runs/speed/gpu.sh writes its own file; one of them runs here, on a CPU with a tiny shape."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from paths import ROOT
from tiny import model

from seap.bench.profile import library, linear_rates, profile_phase

SCRIPT = [sys.executable, str(ROOT / "runs/speed/gpu.py")]


def run(*words: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*SCRIPT, *words], capture_output=True, text=True, env=environment, check=True)
    return done.stdout


def test_a_part_runs_and_leaves_its_file(tmp_path: Path) -> None:
    run("8b_20", "--device", "cpu", "--shape", "llama:0.002b", "--quick", "--out", str(tmp_path))
    found = json.loads((tmp_path / "gpu_8b_20.json").read_text())
    assert found["part"] == "8b_20" and found["options"]["sparsity"] == 0.2
    assert {(row["phase"], row["batch"]) for row in found["rows"]} == {
        (phase, batch) for phase in ("prefill", "decode") for batch in (1, 8)
    }
    short = [r for r in found["rows"] if r["ratio"] < {"decode": 0.95, "prefill": 0.9}[r["phase"]] * r["ceiling"]]
    assert len(found["profiles"]) == 2 * len(short)
    assert all(profile["kernels"] for profile in found["profiles"])
    assert {rate["model"] for rate in found["linears"]} == {"dense", "pruned"}


def test_the_most_telling_parts_come_first() -> None:
    parts = run("--list").split()
    assert parts[:2] == ["7b_50", "8b_50"] and parts[-1] == "nccl"
    assert parts.index("8b_50") < parts.index("7b_calibration") < parts.index("13b_50")


def test_a_profile_says_where_the_time_goes() -> None:
    net = model("llama")
    found = profile_phase(net, "decode", batch=2, length=6)
    assert found["milliseconds"] > 0 and 0 < sum(kernel["share"] for kernel in found["kernels"]) <= 1 + 1e-9
    assert any("mm" in kernel["name"] or "linear" in kernel["name"] for kernel in found["kernels"])
    rates = linear_rates(net, batch=2)
    assert {(rate["outputs"], rate["inputs"]) for rate in rates} >= {(40, 24), (24, 40)}


def test_the_library_is_named() -> None:
    cpu = torch.device("cpu")
    assert library(cpu, torch.float32, "prepacked") == "oneDNN, weights prepacked"
    assert library(cpu, torch.float32, "eager") != library(cpu, torch.float32, "prepacked")
    assert "cuBLAS" in library(torch.device("cuda"), torch.bfloat16, "eager")
