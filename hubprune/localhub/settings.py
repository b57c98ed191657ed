"""What a Space is configured with: variables, secrets, hardware. Secrets are kept but never handed out."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import Any

from hubprune.errors import UsageError
from hubprune.localhub.history import find_repo
from hubprune.localhub.ids import check_variable
from hubprune.localhub.store import Repo, now

HARDWARE = (
    "cpu-basic",
    "cpu-upgrade",
    "zero-a10g",
    "t4-small",
    "t4-medium",
    "l4x1",
    "l4x4",
    "l40sx1",
    "l40sx4",
    "l40sx8",
    "a10g-small",
    "a10g-large",
    "a10g-largex2",
    "a10g-largex4",
    "a100-large",
    "a100x4",
    "a100x8",
    "rtx-pro-6000",
    "rtx-pro-6000x2",
    "rtx-pro-6000x4",
    "rtx-pro-6000x8",
)
JOB_HARDWARE = (
    *(name for name in HARDWARE if not name.startswith("zero-")),
    "cpu-performance",
    "cpu-xl",
    "h200",
    "h200x2",
    "h200x4",
    "h200x8",
)
MAX_VALUE = 64 << 10
"""Longest value of a variable or secret, in characters."""


class SettingError(UsageError):
    """A Space cannot be configured so."""


def put_setting(db: sqlite3.Connection, repo: Repo, kind: str, item: Any) -> None:
    """Set a variable or a secret.

    Args:
        db: A connection in a write transaction.
        repo: The Space.
        kind: `variables` or `secrets`.
        item: An object with `key`, `value` and maybe `description`.

    Raises:
        InvalidName: The key is not the name of a variable.
        SettingError: The value is not text, or the key is taken by the other kind.
    """
    if not isinstance(item, dict):
        raise SettingError("a variable is an object with a key and a value")
    key, value, description = check_variable(item.get("key")), item.get("value"), item.get("description")
    if not isinstance(value, str) or len(value) > MAX_VALUE or not isinstance(description, (str, type(None))):
        raise SettingError(f"the value of {key} must be text of at most {MAX_VALUE} characters")
    other = "secrets" if kind == "variables" else "variables"
    if db.execute("SELECT 1 FROM settings WHERE repo = ? AND kind = ? AND key = ?", (repo.pk, other, key)).fetchone():
        raise SettingError(f"{key} is already one of the {other} of {repo.id}; delete it there first")
    db.execute(
        "INSERT OR REPLACE INTO settings VALUES (?, ?, ?, ?, ?, ?)", (repo.pk, kind, key, value, description, now())
    )


def delete_setting(db: sqlite3.Connection, repo: Repo, kind: str, key: object) -> None:
    """Remove a variable or a secret; a missing one is no error."""
    db.execute("DELETE FROM settings WHERE repo = ? AND kind = ? AND key = ?", (repo.pk, kind, check_variable(key)))


def public_settings(db: sqlite3.Connection, repo: Repo, kind: str) -> dict[str, dict[str, str | None]]:
    """Return the variables with their values, or the secrets without them."""
    rows = db.execute(
        "SELECT key, value, description, updated FROM settings WHERE repo = ? AND kind = ? ORDER BY key",
        (repo.pk, kind),
    )
    return {
        row["key"]: {
            "key": row["key"],
            **({"value": row["value"]} if kind == "variables" else {}),
            "description": row["description"],
            "updatedAt": row["updated"],
        }
        for row in rows
    }


def apply_space_options(db: sqlite3.Connection, repo: Repo, body: dict[str, Any]) -> None:
    """Apply what a request to create or duplicate a Space asks for: hardware, sleep time, variables, secrets."""
    if body.get("hardware") is not None:
        set_hardware(db, repo, body["hardware"])
    if body.get("sleepTimeSeconds") is not None:
        set_sleep_time(db, repo, body["sleepTimeSeconds"])
    for kind in ("variables", "secrets"):
        items = body.get(kind) or []
        if not isinstance(items, list):
            raise SettingError(f"{kind} must be an array")
        for item in items:
            put_setting(db, repo, kind, item)


def set_hardware(db: sqlite3.Connection, repo: Repo, flavor: object) -> None:
    """Record the hardware a Space asks for.

    Raises:
        SettingError: There is no such hardware.
    """
    if flavor not in HARDWARE:
        raise SettingError(f"hardware is one of {', '.join(HARDWARE)}; got {flavor!r}")
    db.execute("UPDATE repos SET hardware = ? WHERE pk = ?", (flavor, repo.pk))


def set_sleep_time(db: sqlite3.Connection, repo: Repo, seconds: object) -> None:
    """Record after how many idle seconds a Space sleeps.

    Raises:
        SettingError: It is not a whole number of at least -1 (never).
    """
    if not isinstance(seconds, int) or isinstance(seconds, bool) or not -1 <= seconds < 2**31:
        raise SettingError(f"a sleep time is a number of seconds, or -1 for never; got {seconds!r}")
    db.execute("UPDATE repos SET sleep_time = ? WHERE pk = ?", (seconds, repo.pk))


def hardware_list(names: Iterable[str]) -> list[dict[str, Any]]:
    """Return machines as clients read them; all are this one, and nothing costs anything."""
    rest = {"cpu": "local", "ram": "local", "unitCostMicroUSD": 0, "unitCostUSD": 0.0, "unitLabel": "minute"}
    return [{"name": name, "prettyName": name, **rest} for name in names]


def runtime(db: sqlite3.Connection, repo: Repo) -> dict[str, Any]:
    """Return the state of a Space as clients read it; nothing runs here, so it is stopped or paused."""
    fresh = find_repo(db, repo.type, repo.namespace, repo.name) or repo
    return {
        "stage": fresh.stage,
        "hardware": {"current": None, "requested": fresh.hardware},
        "storage": None,
        "gcTimeout": fresh.sleep_time,
        "replicas": {"current": 0, "requested": 1},
        "devMode": False,
    }
