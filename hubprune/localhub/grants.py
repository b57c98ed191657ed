"""What users allow apps to do in their name: clients, the codes of one sign-in, and tokens of a few hours.

As on the public Hub a token reaches as far as the scopes that its user agreed to, and only the user's own
repositories. Everything is kept in memory, of tokens only a digest: when the server stops, apps ask again.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

CODE_LIFETIME = 300
"""Seconds in which an app has to trade the code of a sign-in for a token."""
TOKEN_LIFETIME = 8 * 3600
"""Seconds for which a token is valid, as for Spaces of the public Hub."""
MAX_PENDING = 1000
"""Codes that wait to be traded; the oldest goes when there are more."""

SCOPES: dict[str, str] = {
    "openid": "Know who you are",
    "profile": "See your user name",
    "email": "See your email address, where there is one",
    "read-billing": "Know whether you can pay",
    "read-repos": "Read your repositories, private ones too",
    "gated-repos": "Read gated repositories that you have access to",
    "contribute-repos": "Create repositories, and use those that this app created",
    "write-repos": "Change your repositories",
    "manage-repos": "Create, change and delete your repositories",
    "write-discussions": "Open discussions and pull requests, and answer in them",
    "inference-api": "Use inference in your name",
    "jobs": "Run jobs in your name",
}
"""What an app may ask for, and how the user is told."""
ALWAYS = ("openid", "profile")
"""Granted to every app."""
CHANGES = ("write-repos", "manage-repos")
READS = ("read-repos", *CHANGES)


@dataclass(frozen=True)
class Client:
    """An app that asks users to sign in.

    Attributes:
        id: Its public name.
        secret: What proves that it is the app.
        name: What users are told.
        redirects: Addresses that a sign-in may lead back to, without a query.
        scopes: What it may ask for.
    """

    id: str
    secret: str
    name: str
    redirects: tuple[str, ...]
    scopes: frozenset[str]

    def leads_to(self, address: str) -> bool:
        """Tell whether a sign-in may lead to an address; apps write into its query where to go on."""
        parts = urlsplit(address)
        return not parts.fragment and parts._replace(query="").geturl() in self.redirects


@dataclass(frozen=True)
class Asked:
    """What an app asks of a user.

    Attributes:
        client: Id of the app.
        redirect: Address to lead back to.
        scopes: What it wants to do.
        state: Handed back to the app, which knows its own sign-in by it.
        nonce: Likewise, inside of the identity token.
        challenge: SHA-256 of a word that the app has to show for its token (PKCE); empty for none.
    """

    client: str
    redirect: str
    scopes: tuple[str, ...]
    state: str
    nonce: str = ""
    challenge: str = ""


@dataclass(frozen=True)
class Grant:
    """What a token stands for: a user, the app, and what it may do."""

    user: str
    client: str
    scopes: frozenset[str]
    expires: float

    def allows(self, *scopes: str) -> bool:
        """Tell whether one of these scopes was granted."""
        return not self.scopes.isdisjoint(scopes)


class Grants:
    """The clients of a Hub, the sign-ins under way and the tokens that are valid."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._clients: dict[str, Client] = {}
        self._codes: dict[str, tuple[Asked, str, float]] = {}
        self._tokens: dict[str, Grant] = {}

    def register(self, client_id: str, name: str, redirects: Iterable[str], scopes: Iterable[str]) -> Client:
        """Let an app ask users to sign in; it gets a new secret."""
        known = frozenset({*ALWAYS, *scopes}) & set(SCOPES)
        client = Client(client_id, secrets.token_urlsafe(32), name, tuple(redirects), known)
        with self._lock:
            self._clients[client_id] = client
        return client

    def forget(self, client_id: str) -> None:
        """Take an app off the list, with its codes; its tokens stay valid, as it may have handed one to a job."""
        with self._lock:
            self._clients.pop(client_id, None)
            self._codes = {code: item for code, item in self._codes.items() if item[0].client != client_id}

    def client(self, client_id: str | None) -> Client | None:
        """Return an app."""
        return self._clients.get(client_id or "")

    def issue_code(self, asked: Asked, user: str) -> str:
        """Return the code that the app trades for a token, once, after a user has agreed."""
        code = secrets.token_urlsafe(32)
        with self._lock:
            while len(self._codes) >= MAX_PENDING:
                del self._codes[next(iter(self._codes))]
            self._codes[_digest(code)] = (asked, user, time.time() + CODE_LIFETIME)
        return code

    def trade(self, client: Client, code: str, redirect: str, verifier: str) -> tuple[str, Grant, Asked] | None:
        """Trade a code for a token; the code is gone then, also when it is refused.

        Args:
            client: The app, known by its secret.
            code: The code.
            redirect: The address it was sent to.
            verifier: The word whose digest was announced; empty where none was.

        Returns:
            The token, what it stands for and what was asked; None when the code is wrong, old or another's.
        """
        with self._lock:
            asked, user, until = self._codes.pop(_digest(code), (None, "", 0.0))
        if asked is None or until < time.time() or (asked.client, asked.redirect) != (client.id, redirect):
            return None
        if not hmac.compare_digest(challenge_of(verifier) if verifier else "", asked.challenge):
            return None
        token = f"hf_oauth_{secrets.token_urlsafe(32)}"
        grant = Grant(user, client.id, frozenset(asked.scopes), time.time() + TOKEN_LIFETIME)
        with self._lock:
            now = time.time()
            self._tokens = {key: held for key, held in self._tokens.items() if held.expires > now}
            self._tokens[_digest(token)] = grant
        return token, grant, asked

    def by_token(self, token: str) -> Grant | None:
        """Return what a token stands for, None when it is unknown or too old."""
        grant = self._tokens.get(_digest(token))
        return grant if grant is not None and grant.expires > time.time() else None


def challenge_of(verifier: str) -> str:
    """Return the digest of a word as an app announces it (RFC 7636, method S256)."""
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=")


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
