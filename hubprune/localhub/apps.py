"""Spaces that run: the app of a Space as a process of this machine, started and stopped from its page.

Whoever may push a Space and start it runs what they like with the rights of the server, so a Hub has `Apps` only where
it was asked for them. Nothing is installed: an app finds the server's own Python. Each is reached under a name of its
own below `localhost`, because a browser sends cookies to every port of one name.
"""

from __future__ import annotations

import hashlib
import shutil
import socket
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hubprune
from hubprune.errors import UsageError
from hubprune.localhub import cards
from hubprune.localhub.grants import ALWAYS, Grants
from hubprune.localhub.jobspec import JobSpec
from hubprune.localhub.runner import Job
from hubprune.localhub.store import Repo

LONGEST = 24 * 3600.0
"""Seconds after which an app is stopped."""
PATIENCE = 0.2
"""Seconds in which a running app takes a connection."""
CALLBACK = "/login/callback"
"""Where Gradio's login button is led back to."""


@dataclass(frozen=True)
class Content:
    """What a Space is made of.

    Attributes:
        repo: The Space.
        files: Its files: path, and the blob with the content.
        card: Metadata of its README.
        variables: Its variables.
        secrets: Its secrets.
    """

    repo: Repo
    files: tuple[tuple[str, Path], ...]
    card: Mapping[str, Any]
    variables: Mapping[str, str]
    secrets: Mapping[str, str]


class App(Job):
    """The running app of a Space.

    Attributes:
        url: Its address.
    """

    def __init__(self, content: Content, user: str, port: int, spec: JobSpec) -> None:
        super().__init__(content.repo.namespace, user, spec)
        self.port = port
        self.url = address(content.repo, port)
        self._content = content

    @property
    def state(self) -> str:
        """Its stage as a Space reports it: `APP_STARTING`, `RUNNING`, `RUNTIME_ERROR` or `STOPPED`."""
        if self.over:
            return "STOPPED" if self.stage == "CANCELED" else "RUNTIME_ERROR"
        try:
            socket.create_connection(("127.0.0.1", self.port), PATIENCE).close()
        except OSError:
            return "APP_STARTING"
        return "RUNNING"

    def _environment(self, folder: Path, environ: Mapping[str, str]) -> dict[str, str]:
        return {**super()._environment(folder, environ), "PYTHONPATH": str(folder / "packages")}

    def _fill(self, folder: Path) -> Path:
        # The folder of a checkout, which an editable install puts on the path, holds one named like the package of
        # the Hub's ZeroGPU machines; there are none here.
        (folder / "packages").mkdir()
        (folder / "packages" / "spaces.py").write_text("raise ImportError('no ZeroGPU on this machine')\n")
        (folder / "packages" / "hubprune").symlink_to(Path(hubprune.__file__).resolve().parent)
        place = folder / "app"
        for name, blob in self._content.files:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(blob, place / name)
        return place


class Apps:
    """The running apps of a Hub.

    Args:
        environ: From the address of the Hub and a token, or None, to the variables that point clients at it.
        grants: Where apps with a login button are registered.
    """

    def __init__(self, environ: Callable[[str, str | None], Mapping[str, str]], grants: Grants) -> None:
        self._environ = environ
        self._grants = grants
        self._apps: dict[int, App] = {}
        self._lock = threading.Lock()
        self._closed = False

    def start(self, content: Content, user: str, url: str, key: bytes) -> App:
        """Start the app of a Space; one that runs goes on.

        Args:
            content: The Space.
            user: Who starts it.
            url: Address of the Hub.
            key: Secret of the store, from which the app's id as a client is made.

        Raises:
            UsageError: The Space is not a Gradio one, it has no such file, or the server is about to stop.
        """
        repo, card = content.repo, content.card
        main = card.get("app_file") or "app.py"
        if (card.get("sdk") or repo.sdk) != "gradio":
            raise UsageError(f"only Gradio Spaces run here, and {repo.id} is a {repo.sdk} one: run it by hand")
        if main not in [name for name, _ in content.files]:
            raise UsageError(f"{repo.id} has no file {main!r:.100}, which its README names as the app: push it")
        with self._lock:
            if self._closed:
                raise UsageError("this Hub is about to stop: start the app when it is back")
            running = self._apps.get(repo.pk)
            if running is not None and not running.over:
                return running
            port = _free_port()
            secrets = {**content.secrets, **self._client(content, port, key)}
            spec = JobSpec(
                ("python", str(main)),
                environment={**_described(content, url), **_gradio(port), **content.variables},
                secrets=secrets,
                timeout=LONGEST,
            )
            app = self._apps[repo.pk] = App(content, user, port, spec)
            app.start(self._environ(url, secrets.get("HF_TOKEN")))
            return app

    def find(self, repo: Repo) -> App | None:
        """Return the app of a Space, running or ended; None when it was never started."""
        return self._apps.get(repo.pk)

    def stop(self, repo: Repo) -> None:
        """Stop the app of a Space; returns when it has ended."""
        app = self._apps.get(repo.pk)
        if app is not None:
            app.cancel()
            self._grants.forget(app.spec.secrets.get("OAUTH_CLIENT_ID", ""))

    def close(self) -> None:
        """Stop every app, and start none any more."""
        with self._lock:
            self._closed = True
        with ThreadPoolExecutor() as pool:
            list(pool.map(Job.cancel, self._apps.values()))

    def _client(self, content: Content, port: int, key: bytes) -> dict[str, str]:
        """Register a Space with a login button; returns the variables that tell it."""
        if content.card.get("hf_oauth") is not True:
            return {}
        repo = content.repo
        name = hashlib.sha256(key + f"oauth {repo.pk} {repo.created}".encode()).hexdigest()[:32]
        scopes = cards.strings(content.card.get("hf_oauth_scopes"))
        client = self._grants.register(name, repo.id, [f"{address(repo, port)}{CALLBACK}"], scopes)
        return {"OAUTH_CLIENT_ID": client.id, "OAUTH_CLIENT_SECRET": client.secret}


def address(repo: Repo, port: int) -> str:
    """Return where the app of a Space is reached."""
    return f"http://space-{repo.pk}.localhost:{port}"


def _described(content: Content, url: str) -> dict[str, str]:
    """The variables by which an app knows its Space, as on the public Hub."""
    repo, scopes = content.repo, cards.strings(content.card.get("hf_oauth_scopes"))
    return {
        "SYSTEM": "spaces",
        "SPACE_ID": repo.id,
        "SPACE_AUTHOR_NAME": repo.namespace,
        "SPACE_REPO_NAME": repo.name,
        "SPACE_TITLE": str(content.card.get("title") or repo.name),
        "OPENID_PROVIDER_URL": url,
        "OAUTH_SCOPES": " ".join([*ALWAYS, *scopes]),
    }


def _gradio(port: int) -> dict[str, str]:
    return {
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_SSR_MODE": "False",
        "PYTHONUNBUFFERED": "1",
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
