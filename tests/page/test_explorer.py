"""The page of `seap explore`: what is in it, that texts stay texts, and a browser that clicks through it."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from toy import TEXTS, folder, texts_file, tokenizer

from seap.cli.main import main
from seap.disk.kinds import kind_of
from seap.models.options import Streaming
from seap.page.explorer import explore_to_page, page_of
from seap.text.options import Calibration

NASTY = "</script><script>document.title = 'broken'</script><img src=x onerror=\"document.title = 'broken'\">"


def found() -> dict[str, Any]:
    """A model of two layers, as `explore` tells of it: 4 heads in 2 groups, 3 of 9 channels, two tasks."""

    def part(number: int, a: float, b: float) -> dict[str, Any]:
        texts = [{"text": 1, "use": b, "words": ["before ", f"peak{number}", f" behind {NASTY}"]}]
        return {"part": number, "use": [a, b], "texts": texts if number != 8 else []}

    def layer(place: int, numbers: list[int], of: int, queries: int) -> dict[str, Any]:
        parts = [part(number, 0.1 + place * 0.2 * (number == 2), 0.1 + 0.05 * number) for number in numbers]
        apart, covered = [[0.0, 0.125], [0.125, 0.0]], [0.5, 0.75]
        told = {"layer": place, "num_parts": of, "queries": queries, "apart": apart, "covered": covered}
        return told | {"parts": parts}

    heads = {"parts": "query_heads", "layers": [layer(i, [0, 1, 2, 3], 4, 2) for i in range(2)]}
    channels = {"parts": "channels", "layers": [layer(i, [2, 5, 8], 9, 1) for i in range(2)]}
    told = {"kind": "explore", "model": "toy <b>", "tasks": ["sums", "dates"], "num_texts": [1, 1]}
    return told | {"num_tokens": [9, 8], "text_tasks": [0, 1], "maps": [heads, channels]}


def test_what_was_found_is_in_the_page_and_texts_stay_texts() -> None:
    page = page_of(found())
    [data] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, flags=re.DOTALL)
    assert json.loads(data) == found()
    assert "<title>What tasks use of toy &lt;b&gt;</title>" in page and NASTY not in page
    assert "{{" not in page.replace(data, "") and not re.search(r"(src|href)=[\"']?http", page)


def test_the_command_writes_a_page_and_replaces_only_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder(Path("dense"))
    texts_file(Path("a.txt"), TEXTS[:8])
    texts_file(Path("b.txt"), TEXTS[8:16])
    asked = ["explore", "dense", "--task", "a=a.txt", "--task", "b=b.txt", "--num-units", "5", "--num-kept", "2"]
    assert main([*asked, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["tasks"] == ["a", "b"] and len(told["maps"][1]["layers"][0]["parts"]) == 5
    assert kind_of(Path("explore.html")) == "page" and str(tmp_path) not in Path("explore.html").read_text()
    assert main([*asked, "--out", "explore.html"]) == 0
    Path("mine.html").write_text("<html>mine</html>")
    for out, message in (("mine.html", "mine.html"), ("explore.json", "name a file that ends in .html")):
        assert main([*asked, "--out", out]) == 1
        assert message in capsys.readouterr().err
    assert Path("mine.html").read_text() == "<html>mine</html>"


@pytest.mark.parametrize("name", ["llama", "mixtral", "gemma3n_text"])
@pytest.mark.parametrize("batch_tokens", [20, 4096])
def test_a_model_in_its_files_is_seen_as_in_memory(
    name: str, batch_tokens: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = tokenizer()
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *_, **__: words)  # not the family's own
    dense = str(folder(tmp_path / "dense", name))
    tasks = [f"{task}={texts_file(tmp_path / f'{task}.txt', TEXTS[i : i + 8])}" for i, task in ((0, "a"), (8, "b"))]
    calibration, made = Calibration(batch_tokens=batch_tokens), []
    for streaming in (Streaming(), Streaming(stream=True), Streaming(stream=True, offload_dir=tmp_path / "states")):
        out = tmp_path / f"{len(made)}.html"
        made.append(explore_to_page(dense, tasks, out, calibration, num_units=5, streaming=streaming, progress=False))
        assert out.is_file()
    assert made[1]["maps"] == made[0]["maps"] == made[2]["maps"] and made[1]["num_tokens"] == made[0]["num_tokens"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    tools_of = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip install playwright)")
    with tools_of.sync_playwright() as tools:
        place = shutil.which("chromium") or shutil.which("google-chrome")
        try:
            made = tools.chromium.launch(executable_path=place, args=["--no-sandbox"])
        except tools_of.Error as error:
            pytest.skip(f"no browser: {str(error).splitlines()[0]}")
        yield made
        made.close()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_click_shows_the_texts_that_use_a_part_most(browser: Any, tmp_path: Path, width: int, scheme: str) -> None:
    (tmp_path / "page.html").write_text(page_of(found()))
    page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page.set_default_timeout(120_000)
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text))
    page.goto((tmp_path / "page.html").as_uri())
    assert page.locator(".layer button").count() == 2 * (4 + 3)
    assert "heads by 12%" in page.locator("#said").inner_text() or "heads by 13%" in page.locator("#said").inner_text()
    page.get_by_role("button", name="layer 1, channel 2: sums 30%, dates 20%").click()
    told = page.locator("#part").inner_text()
    assert "Layer 1, channel 2" in told and "dates, 20%" in told and NASTY in told
    assert page.locator("#part mark").inner_text() == "peak2"
    page.keyboard.press("ArrowRight")
    assert "Layer 1, channel 5" in page.locator("#part").inner_text()
    page.keyboard.press("ArrowRight")
    assert "No text uses it" in page.locator("#part").inner_text()
    page.get_by_label("against").select_option("none")
    assert page.locator("#said").inner_text() == "" and "used by sums" in page.locator("#keys").inner_text()
    page.get_by_label("Task").select_option("dates")
    first = page.locator("#lists button").first.inner_text()
    assert "head 3" in first and "25%" in first
    fits = "document.documentElement.scrollWidth <= innerWidth"
    assert page.evaluate(fits) and problems == [] and page.title() == "What tasks use of toy <b>"
    page.keyboard.press("Escape")
    assert page.locator("#part").is_visible() == (width > 960)
    page.close()
