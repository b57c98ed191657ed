"""Git object ids, so that blobs, folders and commits carry the ids that Git itself would give them.

Clients compare the ids of blobs with what they have locally to skip unchanged files; a commit made of the same
content, parent, author and date has the same id on every machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

_FILE_MODE = b"100644"
_FOLDER_MODE = b"40000"


def blob_oid(content: bytes) -> str:
    """Return the id of a blob with this content."""
    return _object_id(b"blob", content)


def pointer_text(sha256: str, size: int) -> bytes:
    """Return the LFS pointer file that stands for `size` bytes with this digest."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def folder_oids(files: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the tree id of every folder, `""` being the root.

    Args:
        files: Pairs (path, blob id).
    """
    children: dict[str, dict[bytes, tuple[bytes, str]]] = {"": {}}
    for path, oid in files:
        folder, _, name = path.rpartition("/")
        _add_folder(children, folder)
        children[folder][name.encode()] = (_FILE_MODE, oid)
    oids: dict[str, str] = {}
    # Deepest folders first: a tree needs the ids of the trees below it.
    for folder in sorted(children, key=lambda path: -_depth(path)):
        content = b"".join(
            mode + b" " + name + b"\0" + bytes.fromhex(oid)
            for name, (mode, oid) in sorted(children[folder].items(), key=_git_order)
        )
        oids[folder] = _object_id(b"tree", content)
        if folder:
            parent, _, name = folder.rpartition("/")
            children[parent][name.encode()] = (_FOLDER_MODE, oids[folder])
    return oids


def commit_oid(tree: str, parent: str | None, author: str, epoch: int, message: str) -> str:
    """Return the id of a commit.

    Args:
        tree: Tree id of the root folder.
        parent: Commit id of the parent, if there is one.
        author: User name.
        epoch: Date in seconds since 1970, UTC.
        message: Title and description.
    """
    who = f"{author} <{author}@localhub> {epoch} +0000"
    lines = [f"tree {tree}", *([f"parent {parent}"] if parent else []), f"author {who}", f"committer {who}", ""]
    return _object_id(b"commit", "\n".join([*lines, message]).encode())


def _add_folder(children: dict[str, dict[bytes, tuple[bytes, str]]], folder: str) -> None:
    while folder not in children:
        children[folder] = {}
        folder = folder.rpartition("/")[0]


def _depth(path: str) -> int:
    return path.count("/") + 1 if path else 0


def _git_order(item: tuple[bytes, tuple[bytes, str]]) -> bytes:
    name, (mode, _) = item
    return name + b"/" if mode == _FOLDER_MODE else name


def _object_id(kind: bytes, content: bytes) -> str:
    return hashlib.sha1(kind + b" " + str(len(content)).encode() + b"\0" + content).hexdigest()
