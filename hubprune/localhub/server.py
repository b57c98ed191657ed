"""Run a Hub: in the background for tests and demos, or in the foreground as a service."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType

import uvicorn
from starlette.concurrency import run_in_threadpool

from hubprune.errors import OutputError, UsageError
from hubprune.localhub.app import build_app
from hubprune.localhub.apps import Apps
from hubprune.localhub.auth import Users
from hubprune.localhub.grants import Grants
from hubprune.localhub.runner import Runner
from hubprune.localhub.seed import seed_folder
from hubprune.localhub.store import Store
from hubprune.localhub.web import Hub

START_TIMEOUT = 30.0
"""Seconds for a server to start, and to stop."""
KEEP_ALIVE = 60
"""Seconds that an idle connection stays open. Clients close theirs after five; the server must not be first."""
_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})


class EmbeddedHub:
    """A Hub in this process, on a thread of its own; a context manager.

    >>> with EmbeddedHub("hub", users={"me": "hf_token"}) as hub:  # doctest: +SKIP
    ...     HfApi(endpoint=hub.url, token=hub.token("me")).create_repo("me/model")

    Clients read `HF_ENDPOINT` when they are imported, so code that takes no `endpoint` argument needs a process of its
    own started with `env`.

    Args:
        folder: Where repositories are kept; they are there again at the next start.
        users: Token of each user, by name.
        pro: Users with a PRO subscription.
        orgs: Members of each organization, by name.
        seed: Folders to fill the Hub from, see `seed_folder`.
        port: TCP port; 0 takes a free one.
        host: Address to listen on; the loopback address unless asked otherwise.
        page_size: Most items of one answer of a paginated list.
        lfs_part_size: Bytes above which an LFS upload is split.
        allow_jobs: Run the jobs that users send: commands of theirs, as processes of this machine with the rights of
            this one.
        allow_spaces: Run the apps of Gradio Spaces likewise, when a user starts one from its page.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        users: Mapping[str, str] | None = None,
        pro: Collection[str] = (),
        orgs: Mapping[str, Collection[str]] | None = None,
        seed: Iterable[Path | str] = (),
        port: int = 0,
        host: str = "127.0.0.1",
        page_size: int = 1000,
        lfs_part_size: int = 64 << 20,
        allow_jobs: bool = False,
        allow_spaces: bool = False,
    ) -> None:
        self.folder = Path(folder)
        self.users = Users(dict(users or {}), tuple(pro), dict(orgs or {}))
        self.grants = Grants()
        self.host = host
        self.port = port
        self._seed = tuple(seed)
        self._limits = {"page_size": page_size, "lfs_part_size": lfs_part_size}
        self._allow_jobs = allow_jobs
        self._allow_spaces = allow_spaces
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self._store: Store | None = None

    @property
    def url(self) -> str:
        """Address of the running Hub, without a slash at the end."""
        return f"http://{_address(self.host)}:{self.port}"

    @property
    def store(self) -> Store:
        """The store of the running Hub."""
        if self._store is None:
            raise UsageError("the Hub is not running; use it inside its 'with' block")
        return self._store

    def token(self, user: str) -> str:
        """Return the token of a user.

        Raises:
            UsageError: There is no such user.
        """
        if user not in self.users.tokens:
            raise UsageError(f"the users of this Hub are {', '.join(self.users.tokens) or 'none'}; got {user!r}")
        return self.users.tokens[user]

    def env(self, user: str | None = None) -> dict[str, str]:
        """Return environment variables that point a client process at this Hub, to add to those it inherits.

        Args:
            user: Whom the process acts for; nobody when None.
        """
        return client_env(self.url, None if user is None else self.token(user))

    def prepare(self) -> socket.socket:
        """Open the store, seed it and bind the port; `serve` and `__enter__` go on from here."""
        if self._allow_spaces and not is_loopback(self.host):
            raise UsageError(
                f"the apps of Spaces are reached on this machine only, got the address {self.host}: serve the Hub on "
                "127.0.0.1, or without its Spaces running"
            )
        self._store = Store(self.folder)
        try:
            self._store.blobs.sweep()
            for folder in self._seed:
                seed_folder(self._store, folder)
            listener = _bind(self.host, self.port)
        except BaseException:
            self._store.close()
            raise
        self.port = listener.getsockname()[1]
        hosts = _LOOPBACK_NAMES | {_address(self.host)} if is_loopback(self.host) else None
        runner = Runner(client_env) if self._allow_jobs else None
        apps = Apps(client_env, self.grants) if self._allow_spaces else None
        hub = Hub(self._store, self.users, runner=runner, apps=apps, grants=self.grants, **self._limits)
        config = uvicorn.Config(
            build_app(hub, hosts),
            log_level="warning",
            access_log=False,
            lifespan="off",
            ws="none",
            date_header=False,  # the application's is exact
            timeout_graceful_shutdown=3,
            timeout_keep_alive=KEEP_ALIVE,
        )
        self._server = _Server(config, [part for part in (runner, apps) if part is not None])
        return listener

    def run(self, listener: socket.socket) -> None:
        """Serve until the server is told to stop, then close everything."""
        if self._server is None or self._store is None:
            raise UsageError("call prepare() before run()")
        try:
            self._server.run(sockets=[listener])
        finally:
            listener.close()
            self._store.close()

    def __enter__(self) -> EmbeddedHub:
        """Start serving."""
        listener = self.prepare()
        self._thread = threading.Thread(target=self.run, args=(listener,), name="localhub", daemon=True)
        self._thread.start()
        # The socket listens already: the first request waits in its queue until the loop takes it.
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop serving; requests under way are given a moment to end."""
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join(START_TIMEOUT)
            if self._thread.is_alive():
                raise OutputError(f"the server on port {self.port} did not stop within {START_TIMEOUT:.0f} s")


class _Server(uvicorn.Server):
    """A server that ends jobs and apps before it waits for those who are connected because of them."""

    def __init__(self, config: uvicorn.Config, parts: list[Runner | Apps]) -> None:
        super().__init__(config)
        self._parts = parts

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for part in self._parts:
            await run_in_threadpool(part.close)
        await super().shutdown(sockets)


def client_env(url: str, token: str | None) -> dict[str, str]:
    """Return the environment variables that keep a client at one Hub and away from every other host.

    Args:
        url: Address of the Hub.
        token: Token of the user; None for an anonymous client.
    """
    return {
        "HF_ENDPOINT": url,
        **({"HF_TOKEN": token} if token else {"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "DISABLE_SAFETENSORS_CONVERSION": "1",
        "NO_PROXY": "127.0.0.1,localhost,::1",
        "no_proxy": "127.0.0.1,localhost,::1",
    }


def serve(
    folder: Path | str,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    users: Mapping[str, str] | None = None,
    pro: Collection[str] = (),
    orgs: Mapping[str, Collection[str]] | None = None,
    seed: Iterable[Path | str] = (),
    allow_jobs: bool = False,
    allow_spaces: bool = False,
) -> None:
    """Serve a Hub until interrupted; prints its address and how to point a client at it.

    Args:
        folder: Where repositories are kept.
        host: Address to listen on; anything but the loopback address opens the Hub to the network.
        port: TCP port; 0 takes a free one.
        users: Token of each user, by name.
        pro: Users with a PRO subscription.
        orgs: Members of each organization, by name.
        seed: Folders to fill the Hub from.
        allow_jobs: Run the jobs that users send, as processes of this machine.
        allow_spaces: Run the apps of Gradio Spaces that users start, as processes of this machine.

    Raises:
        UsageError: A user or a folder to seed from is not valid.
        OutputError: The folder or the port cannot be used.
    """
    hub = EmbeddedHub(
        folder,
        users=users,
        pro=pro,
        orgs=orgs,
        seed=seed,
        port=port,
        host=host,
        allow_jobs=allow_jobs,
        allow_spaces=allow_spaces,
    )
    listener = hub.prepare()
    lines = [f"Hub of {os.path.abspath(folder)} at {hub.url}", f"  export HF_ENDPOINT={hub.url}"]
    lines += [f"  export HF_TOKEN=<token of {name}>" for name in hub.users.tokens]
    lines.append("  export HF_HUB_DISABLE_TELEMETRY=1 DISABLE_SAFETENSORS_CONVERSION=1")
    if allow_jobs:
        lines.append("Jobs are on: whoever has a token runs commands on this machine, with your rights.")
    if allow_spaces:
        lines.append("Spaces are on: whoever has a token runs apps on this machine, with your rights.")
    if not is_loopback(host):
        lines.append(f"Open to the network on {host}: traffic is not encrypted and tokens can be read on the way.")
    print("\n".join([*lines, "Press Ctrl+C to stop."]), flush=True)
    with suppress(KeyboardInterrupt):
        hub.run(listener)
    print("Stopped.", flush=True)


def parse_users(specs: Iterable[str]) -> tuple[dict[str, str], set[str]]:
    """Read users written `NAME:TOKEN` or `NAME:TOKEN:pro`.

    Returns:
        The token of each user by name, and the names of those who are PRO.

    Raises:
        UsageError: One is written otherwise, or a name is given twice.
    """
    tokens: dict[str, str] = {}
    pro: set[str] = set()
    for spec in specs:
        name, _, rest = spec.partition(":")
        token, _, plan = rest.partition(":")
        if not name or not token or plan not in ("", "pro") or name in tokens:
            # The token stays out of the message: messages end up in logs.
            raise UsageError(f"a user is NAME:TOKEN or NAME:TOKEN:pro, each name once; check the one named {name!r}")
        tokens[name] = token
        if plan == "pro":
            pro.add(name)
    return tokens, pro


def is_loopback(host: str) -> bool:
    """Tell whether an address is reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _address(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(128)
    except (OSError, OverflowError) as error:
        listener.close()
        raise OutputError(f"the Hub must be able to listen on {host}:{port}: {error}; choose another port") from error
    return listener
