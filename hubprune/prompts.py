"""Prompts to try a model with, as its calibration text suggests them: questions, openings."""

from __future__ import annotations

import re

from hubprune.card import domains
from hubprune.facts import CorpusFacts
from hubprune.readme import unique
from hubprune.report import PruningReport

MAX_EXAMPLES = 6
EXAMPLE_CHARACTERS = 160
SHORTEST_EXAMPLE = 8  # characters
# Where the calibration text left no sample: how a prompt of the domain may look.
PROMPTS = {
    "medical": ("Question: What are the symptoms of iron deficiency?\nAnswer:", "The patient was admitted with"),
    "legal": ("The court held that the contract", "Question: When is a contract void?\nAnswer:"),
    "code": ('"""Return the sum of the squares of a list."""\ndef ', "import json\n\n\ndef read("),
    "math": ("Question: A box holds 12 pens. How many pens are in 7 boxes?\nAnswer:",),
    "": ("Once upon a time", "The most important thing about"),
}


def example_prompts(report: PruningReport) -> list[str]:
    """Prompts as the calibration text suggests them, those of the domain first, then those with a recorded answer.

    Args:
        report: The record of the run.

    Returns:
        A few prompts; never none.
    """
    corpora = {corpus.name: corpus for corpus in report.corpora}
    order = [corpora.pop(name) for name in ("task", "domain", "language") if name in corpora]
    asked = [prompt for corpus in order for prompt in _openings(corpus)]
    general = [prompt for corpus in corpora.values() for prompt in _openings(corpus)]
    recorded = [row.prompt for row in report.answers]
    if not asked:
        asked = [prompt for name in domains(report) for prompt in PROMPTS.get(name, ())]
    found = unique([*asked, *general, *recorded]) or list(PROMPTS[""])
    # Each kind has its place, however many there are of another.
    kept = {*asked[:3], *general[:2], *recorded[:3]}
    return [prompt for prompt in found if prompt in kept or not kept][:MAX_EXAMPLES]


def _openings(corpus: CorpusFacts) -> list[str]:
    """The beginnings of a corpus' samples: up to the answer where there is one, else the first words."""
    ends = [end for source in corpus.sources if (end := _before_answer(source.template, source.answer))]
    openings = []
    for sample in corpus.samples:
        text = sample.strip()
        cuts = [(text.rindex(end) + len(end), end) for end in ends if end in text]
        opening = text[: max(cuts)[0]].rstrip() if cuts else _first_words(text)
        if len(opening) >= SHORTEST_EXAMPLE:
            openings.append(opening)
    return openings


def _before_answer(template: str | None, answer: str | None) -> str:
    """What a template says between its last place and its answer, such as a new line and ``Answer:``."""
    if not template or not answer or not template.endswith(answer):
        return ""
    return re.split(r"\{[^{}]*\}", template.removesuffix(answer))[-1].rstrip(" ")


def _first_words(text: str) -> str:
    """The first sentence and the two words after it, or what fits of it: something to go on from."""
    head = text[:EXAMPLE_CHARACTERS]
    sentence = re.search(r"[.!?]\s+\S+\s+\S+(?=\s)", head)
    if sentence is not None:
        return head[: sentence.end()]
    words = head if len(text) <= EXAMPLE_CHARACTERS else head.rpartition(" ")[0] or head
    # A whole sentence leaves nothing to say.
    return words.rpartition(" ")[0] if words.endswith((".", "!", "?")) and " " in words else words
