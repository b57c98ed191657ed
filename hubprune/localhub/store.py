"""One SQLite database for everything that is not file content, and the blob folder beside it.

A change is one `BEGIN IMMEDIATE` transaction in write-ahead-log mode with full synchronisation: after `write()`
returns, the change survives a killed process; before, nothing of it exists. Readers never wait for the writer.
"""

from __future__ import annotations

import contextlib
import queue
import secrets
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from hubprune.errors import OutputError
from hubprune.localhub.blobs import BlobStore

SCHEMA_VERSION = 1
BUSY_TIMEOUT = 30.0
"""Seconds a writer waits for another one."""

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE repos (
    pk INTEGER PRIMARY KEY, type TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL,
    private INTEGER NOT NULL DEFAULT 0, gated TEXT NOT NULL DEFAULT '', sdk TEXT, created TEXT NOT NULL,
    hardware TEXT NOT NULL DEFAULT 'cpu-basic', sleep_time INTEGER, stage TEXT NOT NULL DEFAULT 'STOPPED',
    UNIQUE (type, namespace, name));
CREATE TABLE moves (
    type TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL,
    repo INTEGER NOT NULL REFERENCES repos ON DELETE CASCADE, PRIMARY KEY (type, namespace, name));
CREATE TABLE trees (
    tree TEXT NOT NULL, path TEXT NOT NULL, oid TEXT NOT NULL, sha256 TEXT NOT NULL, size INTEGER NOT NULL,
    lfs INTEGER NOT NULL, PRIMARY KEY (tree, path)) WITHOUT ROWID;
CREATE TABLE commits (
    repo INTEGER NOT NULL REFERENCES repos ON DELETE CASCADE, oid TEXT NOT NULL, parent TEXT, tree TEXT NOT NULL,
    title TEXT NOT NULL, message TEXT NOT NULL, author TEXT NOT NULL, date TEXT NOT NULL, PRIMARY KEY (repo, oid));
CREATE TABLE refs (
    repo INTEGER NOT NULL REFERENCES repos ON DELETE CASCADE, ref TEXT NOT NULL, oid TEXT NOT NULL,
    PRIMARY KEY (repo, ref));
CREATE TABLE discussions (
    repo INTEGER NOT NULL REFERENCES repos ON DELETE CASCADE, num INTEGER NOT NULL, title TEXT NOT NULL,
    author TEXT NOT NULL, status TEXT NOT NULL, created TEXT NOT NULL, base TEXT, base_oid TEXT, merged_oid TEXT,
    PRIMARY KEY (repo, num));
CREATE TABLE events (
    id TEXT PRIMARY KEY, repo INTEGER NOT NULL, num INTEGER NOT NULL, type TEXT NOT NULL, author TEXT NOT NULL,
    created TEXT NOT NULL, data TEXT NOT NULL,
    FOREIGN KEY (repo, num) REFERENCES discussions (repo, num) ON DELETE CASCADE);
CREATE TABLE access (
    id TEXT PRIMARY KEY, repo INTEGER NOT NULL REFERENCES repos ON DELETE CASCADE, user TEXT NOT NULL,
    status TEXT NOT NULL, created TEXT NOT NULL, UNIQUE (repo, user));
CREATE TABLE settings (
    repo INTEGER NOT NULL REFERENCES repos ON DELETE CASCADE, kind TEXT NOT NULL, key TEXT NOT NULL,
    value TEXT NOT NULL, description TEXT, updated TEXT NOT NULL, PRIMARY KEY (repo, kind, key));
"""
# Added later to stores of the same format.
_ADDED = """
CREATE TABLE IF NOT EXISTS contributions (
    repo INTEGER PRIMARY KEY REFERENCES repos ON DELETE CASCADE, client TEXT NOT NULL)
"""


@dataclass(frozen=True)
class Repo:
    """A row of `repos`.

    Attributes:
        gated: `""` (open), `"auto"` or `"manual"`.
        sdk: SDK of a Space.
        hardware: Hardware asked for a Space.
        sleep_time: Seconds before a Space sleeps.
        stage: Stage a Space reports.
    """

    pk: int
    type: str
    namespace: str
    name: str
    private: bool
    gated: str
    sdk: str | None
    created: str
    hardware: str
    sleep_time: int | None
    stage: str

    @property
    def id(self) -> str:
        """The repository id, `namespace/name`."""
        return f"{self.namespace}/{self.name}"

    @property
    def path(self) -> str:
        """Path of its page, without a leading slash: `a/b`, `datasets/a/b`, `spaces/a/b`."""
        return self.id if self.type == "model" else f"{self.type}s/{self.id}"


class Store:
    """The state of a Hub in one folder.

    Args:
        folder: Created if missing.

    Raises:
        OutputError: The folder cannot be written, or holds something else or a newer format.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.blobs = BlobStore(self.folder)
        except OSError as error:
            raise OutputError(f"the folder of the Hub must be writable; {self.folder}: {error}") from error
        self._pool: queue.LifoQueue[sqlite3.Connection] = queue.LifoQueue()
        self._closed = False
        try:
            self._prepare()
        except sqlite3.DatabaseError as error:
            raise OutputError(
                f"the database of the Hub must be readable and writable; {self.folder / 'hub.sqlite'}: {error}"
            ) from error
        self.id = self.meta("id")
        self.key = bytes.fromhex(self.meta("key"))

    def _prepare(self) -> None:
        with self.write() as db:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                for statement in _SCHEMA.split(";"):
                    if statement.strip():
                        db.execute(statement)
                facts = (secrets.token_hex(8), secrets.token_hex(32))
                db.execute("INSERT INTO meta VALUES ('id', ?), ('key', ?)", facts)
                db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            elif version != SCHEMA_VERSION:
                raise OutputError(
                    f"the folder must hold a Hub of format {SCHEMA_VERSION}; {self.folder} has format {version}: "
                    "use the version of hubprune that wrote it, or another folder"
                )
            db.execute(_ADDED)

    @contextlib.contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection inside one read transaction: all queries see the same state."""
        with self._lend() as db:
            db.execute("BEGIN")
            try:
                yield db
            finally:
                db.execute("ROLLBACK")

    @contextlib.contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection inside one write transaction, undone when the block raises."""
        with self._lend() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
            except BaseException:
                db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")

    @contextlib.contextmanager
    def _lend(self) -> Iterator[sqlite3.Connection]:
        try:
            db = self._pool.get_nowait()
        except queue.Empty:
            db = self._connect()
        try:
            yield db
        finally:
            if self._closed:
                db.close()
            else:
                self._pool.put(db)

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(
            self.folder / "hub.sqlite", timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False
        )
        db.row_factory = sqlite3.Row
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
            db.execute(f"PRAGMA {pragma}")
        return db

    def meta(self, key: str) -> str:
        """Return a fixed fact about this store."""
        with self.read() as db:
            return str(db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()[0])

    def close(self) -> None:
        """Close every connection that is not lent; the others close when they come back."""
        self._closed = True
        while True:
            try:
                self._pool.get_nowait().close()
            except queue.Empty:
                return


def now() -> str:
    """Return the time as clients parse it: UTC, milliseconds, `Z`."""
    return stamp(time.time())


def stamp(epoch: float) -> str:
    """Return seconds since 1970 as clients parse it."""
    return datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def epoch_seconds(date: str) -> int:
    """Return the whole seconds since 1970 of a date written by `stamp`."""
    return int(datetime.strptime(date, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC).timestamp())
