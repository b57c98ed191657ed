"""The Space of a model as its visitors meet it: in a browser, served from its folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hubprune.space import write_space
from tests.browser import Visit, serve_app, visit

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from playwright.sync_api import Browser

    from hubprune.localhub import EmbeddedHub

pytestmark = pytest.mark.browser

MODEL = "me/tiny-medical-space"
SETTLED = 60_000  # milliseconds for both answers, on a busy machine


@dataclass(frozen=True)
class App:
    """A Space that runs.

    Attributes:
        url: Its address.
        folder: Its folder.
        screenshots: Where to put pictures.
        chromium: The browser.
    """

    url: str
    folder: Path
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
    with serve_app(root / "space", demo_hub.env(None) | {"HF_HOME": str(root / "cache")}, root / "log") as url:
        yield App(url, root / "space", screenshots, chromium)


def card(seen: Visit, variant: str) -> str:
    return f"#answer-{variant} article"


def test_both_answers_stream_with_their_speed(app: App) -> None:
    with visit(app.chromium, app.url) as seen:
        page = seen.page
        page.wait_for_selector("#prompt textarea")
        page.screenshot(path=app.screenshots / "compare-empty.png", full_page=True)
        page.get_by_role("button", name="Compare").click()
        for variant in ("base", "pruned"):
            page.wait_for_selector(f"{card(seen, variant)}.done", timeout=SETTLED)
        page.screenshot(path=app.screenshots / "compare.png", full_page=True)
        assert (seen.errors, seen.outside) == ([], [])
