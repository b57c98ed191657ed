"""The Space of a model as its visitors meet it: in a browser, served from its folder."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from hubprune.space import DATA, write_space
from tests.browser import PHONE, Visit, serve_app, visit

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from playwright.sync_api import Browser, Page

    from hubprune.localhub import EmbeddedHub

pytestmark = pytest.mark.browser

MODEL = "me/tiny-medical-space"
SETTLED = 60_000  # milliseconds for both answers, on a busy machine
SIDES = ("base", "pruned")
# Notes every text that the two answers have shown.
WATCH = """() => {
    window.seen = {base: [], pruned: []};
    for (const side of ["base", "pruned"]) {
        const look = () => {
            const text = document.querySelector(`#answer-${side} .text`).textContent;
            if (window.seen[side].at(-1) !== text) window.seen[side].push(text);
        };
        new MutationObserver(look).observe(document.querySelector(`#answer-${side}`),
            {subtree: true, childList: true, characterData: true});
    }
}"""


@dataclass(frozen=True)
class App:
    """A Space that runs.

    Attributes:
        url: Its address.
        data: What it shows.
        screenshots: Where to put pictures.
        chromium: The browser.
    """

    url: str
    data: dict[str, Any]
    screenshots: Path
    chromium: Browser


@pytest.fixture(scope="module")
def app(
    demo_hub: EmbeddedHub,
    hub_api: Callable[..., HfApi],
    chromium: Browser,
    screenshots: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[App]:
    """The Space of the demo's model, pruned for medical text."""
    from hubprune import AutoPrunedModelForCausalLM

    model = AutoPrunedModelForCausalLM.from_pretrained(
        "hubprune-demo/tiny-base",
        method="wanda",
        sparsity=0.5,
        domain="hubprune-demo/medical",
        num_samples=8,
        sequence_length=64,
        dtype="float32",
        progress=False,
    )
    commit = model.push_to_hub(MODEL, api=hub_api("me"))
    root = tmp_path_factory.mktemp("app")
    write_space(model.hubprune_report, root / "space", model=MODEL, commit=commit.oid)
    data = json.loads((root / "space" / DATA).read_text())
    with serve_app(root / "space", demo_hub.env(None) | {"HF_HOME": str(root / "cache")}, root / "log") as url:
        yield App(url, data, screenshots, chromium)


def ask(page: Page) -> None:
    """Click on Compare and wait for both answers."""
    page.get_by_role("button", name="Compare").click()
    for side in SIDES:
        page.wait_for_selector(f"#answer-{side} article.done", timeout=SETTLED)


def speeds(page: Page, side: str) -> tuple[float, float, int]:
    """Tokens a second, seconds to the first token, and tokens, as the page shows them."""
    shown = page.locator(f"#answer-{side} footer").inner_text()
    found = re.search(r"([\d,.]+) tokens/s\s+first token ([\d.]+) s\s+(\d+) tokens", shown)
    assert found, shown
    return float(found[1].replace(",", "")), float(found[2]), int(found[3])


def clean(seen: Visit) -> bool:
    return (seen.errors, seen.outside) == ([], [])


def put(page: Any, label: str, value: str) -> None:
    """Set a slider, once what opened just now is there; both of its fields show the value then."""
    number, slider = (page.get_by_label(f"{kind} for {label}") for kind in ("number input", "range slider"))
    number.wait_for()
    for _ in range(20):
        number.fill(value)
        number.press("Tab")
        page.wait_for_timeout(250)
        if (number.input_value(), slider.input_value()) == (value, value):
            return
    raise AssertionError(f"{label} stays at {number.input_value()} and {slider.input_value()}")


def test_both_answers_stream_with_their_speed(app: App) -> None:
    with visit(app.chromium, app.url) as seen:
        page = seen.page
        page.wait_for_selector("#prompt textarea")
        page.evaluate(WATCH)
        ask(page)
        texts = page.evaluate("window.seen")
        prompt = page.locator("#prompt textarea").input_value()
        for side in SIDES:
            steps = [text for text in texts[side] if text.startswith(prompt) and text != prompt]
            assert len(steps) > 2
            assert all(later.startswith(earlier) for earlier, later in zip(steps, steps[1:], strict=False))
            rate, first, tokens = speeds(page, side)
            assert rate > 0
            assert 0 <= first < SETTLED / 1000
            assert 1 < tokens <= 64
        page.screenshot(path=app.screenshots / "compare.png", full_page=True)
        assert clean(seen)


def test_an_example_fills_the_prompt_and_the_settings_count(app: App) -> None:
    with visit(app.chromium, app.url) as seen:
        page, example = seen.page, app.data["examples"][1]
        page.get_by_role("button", name=example).click()
        assert page.locator("#prompt textarea").input_value() == example
        page.get_by_text("Sampling").click()
        put(page, "New tokens", "8")
        put(page, "Temperature", "0.7")
        ask(page)
        for side in SIDES:
            assert page.locator(f"#answer-{side} .prompt").inner_text() == example
            assert speeds(page, side)[2] <= 8
        assert clean(seen)


def test_numbers_figure_and_links_are_those_of_the_run(app: App, demo_hub: EmbeddedHub) -> None:
    with visit(app.chromium, app.url, dark=True) as seen:
        page = seen.page
        page.wait_for_selector(".results img")
        for value, what in app.data["facts"]:
            assert page.locator("li", has_text=what).locator("b").first.inner_text() == value
        (table,) = app.data["tables"]
        assert page.locator(".results td").all_inner_texts() == table["rows"][0][1:]
        assert page.locator(".results img").evaluate("image => image.naturalWidth") > 100
        assert page.get_by_role("link", name="Model card").get_attribute("href") == f"{demo_hub.url}/{MODEL}"
        page.screenshot(path=app.screenshots / "compare-dark.png", full_page=True)
        assert clean(seen)


def test_it_is_usable_on_a_phone(app: App) -> None:
    with visit(app.chromium, app.url, PHONE) as seen:
        page = seen.page
        page.wait_for_selector("#prompt textarea")
        ask(page)
        page.screenshot(path=app.screenshots / "compare-phone.png", full_page=True)
        boxes = [page.locator(f"#answer-{side} article").bounding_box() for side in SIDES]
        assert all(box["width"] > 300 for box in boxes)
        assert boxes[0]["y"] + boxes[0]["height"] <= boxes[1]["y"]
        assert page.get_by_role("button", name="Compare").bounding_box()["height"] >= 44
        assert seen.overflow <= 0
        assert clean(seen)


def test_an_empty_prompt_is_refused_in_words(app: App) -> None:
    with visit(app.chromium, app.url) as seen:
        page = seen.page
        page.locator("#prompt textarea").fill("  ")
        page.get_by_role("button", name="Compare").click()
        page.get_by_text("Write a prompt, or take an example.").wait_for()
        assert seen.outside == []


def test_limits_hold_for_those_who_call_it_without_the_page(app: App) -> None:
    from gradio_client import Client

    client = Client(app.url, verbose=False)
    base, pruned = client.predict("word " * 3000, True, 0, 1, 256, api_name="/compare")
    for text in (base, pruned):
        tokens = re.search(r"<b>(\d+)</b> tokens</span>", text)
        assert tokens is not None
        assert int(tokens[1]) <= 256
        assert len(text) < 4000 + 256 * 40  # the prompt is cut to 4,000 characters
    client.close()
