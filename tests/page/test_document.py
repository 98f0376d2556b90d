"""The report page: its numbers by hand on small results, what it shows and leaves out, and that it loads nothing."""

import csv
import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import page_example
import pytest
from page_example import row
from rich.console import Console

from seap.errors import UserError
from seap.page import document, plots, sources
from seap.page.comparison import join
from seap.page.numbers import Mean, mean
from seap.page.parts import Cell, Table
from seap.page.sections.compare_results import main_section, task_section
from seap.page.sections.verdict import verdict
from seap.page.sources import Source
from seap.page.terminal import show_comparison

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

SECTIONS = "curves results tasks written widths overlap cross controls map activation stability speed".split()
SECTIONS += ["provenance", "limits"]


class Page(HTMLParser):
    """What a page would load, its links, section ids, images without alt text and visible text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.sections: list[str] = []
        self.tags: list[str] = []
        self.alts: list[str | None] = []
        self.words: list[str] = []
        self.raw = path.read_text(encoding="utf-8")
        self.feed(self.raw)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        self.loads += [values[k] or "" for k in ("src", "srcset", "data", "poster") if k in values]
        self.loads += [values["href"] or ""] if tag == "link" else []
        self.links += [values["href"] or ""] if tag == "a" else []
        self.sections += [values["id"] or ""] if tag == "section" else []
        self.alts += [values.get("alt")] if tag == "img" else []

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def made(folder: Path, **results: dict[str, Any]) -> Page:
    return Page(document.build(page_example.write(folder, **results), folder / "report.html"))


def result(rows: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {"kind": "compare", "model": "tiny", "rows": rows, "prunable_params": 1000} | more


def two_tasks(ours: tuple[float, float], baseline: tuple[float, float]) -> dict[str, Any]:
    """Dense losses 2 and 3 on tasks a and b, and what seap and flap add to them at 50%, one seed."""
    rows = [row("dense", "a", 0, 0, 2.0), row("dense", "b", 0, 0, 3.0)]
    for method, added in (("seap", ours), ("flap", baseline)):
        rows += [row(method, "a", 0.5, 0, 2 + added[0]), row(method, "b", 0.5, 0, 3 + added[1])]
    return result(rows)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, Path, dict[str, Any]]:
    """A page with every section, of three tasks at one sparsity."""
    folder, tasks = tmp_path_factory.mktemp("full"), page_example.TASKS[:3]
    compare = page_example.compare(tasks=tasks, sparsities=(0.5,), layers=4)
    analyze = page_example.analyze(tasks=tasks, layers=4, bins=16, texts=5)
    return made(folder, compare=compare, analyze=analyze, bench=page_example.bench()), folder, compare


def test_every_section_is_there_in_order_and_nothing_is_loaded(full: tuple[Page, Path, dict[str, Any]]) -> None:
    shown, folder, _ = full
    assert shown.sections == SECTIONS
    assert shown.loads and all(one.startswith("data:image/svg+xml;base64,") for one in shown.loads)
    assert not {"script", "link", "iframe", "object", "embed"} & set(shown.tags)
    assert "http://" not in shown.raw and "https://" not in shown.raw and "url(" not in shown.raw
    assert all(shown.alts) and len(shown.raw) < 3_000_000
    for link in shown.links:
        assert link[1:] in SECTIONS if link.startswith("#") else (folder / link).is_file()


def test_every_plot_has_its_png_and_csv(full: tuple[Page, Path, dict[str, Any]]) -> None:
    shown, folder, _ = full
    pictures = sorted((folder / "report_files").glob("*.png"))
    assert len(pictures) == len(shown.alts) == len(set(shown.links) & {f"report_files/{p.name}" for p in pictures})
    for picture in pictures:
        assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        assert len(picture.with_suffix(".csv").read_text().splitlines()) > 1


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_provenance_names_what_made_the_numbers(full: tuple[Page, Path, dict[str, Any]]) -> None:
    shown, _, compare = full
    for said in (
        compare["commit"],
        compare["command"],
        "torch 2.11.0",
        "Example CPU",
        "boolq-0-3f2a boolq-1-3f2a",
        "16 000",
    ):
        assert said in shown.text


def test_csv_numbers_are_the_input(full: tuple[Page, Path, dict[str, Any]]) -> None:
    _, folder, compare = full
    rows = read_csv(folder / "report_files" / "results.csv")
    assert [float(r["loss"]) for r in rows] == [r["loss"] for r in compare["rows"]]
    overlap = read_csv(folder / "report_files" / "overlap_seap_channels_0.5.csv")
    assert [float(r["jaccard"]) for r in overlap] == [v for line in compare["overlap"][0]["jaccard"] for v in line]
    cross = read_csv(folder / "report_files" / "cross_seap_0.5.csv")
    chosen = [r for r in compare["rows"] if (r["task"], r["made_for"], r["method"]) == ("boolq", "gsm8k", "seap")]
    value = next(float(r["added_loss"]) for r in cross if (r["made_for"], r["evaluated_on"]) == ("gsm8k", "boolq"))
    assert value == pytest.approx(chosen[0]["loss"] - 2.1, abs=1e-12)


def test_what_was_tested_on_some_tasks_wins_nothing_and_is_not_drawn(tmp_path: Path) -> None:
    compare = two_tasks((0.2, 0.3), (0.5, 0.7))
    compare["rows"].append(row("wanda-sp", "a", 0.5, 0, 2.01))
    shown = made(tmp_path, compare=compare)
    assert "wanda-sp 1 of 2 tasks" in shown.text and "What wasn't tested on every task isn't drawn" in shown.text
    assert "Against the best baseline, flap" in shown.text
    drawn = {one["method"] for one in read_csv(tmp_path / "report_files" / "sparsity_added_loss.csv")}
    assert drawn == {"seap", "flap"}
    [table] = main_section(join([Source(Path(), compare)])).tables  # type: ignore[arg-type]
    assert [line[0].text for group in table.groups for line in group if any(cell.best for cell in line)] == ["seap"]


def test_mean_counts_each_task_once() -> None:
    # Task means 1 and 3, three seeds each: mean 2, residual sums −3 and +3, √(2/1 · 18)/6 = 1.
    cells = {(task, seed): value for task, value in (("a", 1.0), ("b", 3.0)) for seed in range(3)}
    assert mean(cells) == Mean(2.0, 1.0, 2)
    # One task: over seeds. Values 1 and 3: √(2 · 2)/2 = 1.
    assert mean({("a", 0): 1.0, ("a", 1): 3.0}) == Mean(2.0, 1.0, 2)
    alone = mean({("a", 0): 1.0})
    assert alone is not None and math.isnan(alone.stderr) and alone.certain is None
    assert Mean(1.0, 0.1, 2).certain is False, "12.7 × 0.1 with one degree of freedom"
    assert Mean(1.3, 0.1, 2).certain is True


def test_verdict_by_hand(tmp_path: Path) -> None:
    # seap adds 0.1 and 0.3: mean 0.2, error 0.1. flap adds 0.5 and 0.704: differences −0.4 and −0.404, −0.402 ± 0.002.
    shown = made(tmp_path, compare=two_tasks((0.1, 0.3), (0.5, 0.704)))
    assert "At 50% sparsity, seap removed 500 of 1 thousand prunable parameters (50.0%)." in shown.text
    assert "adds 0.200 ± 0.100 nats per token to the dense model's loss (2 tasks × 1 seed)" in shown.text
    # 0.002 × 12.71 = 0.025, with one degree of freedom
    assert "the best baseline, flap (+0.602 ± 0.102), seap is better: its loss is 0.402 ± 0.002 lower" in shown.text
    assert "lower (95% interval 0.377 to 0.427 lower)." in shown.text
    assert "Most is lost on b (+0.30) and a (+0.10)." in shown.text


def test_verdict_says_worse_and_noise_and_unknown(tmp_path: Path) -> None:
    worse = join([Source(tmp_path, two_tasks((0.5, 0.704), (0.1, 0.3)))])
    assert "seap is worse: its loss is 0.402 ± 0.002 higher" in verdict(worse, {})[0]
    noise = join([Source(tmp_path, two_tasks((0.1, 0.3), (0.3, 0.2)))])
    said = verdict(noise, {})[0]
    assert "no difference is shown: seap's loss is 0.050 ± 0.150 lower, and the 95% interval" in said
    assert "1.956 lower to 1.856 higher has 0 in it (it is wide, being of 2 values)" in said and "better" not in said
    rows = [row("dense", "a", 0, 0, 2.0), row("seap", "a", 0.5, 0, 2.5), row("flap", "a", 0.5, 0, 2.25)]
    single = join([Source(tmp_path, result(rows))])
    assert "0.250 higher, from one task and one seed, so nothing says whether" in verdict(single, {})[0]


def test_verdict_on_accuracy_variants_and_unequal_sparsity(tmp_path: Path) -> None:
    data = two_tasks((0.1, 0.3), (0.5, 0.704))
    scores = {"dense": 0.8, "seap": 0.7, "flap": 0.75}
    data["rows"] = [r | {"acc": scores[r["method"]] - (0.1 if r["task"] == "b" else 0)} for r in data["rows"]]
    data["rows"] += [row("seap-obs", "a", 0.5, 0, 2.05), row("seap-obs", "b", 0.5, 0, 3.25)]
    data["rows"] = [r | {"realised_sparsity": 0.45} if r["method"] == "flap" else r for r in data["rows"]]
    words = verdict(join([Source(tmp_path, data)]), {})[0]
    assert "Accuracy goes from 75.0% to 65.0% (−10.0 ± 0.0 points)." in words
    assert "In accuracy seap is 5.0 ± 0.0 points worse (95% interval 5.0 to 5.0 worse)." in words
    assert "no comparison at equal sparsity, seap really removed 50.0% and flap 45.0%" in words
    assert "Of its variants, seap-obs is better: its loss is 0.050 ± 0.000 lower than seap's (95% interval" in words


def test_points_have_the_same_caveat_as_the_loss(tmp_path: Path) -> None:
    data = two_tasks((0.1, 0.3), (0.5, 0.704))
    right = {("seap", "a"): 0.7, ("seap", "b"): 0.5, ("flap", "a"): 0.6, ("flap", "b"): 0.5}
    data["rows"] = [r | {"acc": right.get((r["method"], r["task"]), 0.8)} for r in data["rows"]]
    # Differences 10 and 0 points: 5 ± 5, interval ± 63.6.
    words = verdict(join([Source(tmp_path, data)]), {})[0]
    assert "In accuracy seap is 5.0 ± 5.0 points better, which shows no difference: the 95% interval" in words
    assert "68.5 better to 58.5 worse has 0 in it" in words


def test_the_papers_own_method_is_to_be_beaten(tmp_path: Path) -> None:
    data = two_tasks((0.1, 0.3), (0.5, 0.704))
    data["rows"] += [row("seap-paper", "a", 0.5, 0, 2.2), row("seap-paper", "b", 0.5, 0, 3.5)]
    words = verdict(join([Source(tmp_path, data)]), {})[0]
    assert "Against the best baseline and the paper's own method, seap-paper (+0.350 ± 0.150)" in words
    data["rows"] += [row("wanda-sp", "a", 0.5, 0, 2.1), row("wanda-sp", "b", 0.5, 0, 3.3)]
    words = verdict(join([Source(tmp_path, data)]), {})[0]
    assert "the best baseline, wanda-sp" in words and "Against the paper's own method, seap-paper" in words


def test_methods_stand_in_an_order_that_tells(tmp_path: Path) -> None:
    rows = [row("dense", "a", 0, 0, 2.0), row("random", "a", 0.5, 0, 5.0), row("flap", "a", 0.5, 0, 3.0)]
    rows += [row("seap-obs", "a", 0.5, 0, 2.5), row("seap-paper", "a", 0.5, 0, 2.9), row("seap", "a", 0.5, 0, 2.6)]
    joined = join([Source(tmp_path, result(rows))])
    assert joined is not None and joined.methods == ["seap", "seap-obs", "seap-paper", "flap", "random"]
    [table] = main_section(joined).tables
    assert [cells[0].text for group in table.groups for cells in group] == ["dense", *joined.methods]
    assert table.caption == "Means over 1 task and 1 seed"


def test_a_comparison_in_a_terminal_has_errors_order_and_the_best(capsys: pytest.CaptureFixture[str]) -> None:
    data = two_tasks((0.1, 0.3), (0.5, 0.704))
    data["rows"].insert(2, row("random", "a", 0.5, 0, 6.0))
    console = Console(width=200, highlight=False, force_terminal=True)
    show_comparison(data, console)
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if "│" in line]
    names = [next(name for name in ("dense", "seap", "flap", "random") if name in line) for line in lines]
    assert names == ["dense", "seap", "flap", "random"]
    assert "0.200 ± 0.100" in lines[1] and "\x1b[1m" in lines[1] and "\x1b[1m" not in lines[2]
    assert "means over 2 tasks and 1 seed" in printed


def test_a_method_that_removed_less_wins_nothing(tmp_path: Path) -> None:
    data = two_tasks((0.1, 0.3), (0.5, 0.704))
    short = {"realised_sparsity": 0.18}
    data["rows"] += [row("seap-reference", t, 0.5, 0, loss) | short for t, loss in (("a", 2.01), ("b", 3.01))]
    data["rows"] += [row("wanda-sp", t, 0.5, 0, loss) | short for t, loss in (("a", 2.02), ("b", 3.02))]
    joined = join([Source(tmp_path, data)])
    assert joined is not None and joined.falls_short("seap-reference", 0.5) == pytest.approx(0.18)
    words = verdict(joined, {})[0]
    assert "Of its variants" not in words and "the best baseline, flap" in words
    rows = main_section(joined).tables[0].groups[-1]
    assert [cells[0].text for cells in rows if any(cell.best for cell in cells)] == ["seap"]
    [table] = task_section(joined).tables
    assert "seap-reference (18.0%)" in table.columns and "seap" in table.columns
    assert {table.columns[i] for r in table.groups[0] for i, cell in enumerate(r) if cell.best} == {"seap"}


def test_little_data_leaves_sections_out_and_says_so(tmp_path: Path) -> None:
    shown = made(tmp_path, compare=page_example.minimal())
    assert shown.sections == ["curves", "results", "tasks", "provenance", "limits"]
    assert "That adds 0.250 nats per token" in shown.text and "nan" not in shown.text
    for said in ("Speed was not measured", "Only 1 seed", "Loss only", "No controls", "Layer widths", "Only 1 task"):
        assert said in shown.text


def test_bench_alone_and_no_dense_row(tmp_path: Path) -> None:
    shown = made(tmp_path / "bench", bench=page_example.bench())
    assert shown.sections == ["speed", "provenance", "limits"]
    assert "×1.51" in shown.text and "81%" in shown.text and "there is no verdict" in shown.text
    shown = made(tmp_path / "no_dense", compare=result([row("seap", "a", 0.5, 0, 2.5)]))
    assert "unknown without a dense row; the loss is 2.500" in shown.text


def test_names_are_escaped(tmp_path: Path) -> None:
    name = "<script>alert('$x$')</script>"
    rows = [row("dense", name, 0, 0, 2.0), row("seap", name, 0.5, 0, 2.5), row("_odd/../method", name, 0.5, 0, 2.6)]
    overlap = [{"method": "_odd/../method", "sparsity": 0.5, "axis": "channels", "tasks": [name, "_b 課題"]}]
    overlap[0] |= {"jaccard": [[1.0, 0.5], [0.5, 1.0]]}
    shown = made(tmp_path, compare=result(rows, overlap=overlap))
    assert "script" not in shown.tags and name in shown.text
    assert {p.parent for p in tmp_path.rglob("*") if p.suffix in (".png", ".csv")} == {tmp_path / "report_files"}


def test_a_report_is_made_again_in_place(tmp_path: Path) -> None:
    made(tmp_path, compare=page_example.minimal())
    old = sorted(p.name for p in tmp_path.rglob("*"))
    made(tmp_path, compare=page_example.minimal())
    assert sorted(p.name for p in tmp_path.rglob("*")) == old
    (tmp_path / "report_files" / "mine.txt").write_text("keep")
    made(tmp_path, compare=page_example.minimal())
    assert (tmp_path / "report_files" / "mine.txt").read_text() == "keep"
    (tmp_path / "report.html").write_text("<html>mine")
    with pytest.raises(UserError, match=r"report\.html is there already and isn't seap's own"):
        made(tmp_path, compare=page_example.minimal())
    assert (tmp_path / "report.html").read_text() == "<html>mine"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", r"can't be read as JSON .* accepted: .*compare, analyze, bench"),
        ('{"kind": "demo"}', "has kind 'demo'; accepted"),
        ("[]", "has kind None; accepted"),
        ('{"kind": "compare", "model": "m"}', "has no 'rows'"),
        ('{"kind": "compare", "model": "m", "rows": [{"method": "seap"}]}', r"rows\[0\] has no task, target_sparsity"),
        ('{"kind": "bench", "rows": {"a": 1}}', r"rows\[0\] has no phase, batch, ratio"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "odd.json"
    path.write_text(content)
    with pytest.raises(UserError, match=rf"odd\.json.*{said}"):
        document.build([path], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_networks_of_other_depths_are_no_comparison(tmp_path: Path) -> None:
    example = page_example.minimal()
    layers = [{"kv_groups": 2, "channels": 8}] * 3
    rows = [row | {"layers": layers[: 3 - place % 2]} for place, row in enumerate(example["rows"])]
    with pytest.raises(UserError, match="`rows` have 2 and 3 `layers`; they are of one model"):
        sources.check(page_example.write(tmp_path, a=example | {"rows": rows}))


@pytest.mark.parametrize("damaged", [{"channels": 8}, {"kv_groups": 0, "channels": 8}], ids=["no axis", "no units"])
def test_widths_of_a_dense_model_that_lacks_units_are_told_in_units(tmp_path: Path, damaged: dict[str, int]) -> None:
    example = page_example.minimal()
    whole = [{"kv_groups": 2, "channels": 8}] * 2
    rows = [row | {"layers": [damaged] * 2 if row["method"] == "dense" else whole} for row in example["rows"]]
    page = document.build(page_example.write(tmp_path, a=example | {"rows": rows}), tmp_path / "page.html").read_text()
    assert "units kept" in page


def test_missing_files_other_models_and_repeats(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such file: .*gone\.json; accepted"):
        sources.check([tmp_path / "gone.json"])
    with pytest.raises(UserError, match="no result file given"):
        sources.check([])
    one = page_example.minimal()
    with pytest.raises(UserError, match="one report per model"):
        sources.check(page_example.write(tmp_path, a=one, b=one | {"model": "other"}))
    with pytest.raises(UserError, match=r"both hold seap on notes at 0\.5, seed 0"):
        sources.check(page_example.write(tmp_path, a=one, b=one))
    with pytest.raises(UserError, match=r"ends in \.html"):
        document.build(page_example.write(tmp_path, a=one), tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text()) == one


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"seap report needs jinja2.*seap\[report\]"):
        sources.check(page_example.write(tmp_path, a=page_example.minimal()))


def test_dark_charts_are_the_light_ones_in_other_colours() -> None:
    assert not set(plots.DARK) & set(plots.DARK.values()), "a colour must not be swapped twice"
    plot = plots.Plot(
        name="p",
        title="t",
        alt="a",
        columns=("x",),
        rows=[],
        draw=plots.dots(["a"], [1.0], [0.1], x="x", colours=[plots.RED]),
    )
    light, dark, png = plots.render(plot)
    assert plots.RED in light and plots.RED not in dark and plots.DARK[plots.RED] in dark
    assert "a" in light and "http" not in light.replace("http://www.w3.org/", "") and png.startswith(b"\x89PNG")


def test_a_known_method_has_its_colour_on_every_page_and_no_two_share_one() -> None:
    methods = ["other", "flap", "seap", "seap-obs"]
    styles = plots.method_styles(methods)
    assert styles["seap"][0] == plots.BLUE and styles["flap"][0] == plots.RED
    assert len({colour for colour, _ in styles.values()}) == len(methods)


def test_shapes_that_seap_analyze_writes(tmp_path: Path) -> None:
    """One activation map per axis, one pair of halves per task, ladders per sparsity."""
    data = page_example.analyze(tasks=["a", "b"], layers=2, bins=4, texts=3)
    data["activation"] = [data["activation"], data["activation"] | {"axis": "kv_groups"}]
    data["enough"] = [r | {"sparsity": s} for r in data["enough"] for s in (0.2, 0.5)]
    shown = made(tmp_path, analyze=data)
    assert shown.sections == ["map", "activation", "stability", "provenance", "limits"]
    names = {p.name for p in (tmp_path / "report_files").glob("*.csv")}
    assert {"activation_kv_groups_a.csv", "enough_jaccard_0.2.csv", "enough_jaccard_0.5.csv"} <= names
    halves = read_csv(tmp_path / "report_files" / "stability_channels_0.2.csv")
    assert [(r["task"], float(r["jaccard"]), float(r["expected"])) for r in halves] == [
        ("a", 0.9, 0.67),
        ("b", 0.88, 0.67),
    ]


def test_columns_that_say_nothing_are_left_out() -> None:
    rows = [[Cell("dense"), Cell("1"), Cell("0")], [Cell("seap"), Cell("2"), Cell("–")]]
    found = Table("c", ["method", "loss", "accuracy"], [rows[:1], rows[1:]]).without_empty(leaving_out=1)
    assert found.columns == ["method", "loss"] and [len(row) for group in found.groups for row in group] == [2, 2]
