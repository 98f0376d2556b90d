"""Figures that README and docs tell are those that were measured, in files under results/."""

import json
import re
from statistics import fmean
from typing import Any

import pytest
from paths import ROOT

README = (ROOT / "README.md").read_text()
USAGE = (ROOT / "docs" / "usage.md").read_text()
FINDINGS = (ROOT / "docs" / "findings.md").read_text()
TOLD = ("added_loss", "acc", "acc_norm", "said")
ROW = r"^\| (\d+)% \| [*`]*([\w-]+)[*`]* \| (.*) \|$"


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


@pytest.mark.parametrize(("file", "begins"), [("engine_speed", "SmolLM2-135M"), ("engine_speed_qwen", "Qwen2.5-Coder")])
def test_how_fast_engines_write_is_what_was_measured(file: str, begins: str) -> None:
    page = (ROOT / "docs" / "performance.md").read_text().split("## Engines, on one model")[1].split("\n## ")[0]
    rows = json.loads((ROOT / "results" / "engines" / f"{file}.json").read_text())["rows"]
    told = re.findall(r"^\| [\w.]+.*? \| (.* MB, .*) \|$", page.split(begins)[1].split("\n\n")[1], re.MULTILINE)
    for row, line in zip(rows, told, strict=True):
        speeds = [row[which]["tokens_per_second"] for which in ("dense", "pruned")]
        assert [float(one) for one in re.findall(r"MB, ([\d.]+)", line)] == pytest.approx(speeds, abs=0.51)
        sizes = [row[which]["bytes"] / 1e6 for which in ("dense", "pruned")]
        assert [float(one.replace(",", "")) for one in re.findall(r"([\d,]+) MB", line)] == pytest.approx(
            sizes, abs=0.51
        )
        assert f"×{row['ratio']:.2f}" in line


def test_the_numbers_of_quantized_models_are_those_measured() -> None:
    page = FINDINGS.split("## Quantized")[1].split("\n## ")[0]
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
    findings = FINDINGS.split("## Half of the bytes")[1].split("\n## ")[0]
    names = {"SmolLM2, ARC-Easy": ("smollm2", "arc_easy"), "SmolLM2, GSM8K": ("smollm2", "gsm8k")}
    names |= {"Qwen2.5-Coder, GSM8K": ("qwen2.5", "gsm8k"), "Qwen2.5-Coder, MBPP": ("qwen2.5", "mbpp")}
    for name, key in names.items():
        cells = re.search(rf"^\| {re.escape(name)}, `quick` \|(.*)\|$", findings, re.MULTILINE)
        assert cells is not None
        shown = [re.search(r"\d\.\d+", cell) for cell in cells[1].split("|")]
        for axes, found in zip(("layers", "heads", "drop", "vocabulary"), shown, strict=False):
            if (*key, axes) in added:
                assert found and float(found[0]) == pytest.approx(added[*key, axes], abs=6e-4), (name, axes)


def cells_of(file: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((ROOT / "results" / "quality" / f"{file}.json").read_text())["cells"]
    return found


def means_of(file: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((ROOT / "results" / "quality" / f"{file}.json").read_text())["means"]
    return found


def assert_shown(told: str, wanted: list[float]) -> None:
    """Every decimal number of `told`, in order, is the one wanted, to the places it is shown with."""
    shown = re.findall(r"\d+\.\d+", told)
    for number, value in zip(shown, wanted, strict=True):
        assert abs(float(number) - round(value, 6)) <= 0.501 * 10.0 ** -len(number.split(".")[1]), (told, number, value)


@pytest.mark.parametrize(
    ("file", "model", "task", "begins", "ends"),
    [
        ("real_gemma", "gemma3", "arc_easy", "Gemma-3-270M (pretrained", "\n## "),
        ("real_asked_gemma", "gemma", "arc_easy", "Gemma-3-270M, ARC-Easy, by the same", "\n\n`seap` adds"),
    ],
)
def test_rows_of_public_models_are_those_measured(file: str, model: str, task: str, begins: str, ends: str) -> None:
    cells = [one for one in cells_of(file) if (one["model"], one["task"]) == (model, task)]
    findings = FINDINGS.split(begins)[1].split(ends)[0]
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


def test_what_is_asked_as_tests_ask_is_what_was_measured() -> None:
    """The rows of findings.md, each over the draws that there are."""
    draws: dict[tuple[str, str, float], list[dict[str, float]]] = {}
    for one in cells_of("real_asked"):
        draws.setdefault((one["task"], one["method"], one["target_sparsity"]), []).append(one)
    findings = FINDINGS.split("**As tests ask.**")[1].split("\n\nOver the three")[0]
    rows = re.findall(ROW, findings, re.MULTILINE)
    assert len(rows) == len({(method, share) for _, method, share in draws})
    for share, method, told in rows:
        keys = [(task, method, int(share) / 100) for task in ("arc_easy", "piqa", "hellaswag")]
        own = [{name: fmean(one.get(name) or 0 for one in draws[key]) for name in TOLD} for key in keys if key in draws]
        wanted = [one["added_loss"] for one in own if method != "dense"]
        wanted += [100 * one[name] for one in own for name in ("acc", "acc_norm")]
        assert_shown(told, [*wanted, 100 * fmean(one["said"] for one in own)])


def test_the_first_screen_is_what_was_measured() -> None:
    means = json.loads((ROOT / "results" / "quality" / "real_asked.json").read_text())["means"]
    table = README.split("| SmolLM2-135M-Instruct: mean")[1].split("\n\n")[0]
    rows = re.findall(r"^\| [*`]*([\w-]+)[*`]*(?: \([a-z ]+\))? \| (\d+)% \| (.*) \|$", table, re.MULTILINE)
    assert {("seap", "20"), ("seap", "50"), ("flap", "20"), ("flap", "50")} <= {row[:2] for row in rows}
    for method, share, told in rows:
        [one] = [one for one in means if (one["method"], one["sparsity"]) == (method, int(share) / 100)]
        assert_shown(told, [one["added_loss"], one["added_loss_stderr"], one["kl"], *(100 * one[n] for n in TOLD[1:])])


def test_gemma_and_qwen_on_the_first_screen_are_what_was_measured() -> None:
    shares, tasks = (0.2, 0.3, 0.5), ("mbpp", "gsm8k")
    gemma = {(one["method"], one["sparsity"]): one["added_loss"] for one in means_of("real_asked_gemma")}
    told = README.split("Gemma-3-270M on ARC-Easy")[1].split("([all")[0]
    assert_shown(told, [gemma[method, share] for method in ("seap", "flap") for share in shares])
    cells = {(one["method"], one["target_sparsity"], one["task"]): one for one in cells_of("real_code")}
    table = README.split("| Qwen2.5-Coder-0.5B-Instruct: what")[1].split("\n\n")[0]
    rows = re.findall(r"^\| [*`]*([\w-]+)[*`]* \| (\d+)% \| (.*) \|$", table, re.MULTILINE)
    assert len(rows) == 5
    for method, share, figures in rows:
        own = [cells[method, int(share) / 100, task] for task in tasks]
        wanted = [100 * one[name] for one in own for name in ("acc", "acc_stderr")]
        assert_shown(figures, wanted + [one["added_loss"] for one in own])


def test_kl_beside_loss_is_what_was_measured() -> None:
    means = {(one["method"], one["sparsity"]): one for one in means_of("real_asked")}
    told = README.split("of FLAP's KL `seap` has")[1].split("\n")[0]
    names, shares = ("kl", "added_loss"), (0.2, 0.3, 0.5)
    assert_shown(told, [means["seap", one][name] / means["flap", one][name] for name in names for one in shares])


def test_how_far_a_network_keeps_what_dense_answers_is_what_was_measured() -> None:
    keeps = json.loads((ROOT / "results" / "quality" / "real_asked.json").read_text())["keeps"]
    kept = {(one["method"], one["by"]): [100 * one[name]["sparsity"] for name in ("95%", "90%")] for one in keeps}
    told = re.search(
        r"keeps 95% of the dense model's accuracy up to a sparsity of (\d+)% and 90% up to (\d+)% "
        r"\(`seap-paper`,\s+the best rival on all three, (\d+) and (\d+)%.*?95% up to (\d+)%",
        README,
    )
    assert told is not None
    wanted = [*kept["seap", "choice"], *kept["seap-paper", "choice"], kept["seap", "generation"][0]]
    assert [int(one) for one in told.groups()] == pytest.approx(wanted, abs=0.51)


def test_whether_a_model_is_usable_is_what_was_measured() -> None:
    tasks = ("arc_easy", "piqa", "hellaswag")

    def mean(file: str, method: str, share: float, name: str) -> float:
        own = [one for one in cells_of(file) if (one["method"], one["target_sparsity"]) == (method, share)]
        own = [one for one in own if not one["control"] and one["made_for"] in (None, one["task"])]
        return fmean(fmean(one[name] for one in own if one["task"] == task) for task in tasks)

    rows = re.findall(ROW, FINDINGS.split("**Is it still a usable model?**")[1].split("\n\nA network")[0], re.MULTILINE)
    assert len(rows) == 13
    for share, method, told in rows:
        part = method, int(share) / 100
        wanted = [100 * mean("real_asked", *part, name) for name in ("agreement", "recall", "loops", "endless")]
        off = [] if method == "dense" else [mean("real_models", *part, "off_task_added_loss")]
        assert_shown(told, wanted + off)


@pytest.mark.parametrize(
    ("told", "file", "method", "task", "name"),
    [
        (r"it added (0.\d+), (0.\d+) and (0.\d+) there", "real_wordings", "seap", "arc_easy", "added_loss"),
        (r"it is (0.\d+) and (0.\d+) \(`real_hellaswag_asked", "real_hellaswag_asked", "", "hellaswag", "added_loss"),
        (
            r"`quick` adds (0.\d+) of a loss at 20% and (0.\d+) at 30%",
            "real_effort_qwen",
            "seap",
            "gsm8k",
            "added_loss",
        ),
        (r"\(KL (0.\d+) and (0.\d+)\) where the default", "real_effort_qwen", "seap", "gsm8k", "kl"),
        (r"the default adds (0.\d+) and (0.\d+) \(0", "real_code", "seap", "gsm8k", "added_loss"),
    ],
)
def test_a_sentence_of_public_models_is_what_was_measured(
    told: str, file: str, method: str, task: str, name: str
) -> None:
    found = re.search(told, FINDINGS) or re.search(told, USAGE)
    assert found is not None
    cells = [one for one in cells_of(file) if one["task"] == task and one["made_for"] == task]
    cells = [one for one in cells if one["method"] == method or not method]
    cells = [one for one in cells if file != "real_wordings" or one["model"] == "gemma"]
    cells.sort(key=lambda one: (one["target_sparsity"], one["added_loss"]))
    assert_shown(" ".join(found.groups()), [one[name] for one in cells])


def test_what_flap_adds_from_plain_questions_is_what_was_measured() -> None:
    tasks = ("arc_easy", "piqa", "hellaswag")

    def mean(file: str, method: str, share: float, name: str) -> float:
        cells = [one for one in cells_of(file) if one["method"] == method and one["target_sparsity"] == share]
        own = [
            [one[name] for one in cells if one["task"] == one["made_for"] == task and not one["control"]]
            for task in tasks
        ]
        return fmean(fmean(values) for values in own)

    added, lost, said, ratios = [], [], [], []
    dense = fmean(one["acc"] for one in cells_of("real_asked") if one["method"] == "dense")
    for share in (0.2, 0.3, 0.5):
        added.append(mean("real_models", "flap", share, "added_loss"))
        lost.append(100 * (dense - mean("real_models", "flap", share, "acc")))
        said.append(100 * mean("real_models", "flap", share, "said"))
        ratios.append(mean("real_asked", "seap", share, "added_loss") / added[-1])
    part = FINDINGS.split("**FLAP is better from plain questions**")[1].split("\n\n")[0]
    assert_shown(part.split(" right)")[0], added + lost + said)
    assert_shown(part.split("adds ")[2].split(" of its loss")[0], ratios)
    assert_shown(README.split("there it adds less,")[1].split("](docs")[0], added + ratios)


def test_ifeval_is_what_was_measured() -> None:
    findings = FINDINGS.split("**Doing as it is told.**")[1].split("Gemma-3-270M")[0]
    told = re.findall(r"^\| .*?\| (.* / .*) \|$", findings, re.MULTILINE)[1:]
    names = [f"{what}_level_{how}_acc" for what in ("prompt", "inst") for how in ("strict", "loose")]
    for file, model, lines in (("ifeval", "SmolLM2 at 20%", told[:3]), ("ifeval_qwen", "Qwen", told[3:])):
        rows = json.loads((ROOT / "results" / "quality" / f"{file}.json").read_text())["rows"]
        assert [row["method"] for row in rows] == ["dense", "seap", "flap"]
        for row, line in zip(rows, lines, strict=True):
            assert re.findall(r"\d+\.\d", line) == [f"{100 * row[name]:.1f}" for name in names]
        strict = [f"{100 * row[names[0]]:.1f}" for row in rows]
        told_there = rf"{model}\s+(?:follows )?{strict[1]}%\s+\(dense {strict[0]}, FLAP {strict[2]}"
        assert re.search(told_there, README), told_there
