"""Questions answered by the model itself, where a task has no labels or none are wanted (arXiv:2205.04157).

The answer is the likeliest token each time, up to a few tokens. How likely the whole of it is decides whether it is
used, and later how much it counts. The model is run as the engine runs it, so that its blocks may stay on disk.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from tqdm import tqdm

from hubprune import ranks
from hubprune.architecture import is_paired, max_length
from hubprune.calibration import Corpus, as_questions
from hubprune.errors import CorpusError
from hubprune.sweeps import Sweeps
from hubprune.whole import WholeSweeps

# Examples that a choice of units has to be based on, unless fewer questions were given.
FEWEST = 4


def label(
    sweeps: Sweeps | WholeSweeps,
    corpus: Corpus,
    *,
    tokenizer: Any = None,
    answer_tokens: int,
    confidence: float,
    progress: bool = True,
) -> Corpus:
    """Put the questions of a corpus to the model, and let its answers take the place of those in the corpus.

    Args:
        sweeps: The sweeps of a model, its engine entered.
        corpus: Questions, with answers that are passed over or without.
        tokenizer: Says which tokens break a line, where an answer of a decoder ends; None for one that says nothing.
        answer_tokens: Tokens of an answer, at most.
        confidence: Answers to which the model gives less probability are dropped with their questions.
        progress: Whether to show a progress bar, once it takes more than two seconds.

    Returns:
        The examples that are left, in their order; the facts tell of the questions, and how many were dropped.

    Raises:
        CorpusError: Too few are left.
    """
    model = sweeps.model
    mine = as_questions(corpus).share()
    room = (max_length(model.config) or math.inf) - answer_tokens
    questions = [
        _cut(ids[:start], room, model.config) for ids, start in zip(mine.sequences, mine.answers, strict=True)
    ]
    answers, logs = _greedy(sweeps, questions, answer_tokens, _Ends(model, tokenizer), progress)
    rows = [
        (torch.cat([question, torch.tensor(answer)]).tolist(), len(question), _text(tokenizer, answer))
        for question, answer, log in zip(questions, answers, logs, strict=True)
        if answer and math.exp(log) >= confidence
    ]
    found = ranks.gather(rows)
    asked = len(corpus.sequences)
    least = max(min(FEWEST, asked), ranks.size())
    if len(found) < least:
        raise CorpusError(
            f"the model answers {len(found)} of the {asked} questions of the {corpus.name} corpus with a probability "
            f"of {confidence:g} or more, and at least {least} are needed: give more questions (num_samples), or lower "
            "confidence or answer_tokens (options of the method)"
        )
    return replace(
        corpus,
        sequences=tuple(torch.tensor(ids) for ids, _, _ in found),
        answers=tuple(start for _, start, _ in found),
        labels=tuple(text for _, _, text in found),
        sizes=(),
        facts=replace(corpus.facts, labelled=len(found), dropped=asked - len(found)),
    )


class _Ends:
    """Tells which tokens end an answer.

    The end token of an encoder-decoder is a part of its answers; a decoder's answers end in front of it, or of the end
    of the line.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.included = is_paired(model.config)
        self.tokens = end_tokens(model, tokenizer)
        self.tokenizer = None if self.included else tokenizer

    def __contains__(self, token: int) -> bool:
        return token in self.tokens or self.tokenizer is not None and "\n" in self.tokenizer.decode([token])


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """The token ids that end a text.

    Args:
        model: The model.
        tokenizer: Its tokenizer, or None.
    """
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    given = own if isinstance(own, list | tuple) else [own]
    return frozenset(int(end) for end in (*given, getattr(tokenizer, "eos_token_id", None)) if end is not None)


def _cut(question: torch.Tensor, room: float, config: Any) -> torch.Tensor:
    """Leave room for an answer: the beginning of a question goes, but for the start token."""
    if is_paired(config) or len(question) <= room:
        return question
    first = question[:1] if int(question[0]) == getattr(config, "bos_token_id", None) else question[:0]
    return torch.cat([first, question[len(question) - max(int(room) - len(first), 1) :]])


def _greedy(
    sweeps: Sweeps | WholeSweeps, questions: Sequence[torch.Tensor], most: int, ends: _Ends, progress: bool
) -> tuple[list[list[int]], list[float]]:
    """The likeliest tokens behind each question, and the logarithm of how likely they are together."""
    written: list[list[int]] = [[] for _ in questions]
    logs = [0.0] * len(questions)
    left = list(range(len(questions)))
    quiet = not progress or ranks.rank() > 0
    for _ in tqdm(range(most), desc="Answering questions", unit="token", disable=quiet, delay=2, leave=False):
        logits = sweeps.next_logits([questions[at] for at in left], [written[at] for at in left])
        for at, row in zip(list(left), logits, strict=True):
            token = int(row.argmax())
            logs[at] += float(row.float().log_softmax(-1)[token])
            ended = token in ends
            if not ended or (ends.included and written[at]):
                written[at].append(token)
            if ended:
                left.remove(at)
        if not left:
            break
    return written, logs


def _text(tokenizer: Any, answer: Sequence[int]) -> str:
    """What an answer is told apart by."""
    if tokenizer is None:
        return " ".join(map(str, answer))
    return str(tokenizer.decode(list(answer), skip_special_tokens=True)).strip()
