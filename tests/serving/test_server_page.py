"""The page at `/` in a real browser: a click, streamed text, the route, by keyboard, on a phone, in the dark."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live import PROMPT, expected, running
from workload import Bench

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip install playwright)")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
SHOTS = os.environ.get("SEAP_SCREENSHOTS")  # a folder to look at them in


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as tools:
        try:
            found = tools.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        except sync_api.Error as error:
            pytest.skip(f"no browser: {str(error).splitlines()[0]}")
        yield found
        found.close()


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench()


@pytest.fixture(scope="module")
def url(bench: Bench) -> Iterator[str]:
    with running(bench) as url:
        yield url


@pytest.mark.parametrize(("name", "width", "scheme"), [("desktop", 1200, "light"), ("phone", 360, "dark")])
def test_a_prompt_is_answered_side_by_side(
    browser: Any, bench: Bench, url: str, name: str, width: int, scheme: str
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(url)
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    page.get_by_label("Network", exact=True).select_option("red")
    page.get_by_label("Most tokens").fill("9")
    page.get_by_role("button", name="Run").click()
    sync_api.expect(page.locator("#pruned-speed")).to_contain_text("9 tokens")
    sync_api.expect(page.locator("#dense-speed")).to_contain_text("9 tokens")
    assert page.locator("#pruned").inner_text().split() == expected(bench, "red", 9).split()
    assert page.locator("#dense").inner_text().split() == expected(bench, "dense", 9).split()
    assert page.locator("#route").inner_text().startswith("red")
    assert page.locator("#layers tr").count() == 4
    assert page.evaluate("document.documentElement.scrollWidth") <= width and not problems
    if SHOTS:
        page.screenshot(path=str(Path(SHOTS) / f"{name}.png"), full_page=True)
    page.close()


def test_by_keyboard_and_with_a_mistake(browser: Any, url: str) -> None:
    page = browser.new_page()
    page.goto(url)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "prompt"
    page.keyboard.press("Control+A")
    page.keyboard.type("w5 " * 80)
    page.keyboard.press("Control+Enter")
    sync_api.expect(page.get_by_role("alert")).to_contain_text("context 64")
    page.keyboard.press("Control+A")
    page.keyboard.type("w5 w6")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "model"
    page.keyboard.press("Tab")
    page.keyboard.press("Control+A")
    page.keyboard.type("9")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "go"
    page.keyboard.press("Enter")
    sync_api.expect(page.locator("#dense-speed")).to_contain_text("per second")
    sync_api.expect(page.locator("#error")).to_be_empty()
    page.close()


def test_a_key_can_be_given(browser: Any) -> None:
    with running(Bench(), key="secret") as url:
        page = browser.new_page()
        page.goto(url)
        sync_api.expect(page.get_by_role("alert")).to_contain_text("API key")
        page.get_by_label("API key").fill("secret")
        page.get_by_label("Prompt", exact=True).fill("w5")
        page.get_by_label("Most tokens").fill("9")
        page.get_by_role("button", name="Run").click()
        sync_api.expect(page.locator("#dense-speed")).to_contain_text("per second")
        page.close()
