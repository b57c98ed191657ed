"""The patterns of a `.gitignore` file."""

from __future__ import annotations

import re
from collections.abc import Callable


def matcher(text: str) -> Callable[[str], bool]:
    """Return a function that tells whether a path is ignored.

    The last pattern that matches a path, or a folder above it, decides; `!` takes a path back.
    """
    rules = [rule for line in text.splitlines() if (rule := _rule(line)) is not None]

    def ignored(path: str) -> bool:
        decision = False
        for keep, pattern in rules:
            if pattern.fullmatch(path):
                decision = not keep
        return decision

    return ignored


def _rule(line: str) -> tuple[bool, re.Pattern[str]] | None:
    line = re.sub(r"(?<!\\) +$", "", line)
    if not line or line.startswith("#"):
        return None
    keep = line.startswith("!")
    line = line.removeprefix("!")
    folder_only = line.endswith("/")
    body = line.rstrip("/")
    anchored = "/" in body
    body = body.removeprefix("/")
    start = "" if anchored else "(?:.*/)?"
    # Whatever is below a folder that matches is ignored with it.
    end = "/.+" if folder_only else "(?:/.+)?"
    return keep, re.compile(start + _translate(body) + end, re.DOTALL)


def _translate(pattern: str) -> str:
    out, rest = "", pattern
    while rest:
        for token, regex in (("**/", "(?:.*/)?"), ("**", ".*"), ("*", "[^/]*"), ("?", "[^/]")):
            if rest.startswith(token):
                out, rest = out + regex, rest[len(token) :]
                break
        else:
            group = re.match(r"\[(!?)([^]/]+)]", rest)
            if group:
                negate = "^" if group[1] else ""
                out, rest = out + f"[{negate}{re.escape(group[2]).replace(chr(92) + '-', '-')}]", rest[group.end() :]
            else:
                escaped = rest.startswith("\\") and len(rest) > 1
                out, rest = out + re.escape(rest[1] if escaped else rest[0]), rest[2 if escaped else 1 :]
    return out
