"""The Space prune-my-repo as its visitors meet it: started on the embedded Hub, logged in to, used in a browser."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from localhub_helpers import run_client

from hubprune.demo import write_world
from hubprune.localhub import EmbeddedHub
from tests.browser import PHONE, Visit, visit

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser

FOLDER = Path(__file__).resolve().parents[1] / "spaces" / "prune-my-repo"
SPACE, MODEL = "hubprune-demo/prune-my-repo", "me/from-the-page"
TOKEN = "hf_browser_me"
START, RUN = 120_000, 240_000  # milliseconds, on a busy machine


@dataclass(frozen=True)
class World:
    """A Hub with the demo's repositories and the Space, and a browser.

    Attributes:
        hub: The Hub, which runs Spaces.
        chromium: The browser.
        screenshots: Where to put pictures.
    """

    hub: EmbeddedHub
    chromium: Browser
    screenshots: Path


@pytest.fixture(scope="module")
def world(chromium: Browser, screenshots: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    root = tmp_path_factory.mktemp("prune-my-repo")
    seed = write_world(root / "world")
    shutil.copytree(FOLDER, seed / "spaces" / SPACE, ignore=shutil.ignore_patterns("__pycache__"))
    with EmbeddedHub(root / "hub", users={"me": TOKEN}, seed=[seed], allow_spaces=True) as hub:
        yield World(hub, chromium, screenshots)


def picture(world: World, page: Page, name: str) -> None:
    page.screenshot(path=world.screenshots / f"prune-my-repo-{name}.png", full_page=True)


def start_app(world: World, page: Page) -> str:
    """Sign in to the Hub, start the app from the page of the Space, and return its address."""
    page.fill("input[name=token]", TOKEN)
    page.get_by_role("button", name="Sign in").click()
    page.goto(f"{world.hub.url}/spaces/{SPACE}")
    page.get_by_role("button", name="Start the app").click()
    page.locator(".state.RUNNING, .state.RUNTIME_ERROR").wait_for(timeout=START)
    link = page.get_by_role("link", name="Open the app")
    assert link.count(), page.inner_text(".app")
    picture(world, page, "space")
    return str(link.get_attribute("href"))


def search(page: Page, field: str, typed: str, option: str) -> None:
    """Type into a dropdown that searches the Hub, and take what it finds."""
    page.click(f"#{field} input")
    page.locator(f"#{field} input").press_sequentially(typed, delay=30)
    page.get_by_role("option", name=option).click(timeout=START)


def write(page: Page, field: str, text: str) -> None:
    """Write a name into such a dropdown, without waiting for what it finds."""
    page.fill(f"#{field} input", text)
    page.press(f"#{field} input", "Enter")


def of_the_app(seen: Visit) -> list[str]:
    """Addresses outside of this machine."""
    return [url for url in seen.outside if not re.match(r"http://space-\d+\.localhost:", url)]


def test_a_model_is_pruned_through_the_page_and_loads(world: World, tmp_path: Path) -> None:
    with visit(world.chromium, f"{world.hub.url}/login") as seen:
        page = seen.page
        address = start_app(world, page)
        page.goto(address)
        page.get_by_role("button", name="Sign in with Hugging Face").click()
        page.get_by_text("Create repositories, and use those that this app created").wait_for(timeout=START)
        picture(world, page, "consent")
        page.get_by_role("button", name="Agree as me").click()
        page.get_by_role("button", name="Logout (me)").wait_for(timeout=START)
        seen.errors.clear()  # leaving for the login breaks off what the page was still waiting for
        page.get_by_text("None yet.").wait_for(timeout=START)

        search(page, "base", "tiny", "hubprune-demo/tiny-base")
        write(page, "domain", "hubprune-demo/medical")
        write(page, "general", "hubprune-demo/general")
        page.get_by_text("Amount of text").click()
        for field, value in (("samples", "8"), ("length", "64")):
            page.fill(f"#{field} input[type=number]", value)
            page.keyboard.press("Tab")
        page.fill("#name textarea, #name input", "from-the-page")
        page.locator("#preview li.domain").first.wait_for(timeout=START)
        page.get_by_text("Runs on this Space").wait_for(timeout=START)
        assert "1.05M" in page.inner_text("#estimate")
        values = [page.input_value(f"#{field} input") for field in ("base", "domain", "general")]
        assert values == ["hubprune-demo/tiny-base", "hubprune-demo/medical", "hubprune-demo/general"]
        picture(world, page, "asked")

        page.get_by_role("button", name="Prune and publish").click()
        page.locator("#progress .state").wait_for(timeout=START)
        picture(world, page, "running")
        page.locator("#progress .done").wait_for(timeout=RUN)
        page.locator("#history a", has_text=MODEL).wait_for(timeout=START)
        picture(world, page, "done")
        assert "perplexity on" in page.input_value("#log textarea")
        assert TOKEN not in page.content()
        assert "hf_oauth_" not in page.content()
        assert (seen.errors, of_the_app(seen)) == ([], [])

        page.goto(f"{world.hub.url}/{MODEL}")
        page.get_by_role("heading", name="Results").wait_for()
        pictures = page.evaluate("[...document.querySelectorAll('.doc img')].map(i => [i.src, i.naturalWidth])")
        picture(world, page, "card")
        shown = {src.rpartition("/resolve/main/")[2]: width for src, width in pictures}
        assert {"figures/sparsity.png", "figures/overlap.png"} <= set(shown)
        assert min(shown.values()) > 0
        assert page.locator(".chips .pipeline_tag").inner_text() == "text-generation"

        with visit(world.chromium, address, PHONE, dark=True) as small:
            small.page.get_by_role("button", name="Sign in with Hugging Face").wait_for(timeout=START)
            picture(world, small.page, "phone")
            assert small.overflow <= 0
            small.page.get_by_role("button", name="Prune and publish").click()
            small.page.get_by_text("Log in with Hugging Face first").wait_for(timeout=START)

    code = f"""
        from transformers import AutoModelForCausalLM, AutoTokenizer
        model = AutoModelForCausalLM.from_pretrained("{MODEL}")
        tokenizer = AutoTokenizer.from_pretrained("{MODEL}")
        weight = model.model.layers[0].mlp.up_proj.weight
        print(float((weight == 0).float().mean()), len(tokenizer("The patient had").input_ids) > 2)
    """
    assert run_client(world.hub, code, tmp_path).split() == ["0.5", "True"]
