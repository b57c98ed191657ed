"""What a repository, a revision and a path inside a repository may be called.

Every name that comes from outside passes through here before it is used as a key or shown in a page. Files are
stored by digest, never by name, so a hostile path cannot leave the store; it is refused all the same.
"""

from __future__ import annotations

import re

from hubprune.errors import UsageError

REPO_TYPES = ("model", "dataset", "space")
MAX_NAME = 96
"""Longest namespace or repository name, in characters (the limit of the public Hub)."""
MAX_PATH = 1024
"""Longest path inside a repository, in characters."""

RESERVED = frozenset({"api", "cas", "datasets", "lfs", "login", "logout", "models", "oauth", "spaces"})
"""Namespaces that would hide addresses of the Hub itself."""

_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?")
_BRANCH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./+@=-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class InvalidName(UsageError):
    """A name breaks the rules of the embedded Hub."""


def check_repo_type(value: object) -> str:
    """Return a repository type, `model` when none is given.

    Raises:
        InvalidName: The type is not one of `model`, `dataset`, `space`.
    """
    if value is None:
        return "model"
    if value not in REPO_TYPES:
        raise InvalidName(f"a repository type is one of {', '.join(REPO_TYPES)}; got {value!r}")
    return str(value)


def check_name(value: object, what: str = "repository name") -> str:
    """Return a namespace or a repository name.

    Raises:
        InvalidName: It holds other characters than letters, digits, `-`, `_` and `.`, or a reserved sequence.
    """
    if not isinstance(value, str) or not value:
        raise InvalidName(f"a {what} is a non-empty string; got {value!r}")
    if len(value) > MAX_NAME or not _NAME.fullmatch(value) or ".." in value or "--" in value:
        raise InvalidName(
            f"a {what} has at most {MAX_NAME} letters, digits, '-', '_' or '.', starts and ends with a letter, digit "
            f"or '_', and has no '..' or '--'; got {value!r}"
        )
    if value.endswith(".git"):
        raise InvalidName(f"a {what} does not end with '.git'; got {value!r}")
    return value


def check_namespace(value: object) -> str:
    """Return the name of a user or an organization.

    Raises:
        InvalidName: As `check_name`, or it is reserved.
    """
    name = check_name(value, "namespace")
    if name.lower() in RESERVED:
        raise InvalidName(f"a namespace is none of {', '.join(sorted(RESERVED))}; got {name!r}")
    return name


def check_repo_id(value: object) -> tuple[str, str]:
    """Split `namespace/name` into its two checked parts.

    Raises:
        InvalidName: It is not two names joined by one slash.
    """
    if not isinstance(value, str) or value.count("/") != 1:
        raise InvalidName(f"a repository id is 'namespace/name'; got {value!r}")
    namespace, name = value.split("/")
    return check_namespace(namespace), check_name(name)


def check_branch(value: object, what: str = "branch") -> str:
    """Return a branch or tag name.

    Raises:
        InvalidName: Git would refuse it, or it looks like a commit or a reference.
    """
    if (
        not isinstance(value, str)
        or len(value) > MAX_NAME * 2
        or not _BRANCH.fullmatch(value)
        or any(part in ("", ".", "..") or part.endswith((".", ".lock")) for part in value.split("/"))
        or ".." in value
        or "@{" in value
        or value.startswith("refs/")
        or _COMMIT.fullmatch(value)
    ):
        raise InvalidName(f"a {what} name is a valid Git name and neither a commit nor 'refs/...'; got {value!r}")
    return value


def check_path(value: object) -> str:
    """Return a path of a file inside a repository.

    Raises:
        InvalidName: It is empty, absolute, too long, or has `.`, `..`, `.git`, empty parts, backslashes or control
            characters.
    """
    if not isinstance(value, str) or not value or len(value) > MAX_PATH:
        raise InvalidName(f"a path has 1 to {MAX_PATH} characters; got {value!r:.80}")
    if "\\" in value or _CONTROL.search(value):
        raise InvalidName(f"a path has no backslash and no control character; got {value!r}")
    if any(0xD800 <= ord(char) <= 0xDFFF for char in value):
        raise InvalidName(f"a path is valid Unicode; got {value!r}")
    parts = value.split("/")
    if any(part in ("", ".", "..") or part.lower() == ".git" for part in parts):
        raise InvalidName(f"a path is relative and has no empty, '.', '..' or '.git' part; got {value!r}")
    return value


def check_sha256(value: object) -> str:
    """Return a SHA-256 digest as 64 lower-case hexadecimal digits.

    Raises:
        InvalidName: It is anything else.
    """
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise InvalidName(f"a sha256 is 64 lower-case hexadecimal digits; got {value!r:.80}")
    return value


def check_variable(value: object) -> str:
    """Return the name of a Space variable or secret.

    Raises:
        InvalidName: It could not be the name of an environment variable.
    """
    if not isinstance(value, str) or len(value) > MAX_NAME or not _KEY.fullmatch(value):
        raise InvalidName(f"a variable name has letters, digits and '_' and no leading digit; got {value!r}")
    return value


def is_commit(value: str) -> bool:
    """Tell whether a revision is a full commit id (40 hexadecimal digits)."""
    return bool(_COMMIT.fullmatch(value))
