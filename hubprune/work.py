"""The work folder of a run: what is finished is written down, so that a run that was killed goes on where it was.

::

    fingerprint.json   what the run is about; a run about anything else is refused
    progress.json      blocks finished in each stage, with what is known of them; the last thing that is written
    front-*            what all sequences look like at the boundary that a stage has reached, one file a process
    masks-*            keep masks of blocks whose weights are still to be repaired, eight to a byte
    model/             the result, its files in full size from the start; finished blocks lie in their places

Whatever moment a run is killed at, ``progress.json`` tells of a state whose files are all there: they are written
before it, and removed only after the next one is.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors.torch import load_file

from hubprune import ranks
from hubprune.activations import Kept
from hubprune.errors import OutputError, UsageError
from hubprune.report import sync_folder, write_text
from hubprune.shards import Shards, write_tensors

PROGRESS = "progress.json"
FINGERPRINT = "fingerprint.json"
MODEL = "model"

Note = dict[str, Any]
Named = Iterable[tuple[str, torch.Tensor]]


class Journal:
    """Where a run writes down what is finished. This one forgets everything: the weights in memory are the result."""

    lasting = False

    def notes(self, stage: str) -> list[Note]:
        """Notes about the blocks that a stage has finished, in the order in which they were."""
        return []

    def begin_again(self) -> None:
        """Forget which blocks are finished, for a run that cannot go on behind them."""

    def front(self, stage: str) -> dict[str, torch.Tensor]:
        """Activations or gradients at the boundary that a stage has reached, by the names given to ``finish``."""
        return {}

    def masks(self, block: int, widths: Mapping[str, int]) -> dict[str, torch.Tensor]:
        """Keep masks of a block, boolean ``(d_out, d_in)``, by the names given to ``finish``.

        Args:
            block: The block.
            widths: The input width of each.
        """
        return {}

    def finish(
        self,
        stage: str,
        block: int,
        note: Note,
        *,
        front: Mapping[str, Kept],
        masks: Mapping[str, torch.Tensor] | None = None,
        weights: Named | None = None,
    ) -> None:
        """Write down that a stage has finished a block.

        Args:
            stage: The stage.
            block: The block.
            note: What is known of it, in JSON types.
            front: Activations or gradients at the boundary that is reached now, by a name; may be bound to this
                process.
            masks: Keep masks of the block, when its weights are not final yet.
            weights: Full parameter names and final values, when they are.
        """


class WorkFolder(Journal):
    """A journal in a folder.

    Args:
        folder: The folder; created when missing.
        fingerprint: What the run is about, in JSON types; all of it must be the same when the run goes on.
        fresh: Start over, whatever the folder holds.
        unpublished: Whether the result of an earlier run that is finished still waits to be published, so that a run
            about something else must not take its place.

    Attributes:
        model: Folder of the result.

    Raises:
        UsageError: The folder holds a run about something else; the message names the field.
        OutputError: Another run is at work in the folder.
    """

    lasting = True

    def __init__(
        self,
        folder: str | os.PathLike[str],
        fingerprint: Mapping[str, Any],
        *,
        fresh: bool = False,
        unpublished: bool = False,
    ) -> None:
        self.folder, self.unpublished = Path(folder), unpublished
        self.model = self.folder / MODEL
        self._shards: Shards | None = None
        self._lock = FileLock(f"{self.folder}.lock")
        ranks.in_first(lambda: self._claim(json.loads(json.dumps(fingerprint)), fresh))
        self._progress: dict[str, Any] = {"stages": {}, "facts": {}}
        if (self.folder / PROGRESS).is_file():
            self._progress = json.loads((self.folder / PROGRESS).read_text(encoding="utf-8"))

    @property
    def worth_keeping(self) -> bool:
        """Whether anything is finished that would take long to do again."""
        return bool(any(self._progress["stages"].values()) or self.fact("base") or self.fact("saved"))

    @property
    def story(self) -> str:
        """What an earlier run has finished, in one sentence; empty where there was none."""
        if self.fact("saved"):
            return f"Going on with the run in {self.folder}: the model is finished."
        stages = self._progress["stages"].items()
        done = ", ".join(f"{len(notes)} blocks ({stage})" for stage, notes in stages if notes)
        if done or self._progress["facts"]:
            return f"Going on with the run in {self.folder}: {done or 'no block is finished yet'}."
        return ""

    def _claim(self, fingerprint: dict[str, Any], fresh: bool) -> None:
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            raise OutputError(
                f"only one run at a time works in {self.folder}, and one is at work: wait for it, or write elsewhere"
            ) from None
        self._clear(only_left=not fresh)
        known = self.folder / FINGERPRINT
        if known.is_file():
            changed = _difference(json.loads(known.read_text(encoding="utf-8")), fingerprint)
            if changed and (self.unpublished or not self._delivered()):
                self._lock.release()
                raise UsageError(
                    f"an unfinished run about something else is in {self.folder}: {changed}; repeat that run to "
                    "finish it, or start over (--fresh, fresh=True)"
                )
            if not changed:
                return
        self._clear()
        self.folder.mkdir()
        write_text(known, json.dumps(fingerprint, indent=1) + "\n")

    def _delivered(self) -> bool:
        """Whether the model of the run that is here was finished and put in its place."""
        progress = self.folder / PROGRESS
        facts = json.loads(progress.read_text(encoding="utf-8"))["facts"] if progress.is_file() else {}
        return bool(facts.get("saved")) and not self.model.is_dir()

    def _clear(self, *, only_left: bool = False) -> None:
        """Remove the folder: it goes at once under its name, and then file by file.

        Args:
            only_left: Remove only what an earlier removal left that was killed.
        """
        gone = self.folder.with_name(f"{self.folder.name}-gone")
        shutil.rmtree(gone, ignore_errors=True)
        if not only_left and self.folder.exists():
            self.folder.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)

    def lay_out(self, shards: Shards, outside: Named) -> None:
        """Lay out the files of the result, and write what lies outside the blocks.

        Args:
            shards: The files, in ``model``.
            outside: Full parameter names and values.
        """
        self._shards = shards
        if ranks.rank() == 0 and not self.fact("laid out"):
            self.model.mkdir(exist_ok=True)
            shards.create()
            shards.write(outside)
        ranks.wait()
        self.remember("laid out", True)

    @contextmanager
    def replacing(self) -> Iterator[Path]:
        """Give an empty folder whose files then replace those of ``model`` that have their names, one by one."""
        staged = self.folder / "record"
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir()
        yield staged
        for path in staged.rglob("*"):
            if path.is_file():
                with open(path, "rb") as handle:
                    os.fsync(handle.fileno())
        for path in staged.iterdir():
            place = self.model / path.name
            if place.is_dir():
                shutil.rmtree(place)
            path.replace(place)
        self.model.chmod(0o755)
        sync_folder(self.model)

    def fact(self, name: str) -> Any:
        """What was remembered under a name, None for nothing."""
        return self._progress["facts"].get(name)

    def remember(self, name: str, value: Any) -> None:
        """Write down a fact, in JSON types."""
        self._progress["facts"][name] = value
        self._write_progress()

    def _write_progress(self) -> None:
        if ranks.rank() == 0:
            write_text(self.folder / PROGRESS, json.dumps(self._progress))

    def notes(self, stage: str) -> list[Note]:
        """Notes about the blocks that a stage has finished, in the order in which they were."""
        return list(self._progress["stages"].get(stage, ()))

    def begin_again(self) -> None:
        """Forget which blocks are finished; their places in the files are written once more."""
        self._progress["stages"] = {}
        self._write_progress()
        ranks.wait()

    def _front(self, stage: str, count: int) -> Path:
        return self.folder / f"front-{stage}-{count}-{ranks.rank()}.safetensors"

    def front(self, stage: str) -> dict[str, torch.Tensor]:
        """Activations or gradients at the boundary that a stage has reached."""
        path = self._front(stage, len(self.notes(stage)))
        return load_file(path) if path.is_file() else {}

    def _masks(self, block: int) -> Path:
        return self.folder / f"masks-{block}.safetensors"

    def masks(self, block: int, widths: Mapping[str, int]) -> dict[str, torch.Tensor]:
        """Keep masks of a block."""
        path = self._masks(block)
        packed = load_file(path) if path.is_file() else {}
        return {name: _unpacked(bits, widths[name]) for name, bits in packed.items()}

    def finish(
        self,
        stage: str,
        block: int,
        note: Note,
        *,
        front: Mapping[str, Kept],
        masks: Mapping[str, torch.Tensor] | None = None,
        weights: Named | None = None,
    ) -> None:
        """Write down that a stage has finished a block; see ``Journal.finish``.

        Raises:
            OSError: There is no room, or the folder cannot be written.
        """
        notes = self._progress["stages"].setdefault(stage, [])
        count = len(notes) + 1
        if front:
            write_tensors(self._front(stage, count), front)
        if ranks.rank() == 0:
            if masks is not None:
                bits = {name: _packed(mask) for name, mask in masks.items()}
                write_tensors(self._masks(block), {name: Kept(each, None, each) for name, each in bits.items()})
            if weights is not None:
                assert self._shards is not None  # laid out before the first block
                self._shards.write(weights)
        ranks.wait()
        notes.append(note)
        self._write_progress()
        ranks.wait()
        for path in self.folder.glob(f"front-*-{ranks.rank()}.safetensors"):
            if path != self._front(stage, count):
                path.unlink()

    def remove(self) -> None:
        """Remove the folder, once the result is where it belongs."""
        if ranks.rank() == 0:
            self._clear()
            Path(self._lock.lock_file).unlink(missing_ok=True)
            self._lock.release()

    def __enter__(self) -> WorkFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Let another run go on with the folder; nothing is left of a run that failed before it finished anything."""
        if kind is not None and not self.worth_keeping:
            self.remove()
        self._lock.release()


def _difference(old: Any, new: Any, where: str = "") -> str:
    """Name the first field in which two records differ, with both values; empty when there is none."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in {**old, **new}:
            found = _difference(old.get(name), new.get(name), f"{where}.{name}" if where else name)
            if found:
                return found
        return ""
    return "" if old == new else f"{where} was {old!r} and is {new!r}"


def _packed(mask: torch.Tensor) -> torch.Tensor:
    """Eight entries to a byte, ``(d_out, ceil(d_in / 8))``."""
    return torch.from_numpy(np.packbits(mask.cpu().numpy(), axis=1))


def _unpacked(packed: torch.Tensor, width: int) -> torch.Tensor:
    """The keep mask, boolean ``(d_out, width)``."""
    return torch.from_numpy(np.unpackbits(packed.numpy(), axis=1, count=width).astype(bool))
