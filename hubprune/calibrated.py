"""The text of a finished run, read again from its record: a model is not measured on what shaped it."""

from __future__ import annotations

import dataclasses
from typing import Any

from hubprune.calibration import Corpus, load_corpus
from hubprune.corpora import TASK
from hubprune.errors import AccessError, CorpusError, NotFoundError, OfflineError
from hubprune.facts import CorpusFacts
from hubprune.recovery_text import config_of
from hubprune.report import PruningReport


def read_again(
    report: PruningReport | None, tokenizer: Any, *, token: str | bool | None = None, progress: bool = True
) -> tuple[list[Corpus], list[str]]:
    """Read the text that a model was calibrated and recovered on once more, at its commits.

    Args:
        report: The record of the run; None for a model that was not pruned by hubprune.
        tokenizer: The model's tokenizer.
        token: Token of the Hub.
        progress: Whether to show progress bars.

    Returns:
        The corpora, and a sentence for each that could not be had as it was.
    """
    found: list[Corpus] = []
    notes: list[str] = []
    if report is None:
        return found, notes
    used = [("calibrated", facts) for facts in report.corpora]
    used += [("recovered", facts) for facts in (report.recovery.corpora if report.recovery is not None else [])]
    for what, facts in used:
        questions = report.options.get("labels") == "pseudo" and facts.name == TASK
        unknown = f"whether an evaluation text was in the {facts.name} text that the model was {what} on is not known"
        if not facts.sources:
            notes.append(f"{unknown}: that text was given in memory")
            continue
        try:
            corpus = _corpus(facts, tokenizer, token, progress, pairs=report.base.paired, questions=questions)
        except (AccessError, CorpusError, NotFoundError, OfflineError) as error:
            notes.append(f"{unknown}: {error}")
            continue
        same = corpus.facts.token_sha256 == facts.token_sha256
        if not same:
            notes.append(f"{unknown} for certain: read again, that text is another one")
        # A recovery passes over the text that it is measured on, which its record does not tell.
        if same or what == "calibrated":
            found.append(corpus)
    return found, notes


def _corpus(
    facts: CorpusFacts, tokenizer: Any, token: str | bool | None, progress: bool, *, pairs: bool, questions: bool
) -> Corpus:
    """Read one corpus; whether it was streamed decides the order of the rows, and is found out by the result."""
    for streaming in (True, False):
        corpus = load_corpus(
            dataclasses.replace(config_of(facts), streaming=streaming),
            tokenizer,
            name=facts.name,
            at_most=True,
            token=token,
            progress=progress,
            pairs=pairs,
            questions=questions,
        )
        if corpus.facts.token_sha256 == facts.token_sha256:
            break
    return corpus
