"""What a push would do: the files it would send to a repository, and those it would delete there."""

from __future__ import annotations

from dataclasses import dataclass

from hubprune.card import size


@dataclass(frozen=True)
class UploadPlan:
    """What a push would do.

    Attributes:
        repo_id: The repository.
        revision: The branch, None for the default one.
        creates_repo: Whether the repository would be created.
        files: Paths to upload with their sizes in bytes; the client skips those that are there already.
        deletes: Stale files that would be deleted.
        kind: What the repository holds: ``model`` or ``space``.
        space: What would be done for the Space of the model afterwards; None without one.
    """

    repo_id: str
    revision: str | None
    creates_repo: bool
    files: tuple[tuple[str, int], ...]
    deletes: tuple[str, ...]
    kind: str = "model"
    space: UploadPlan | None = None

    def __str__(self) -> str:
        """Return one line for each file."""
        total = sum(count for _, count in self.files)
        place = (
            self.repo_id + (f" ({self.revision})" if self.revision else "") + (", new" if self.creates_repo else "")
        )
        start = "" if self.kind == "model" else f"{self.kind} "
        lines = [f"{start}{place}: {len(self.files)} files, {size(total)}"]
        lines += [f"  upload {path}  {size(count)}" for path, count in self.files]
        lines += [f"  delete {path}" for path in self.deletes]
        return "\n".join([*lines, *([str(self.space)] if self.space is not None else [])])
