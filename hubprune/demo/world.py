"""Write the demo world to a folder laid out like a Hub, ready to seed the embedded one with."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path

from hubprune.demo import MODEL_ID
from hubprune.demo.general import GENERAL
from hubprune.demo.grammar import Domain
from hubprune.demo.legal import LEGAL
from hubprune.demo.medical import MEDICAL
from hubprune.errors import OutputError

DOMAINS = (GENERAL, MEDICAL, LEGAL)
COUNTS = {"train": 3000, "test": 300}
"""Documents of each data set by split."""
SEED = 2026
BASE = Path(__file__).resolve().parent / "base"
"""The trained model and its tokenizer, as ``python -m hubprune.demo.train`` writes them."""

_README = """\
---
license: apache-2.0
language: [en]
pretty_name: hubprune demo, {name}
task_categories: [text-generation]
tags: [synthetic, demonstration]
size_categories: [1K<n<10K]
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train.jsonl
  - split: test
    path: data/test.jsonl
---
# {id}

{title}

**This is invented text for demonstration. It is not medical or legal advice; rely on no statement in it.**

A seeded grammar wrote {train:,} training and {test:,} test documents of 60 to 200 words from one table of facts. The
splits share the facts, so that a model can learn them from one and be asked about them in the other; no document and
no question-answer pair occurs twice.

| column | content |
|---|---|
| `text` | a document |
| `question` | a question about one fact |
| `answer` | the fact, then two sentences that explain it |
"""


@cache
def examples(domain: str) -> dict[str, list[dict[str, str]]]:
    """Return the rows of one domain's data set by split, with the columns ``text``, ``question`` and ``answer``."""
    found: Domain = next(known for known in DOMAINS if known.name == domain)
    return found.examples(COUNTS, SEED)


def write_world(folder: str | Path) -> Path:
    """Write the demo's model and data sets as ``models/<ns>/<name>/`` and ``datasets/<ns>/<name>/``.

    Args:
        folder: Where to write; made if missing. Files of an earlier demo world in it are overwritten.

    Returns:
        The folder.

    Raises:
        OutputError: The folder cannot be written.
    """
    root = Path(folder)
    base = sorted(BASE.iterdir())
    try:
        model = root / "models" / MODEL_ID
        model.mkdir(parents=True, exist_ok=True)
        for file in base:
            shutil.copyfile(file, model / file.name)
        for domain in DOMAINS:
            _write_dataset(root / "datasets", domain)
    except OSError as error:
        raise OutputError(
            f"the demo world needs a folder it can write to; {root} refused ({error.strerror}): name another folder"
        ) from error
    return root


def _write_dataset(datasets: Path, domain: Domain) -> None:
    repo_id = f"{MODEL_ID.split('/')[0]}/{domain.name}"
    data = datasets / repo_id / "data"
    data.mkdir(parents=True, exist_ok=True)
    card = _README.format(name=domain.name, id=repo_id, title=domain.title, **COUNTS)
    (data.parent / "README.md").write_text(card, encoding="utf-8", newline="\n")
    for split, rows in examples(domain.name).items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (data / f"{split}.jsonl").write_text(lines, encoding="utf-8", newline="\n")
