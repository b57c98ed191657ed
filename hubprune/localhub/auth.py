"""Who is asking, what they may do, and signed links for requests that carry no token."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import sqlite3
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from hubprune.errors import UsageError
from hubprune.localhub.ids import check_namespace
from hubprune.localhub.store import Repo

COOKIE = "localhub_token"
LINK_LIFETIME = 3600
"""Seconds for which a signed link or an upload token is valid."""


@dataclass(frozen=True)
class Users:
    """The users of a Hub; given at start, not stored.

    Args:
        tokens: Token of each user, by name.
        pro: Users with a PRO subscription; the public Hub asks for one to host Gradio and Docker Spaces.
        orgs: Members of each organization, by name; members may write to its repositories.

    Raises:
        UsageError: A name is not valid, a token is empty or shared, or a user is not declared.
    """

    tokens: Mapping[str, str]
    pro: Collection[str] = ()
    orgs: Mapping[str, Collection[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check names and tokens."""
        for name in (*self.tokens, *self.orgs):
            check_namespace(name)
        if not all(self.tokens.values()) or len(set(self.tokens.values())) != len(self.tokens):
            raise UsageError("every user needs a token of their own that is not empty; give NAME:TOKEN for each")
        unknown = {*self.pro, *(user for members in self.orgs.values() for user in members)} - set(self.tokens)
        if unknown:
            raise UsageError(f"PRO users and members must be users; not declared: {', '.join(sorted(unknown))}")

    def by_token(self, token: str) -> str | None:
        """Return the user a token belongs to."""
        found = None
        for name, expected in self.tokens.items():
            if hmac.compare_digest(expected.encode(), token.encode()):
                found = name
        return found

    def orgs_of(self, user: str) -> list[str]:
        """Return the organizations a user is a member of."""
        return sorted(org for org, members in self.orgs.items() if user in members)

    def may_write(self, user: str | None, namespace: str) -> bool:
        """Tell whether a user owns a namespace: their own, or an organization they are a member of."""
        return user is not None and (user == namespace or namespace in self.orgs_of(user))


def has_access(db: sqlite3.Connection, users: Users, user: str | None, repo: Repo) -> bool:
    """Tell whether a user may read the files of a gated repository; an open one is open to all who see it."""
    if not repo.gated or users.may_write(user, repo.namespace):
        return True
    row = db.execute("SELECT status FROM access WHERE repo = ? AND user = ?", (repo.pk, user)).fetchone()
    return row is not None and row["status"] == "accepted"


def sign(key: bytes, **facts: str | int) -> str:
    """Return a token that states facts until it expires.

    Args:
        key: Secret of the store.
        facts: What the bearer may do.
    """
    body = json.dumps({"exp": expiry(), **facts}, sort_keys=True).encode()
    return f"{_text(body)}.{_text(_mac(key, body))}"


def expiry() -> int:
    """Return when a token made now expires, in seconds since 1970."""
    return int(time.time()) + LINK_LIFETIME


def verify(key: bytes, token: str) -> dict[str, str | int] | None:
    """Return the facts of a token, or None when it is forged, damaged or expired."""
    try:
        body, mac = (base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)) for part in token.split("."))
    except ValueError:
        return None
    if not hmac.compare_digest(mac, _mac(key, body)):
        return None
    facts: dict[str, str | int] = json.loads(body)
    return facts if int(facts["exp"]) > time.time() else None


def _mac(key: bytes, body: bytes) -> bytes:
    return hmac.new(key, body, hashlib.sha256).digest()


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
