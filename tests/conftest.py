"""What every test may use: an embedded Hub, real models and data, and clients that reach nothing else."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.browser import chromium, screenshots
from tests.forks import Forks

if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from hubprune.localhub import EmbeddedHub

__all__ = ["chromium", "screenshots"]
ROOT = Path(__file__).resolve().parents[1]
REAL = Path(os.environ.get("HUBPRUNE_REAL") or ROOT.parent / "shared" / "real")
USERS = {"me": "hf_test_me", "guest": "hf_test_guest"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# The clients read their settings when they are imported, so all is set here, before any test module is: whose Hub they
# talk to (it starts with the fixture `hub`), a cache of their own, and nothing of the user's, the token above all.
_PORT = _free_port()
_CACHE = Path(tempfile.mkdtemp(prefix="hubprune-tests-"))
for _name in [n for n in os.environ if n.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))]:
    del os.environ[_name]
os.environ |= {
    "HF_ENDPOINT": f"http://127.0.0.1:{_PORT}",
    "HF_HOME": str(_CACHE),
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "DISABLE_SAFETENSORS_CONVERSION": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "MPLBACKEND": "agg",
    "NO_PROXY": "127.0.0.1,localhost,::1",
    "no_proxy": "127.0.0.1,localhost,::1",
    "TOKENIZERS_PARALLELISM": "false",
}
# Tiny models are faster on one thread, and sums come out in the same order everywhere.
os.environ.setdefault("OMP_NUM_THREADS", "1")


# These start every stranger who reloads a model as a process of its own.
FRESH = {"test_verifier"}
# The files that take longest, in the order in which they are begun, so that none is left to one process at the end.
LONGEST = (
    "test_ranks test_demo test_real test_recovery test_resume test_unit_runs test_docs test_cli test_modeling "
    "test_export test_demo_world test_real_evaluation test_sidebyside test_optimum test_prune_my_repo test_verifier"
).split()

# Test files whose models are saved with their figures; drawing takes half a second, and the others have no use for it.
DRAWING = {"test_figures", "test_publisher", "test_docs", "test_demo"}


@pytest.fixture(autouse=True)
def _few_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.path.stem not in DRAWING:
        monkeypatch.setattr("hubprune.figures.write_figures", lambda *_: [])


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Processes that need not import torch and transformers."""
    started = Forks()
    yield started
    started.close()


@pytest.fixture(autouse=True)
def _quick_strangers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, forks: Forks) -> None:
    if request.path.stem not in FRESH and "hubprune.reloading" in sys.modules:
        monkeypatch.setattr("hubprune.reloading.ask_stranger", forks.ask)


def pytest_unconfigure() -> None:
    """Remove the caches of this run."""
    shutil.rmtree(_CACHE, ignore_errors=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the choice of the slow tests."""
    parser.addoption("--slow", action="store_true", help="run the tests marked slow as well")


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _has_browser() -> bool:
    return shutil.which("chromium") is not None and importlib.util.find_spec("playwright") is not None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip the tests whose need is not met here, which is asked only when a test has it; put long files first."""
    needs: dict[str, tuple[Callable[[], bool], str]] = {
        "real": (REAL.is_dir, f"no real models and data sets at {REAL}"),
        "slow": (lambda: bool(config.getoption("--slow")), "takes minutes: give --slow"),
        "gpu": (_has_gpu, "no GPU that torch can use"),
        "browser": (_has_browser, "no chromium on the path, or no playwright: make test-browser"),
    }
    for marker, (met, reason) in needs.items():
        marked = [item for item in items if item.get_closest_marker(marker)]
        if marked and not met():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason=reason))
    begun = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: begun.get(item.path.stem, len(begun)))


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedHub]:
    """The Hub that this process' clients talk to, with jobs; users `me` (PRO, of `acme`) and `guest` (not PRO)."""
    from hubprune.localhub import EmbeddedHub

    folder = tmp_path_factory.mktemp("hub")
    with EmbeddedHub(folder, users=USERS, pro={"me"}, orgs={"acme": {"me"}}, port=_PORT, allow_jobs=True) as running:
        yield running


@pytest.fixture(scope="session")
def hub_api(hub: EmbeddedHub) -> Callable[[str | None], HfApi]:
    """A function from a user name (None for an anonymous client) to a client of the Hub."""
    from huggingface_hub import HfApi

    def make(user: str | None = "me") -> HfApi:
        return HfApi(endpoint=hub.url, token=hub.token(user) if user else False, library_name="hubprune-tests")

    return make


@pytest.fixture(scope="session")
def demo_hub(hub: EmbeddedHub, tmp_path_factory: pytest.TempPathFactory) -> EmbeddedHub:
    """The Hub with the demo world in it: `hubprune-demo/tiny-base`, `general`, `medical` and `legal`."""
    from hubprune.demo import write_world
    from hubprune.localhub import seed_folder

    seed_folder(hub.store, write_world(tmp_path_factory.mktemp("demo-world")))
    return hub


@pytest.fixture(scope="session")
def real_folder() -> Path:
    """Real models and data sets, laid out as on a Hub; for tests marked `real`."""
    return REAL


@pytest.fixture(scope="session")
def real_hub(hub: EmbeddedHub, real_folder: Path) -> EmbeddedHub:
    """The Hub with the real models and data sets in it; for tests marked `real`."""
    from hubprune.localhub import seed_folder

    seed_folder(hub.store, real_folder)
    return hub
