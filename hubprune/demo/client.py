"""The demo's client: what a user writes, in a process of its own whose environment names the embedded Hub.

It takes the folder for a copy of what it pushes, and prints one JSON object a line: ``{}`` once the libraries are
loaded, the report of each run and of the recovery, the commit of the push and the Space; or ``error`` and the ``kind``
of the error that ended it.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hubprune
from hubprune.demo import GENERAL_ID, LEGAL_ID, MEDICAL_ID, MODEL_ID
from hubprune.errors import HubPruneError

USER = "you"
PUSHED_ID = f"{USER}/tiny-medical-expert"
SPARSITY = 0.5
"""Fraction of the weights that each method removes."""
SETTINGS = {"num_samples": 128, "sequence_length": 128, "dtype": "float32"}
"""Sequences of each corpus, tokens in each, and what the model computes and is pushed in: bfloat16 takes many
processors six times as long."""
RUNS: dict[str, dict[str, str]] = {
    "magnitude": {},
    "d-pruner": {"general": GENERAL_ID, "domain": MEDICAL_ID},
}
"""The methods in the order in which they run, with the text that each is given; what the last one makes is pushed."""
RECOVERY = {"steps": 40, "num_samples": 160}
"""How what the last method cost is recovered, on the text that it was given."""
COMPARED = {"answers": True, "size": True}
"""What is compared with the base model beside perplexity, for the card."""
EVALUATION = {repo_id.partition("/")[2]: f"{repo_id}:default:test" for repo_id in (GENERAL_ID, MEDICAL_ID, LEGAL_ID)}


def work(copy: Path) -> Iterator[dict[str, Any]]:
    """Prune with each method; recover, compare and push the last model; download what was pushed; yield what to print.

    Args:
        copy: Folder for the files that were pushed.
    """
    loader = hubprune.AutoPrunedModelForCausalLM
    yield {}
    for method, corpora in RUNS.items():
        model = loader.from_pretrained(
            MODEL_ID,
            method=method,
            sparsity=SPARSITY,
            evaluation=EVALUATION,
            progress=False,
            **corpora,
            **SETTINGS,
        )
        yield {"report": model.hubprune_report.to_dict()}
    model.recover(**RECOVERY, progress=False)
    yield {"report": model.hubprune_report.to_dict()}
    model.evaluate(**COMPARED, progress=False)
    yield {}
    commit = model.push_to_hub(PUSHED_ID, space=True)

    from huggingface_hub import snapshot_download

    snapshot_download(PUSHED_ID, revision=commit.oid, local_dir=copy)
    report = model.hubprune_report
    yield {"commit": commit.oid, "checks": len(report.verification.checks), "space": report.space}


def main() -> None:
    """Do the work; standard output is for the answers alone."""
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        try:
            for answer in work(Path(sys.argv[1])):
                print(json.dumps(answer), file=answers, flush=True)
        except HubPruneError as error:
            print(json.dumps({"error": str(error), "kind": type(error).__name__}), file=answers, flush=True)


if __name__ == "__main__":
    main()
