"""Fill a store from a folder laid out `models/<namespace>/<name>/`, `datasets/...`, `spaces/...`."""

from __future__ import annotations

import hashlib
from pathlib import Path

from hubprune.errors import UsageError
from hubprune.localhub import cards, gitids
from hubprune.localhub.changes import POINTER, is_lfs
from hubprune.localhub.history import (
    MAIN,
    Entry,
    add_repo,
    entry_for,
    find_repo,
    list_refs,
    read_tree,
    resolve,
    write_commit,
)
from hubprune.localhub.ids import REPO_TYPES, check_path, check_repo_id
from hubprune.localhub.store import Store, stamp

SEED_DATE = stamp(1_735_689_600)
"""Date of every first commit made by seeding (2025-01-01), so that the same files have the same commit everywhere."""
SEED_AUTHOR = "seed"
SAMPLE = 512
"""Bytes of a file that decide whether it is text, as clients send them."""
_SKIPPED = frozenset({".git", ".cache", "__pycache__", ".DS_Store"})


def seed_folder(store: Store, folder: Path | str) -> list[str]:
    """Make the repositories of a folder; one whose files have not changed gets no new commit.

    Args:
        store: Where to.
        folder: Holds at least one of `models`, `datasets`, `spaces`.

    Returns:
        The repositories that were created or changed, as `models/a/b`, `datasets/a/b`, `spaces/a/b`.

    Raises:
        UsageError: The folder has another layout, or a file cannot be taken.
    """
    folder = Path(folder)
    found = [
        (repo_type, path)
        for repo_type in REPO_TYPES
        for path in sorted((folder / f"{repo_type}s").glob("*/*"))
        if path.is_dir()
    ]
    if not found:
        raise UsageError(
            "a folder to seed from holds models/<namespace>/<name>/, datasets/<namespace>/<name>/ or "
            f"spaces/<namespace>/<name>/; {folder} has none of them"
        )
    return [
        f"{repo_type}s/{path.parent.name}/{path.name}"
        for repo_type, path in found
        if _seed_repo(store, repo_type, path)
    ]


def _seed_repo(store: Store, repo_type: str, folder: Path) -> bool:
    namespace, name = check_repo_id(f"{folder.parent.name}/{folder.name}")
    files = {entry.path: entry for entry in _entries(store, folder)}
    sdk = None
    if repo_type == "space":
        readme = folder / "README.md"
        sdk = cards.lenient(readme.read_text("utf-8", "replace"))[0].get("sdk") if readme.is_file() else None
    tree = gitids.folder_oids((entry.path, entry.oid) for entry in files.values())[""]
    with store.write() as db:
        repo = find_repo(db, repo_type, namespace, name) or add_repo(db, repo_type, namespace, name, sdk=sdk)
        if MAIN in list_refs(db, repo):
            head = resolve(db, repo, "main")
            if head.tree == tree and read_tree(db, head) == files:
                return False
        write_commit(db, repo, MAIN, files, title=f"Seed from {folder.name}", author=SEED_AUTHOR, date=SEED_DATE)
    return True


def _entries(store: Store, folder: Path) -> list[Entry]:
    paths = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not _SKIPPED.intersection(path.relative_to(folder).parts)
    )
    return [_entry(store, path, check_path(path.relative_to(folder).as_posix())) for path in paths]


def _entry(store: Store, path: Path, name: str) -> Entry:
    size = path.stat().st_size
    with path.open("rb") as file:
        sample = file.read(SAMPLE)
        if sample.startswith(POINTER):
            raise UsageError(f"{path} is an LFS pointer, not the file; fetch the content first (git lfs pull)")
        file.seek(0)
        if not is_lfs(name, size, sample):
            content = file.read()
            return entry_for(name, store.blobs.put(content), len(content), content)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if store.blobs.size(digest) != size:
        digest = store.blobs.put_file(path)
    return entry_for(name, digest, size, None)
