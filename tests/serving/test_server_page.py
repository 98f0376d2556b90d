"""The page at `/` in a real browser: a click, streamed text, the route, by keyboard, on a phone, in the dark."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live import PROMPT, expected, running
from workload import Bench

from seap.serving.server.access import Guard

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip install playwright)")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
sync_api.expect.set_options(timeout=120_000)
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


def opened(browser: Any, url: str, problems: list[str] | None = None, **options: Any) -> Any:
    """The page in a tab of its own. problems: where its JavaScript's errors go."""
    page = browser.new_page(**options)
    page.set_default_timeout(120_000)  # on a machine that has other work
    if problems is not None:
        page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(url)
    return page


@pytest.mark.parametrize(("name", "width", "scheme"), [("desktop", 1200, "light"), ("phone", 360, "dark")])
def test_a_prompt_is_answered_side_by_side(
    browser: Any, bench: Bench, url: str, name: str, width: int, scheme: str
) -> None:
    problems: list[str] = []
    page = opened(browser, url, problems, viewport={"width": width, "height": 900}, color_scheme=scheme)
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
    page = opened(browser, url)
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


def answered(page: Any, prompt: str) -> None:
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_label("Most tokens").fill("9")
    page.keyboard.press("Control+Enter")
    sync_api.expect(page.locator("#dense-speed")).to_contain_text("token")
    sync_api.expect(page.locator("#stop")).to_be_disabled()


def test_a_conversation_goes_on_and_begins_anew(browser: Any, url: str) -> None:
    page = opened(browser, url)
    asked: list[dict[str, Any]] = []
    page.on("request", lambda sent: asked.append(sent.post_data_json) if sent.method == "POST" else None)
    page.locator("summary").click()
    page.get_by_label("Network", exact=True).select_option("red")
    page.get_by_label("One after the other").check()
    answered(page, PROMPT)
    first = page.locator("#pruned").text_content()
    page.get_by_label("Go on from the last answers").check()
    answered(page, "w6")
    own = asked[2]["messages"]
    assert asked[2]["model"] == "red" and [turn["role"] for turn in own] == ["user", "assistant", "user"]
    assert own[0]["content"] == PROMPT and own[1]["content"] == first and own[2]["content"] == "w6"
    assert page.locator("#turns li").count() == 1 and page.get_by_label("Prompt", exact=True).input_value() == ""
    page.get_by_role("button", name="Start anew").click()
    assert page.locator("#turns li").count() == 0
    page.get_by_label("System prompt").fill("w3")
    answered(page, PROMPT)
    assert [turn["role"] for turn in asked[-1]["messages"]] == ["system", "user"]
    page.close()


def test_stop_ends_both_answers(browser: Any, url: str) -> None:
    page = opened(browser, url)

    def held(route: Any) -> None:  # an answer that never comes
        if route.request.method != "POST":
            route.continue_()

    page.route("**/v1/chat/completions", held)
    stops = [lambda: page.get_by_role("button", name="Stop").click(), lambda: page.keyboard.press("Escape")]
    for stop in stops:
        page.get_by_role("button", name="Run").click()
        sync_api.expect(page.get_by_role("button", name="Run")).to_be_disabled()
        stop()
        sync_api.expect(page.get_by_role("button", name="Run")).to_be_enabled()
        sync_api.expect(page.locator("#error")).to_be_empty()
    page.close()


def test_a_key_can_be_given(browser: Any) -> None:
    with running(Bench(), guard=Guard(keys=("secret",))) as url:
        page = opened(browser, url)
        sync_api.expect(page.get_by_role("alert")).to_contain_text("API key")
        page.get_by_label("API key").fill("secret")
        page.get_by_label("Prompt", exact=True).fill("w5")
        page.get_by_label("Most tokens").fill("9")
        page.get_by_role("button", name="Run").click()
        sync_api.expect(page.locator("#dense-speed")).to_contain_text("per second")
        page.close()
