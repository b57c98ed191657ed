"""A web browser and the apps of Spaces, for tests marked ``browser``; conftest.py has its fixtures."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SCREENSHOTS = "HUBPRUNE_SCREENSHOTS"
"""Variable that names the folder for screenshots."""
DESKTOP, PHONE = (1280, 900), (390, 844)
START_TIMEOUT = 120.0
"""Seconds for an app to answer: on a busy machine torch alone takes thirty to load."""
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """A browser without a window; one for all tests."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder that screenshots go to: the one that HUBPRUNE_SCREENSHOTS names, or one below pytest's own."""
    named = os.environ.get(SCREENSHOTS)
    folder = Path(named) if named else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class Visit:
    """A page of an app with what went wrong on it.

    Attributes:
        page: The page.
        errors: Errors of its console and its scripts.
        outside: Addresses that it asked for and that are not on this machine.
    """

    def __init__(self, page: Page) -> None:
        self.page = page
        self.errors: list[str] = []
        self.outside: list[str] = []
        page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self._look_at(request.url))

    def _look_at(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https", "ws", "wss") and parts.hostname not in ("127.0.0.1", "localhost"):
            self.outside.append(url)

    @property
    def overflow(self) -> int:
        """Pixels that the page is wider than its window."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth"))


@contextmanager
def visit(
    browser: Browser, url: str, size: tuple[int, int] = DESKTOP, *, dark: bool = False, **options: object
) -> Iterator[Visit]:
    """Open a page in a window of its own, without cookies of other visits.

    Args:
        browser: The browser.
        url: Address of the page.
        size: Width and height of the window, in pixels.
        dark: Whether its user prefers dark pages.
        options: Passed on to ``Browser.new_context``.

    Yields:
        The page; afterwards it is closed.
    """
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]},
        has_touch=size == PHONE,
        color_scheme="dark" if dark else "light",
        **options,  # type: ignore[arg-type]
    )
    try:
        found = Visit(context.new_page())
        found.page.goto(url)
        yield found
    finally:
        context.close()


@contextmanager
def serve_app(folder: Path, environment: Mapping[str, str], log: Path) -> Iterator[str]:
    """Run the app of a Space in a process of its own until the block ends.

    Args:
        folder: The Space's folder, in which ``app.py`` lies.
        environment: Variables in addition to those of this process, such as those that point at a Hub.
        log: File for what the app prints.

    Yields:
        The app's address.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    own = {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False"}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON"))}
    url = f"http://127.0.0.1:{port}"
    with (
        log.open("w", encoding="utf-8") as notes,
        subprocess.Popen(
            [sys.executable, "app.py"], cwd=folder, env=inherited | own | dict(environment), stdout=notes, stderr=notes
        ) as process,
    ):
        try:
            _wait(url, process, log)
            yield url
        finally:
            process.terminate()


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_TIMEOUT
    while True:
        try:
            urllib.request.urlopen(f"{url}/gradio_api/info", timeout=10).close()
            return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            ended = process.poll() is not None or time.monotonic() > end
            assert not ended, f"the app does not answer:\n{log.read_text(encoding='utf-8')}"
            time.sleep(0.2)
