"""Documents to sequences of token ids: joined and cut to full length, one each, or an example with its answer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from hubprune.errors import CorpusError
from hubprune.sources import Document

# A single token predicts nothing.
SHORTEST = 2
SAMPLE_CHARACTERS = 240
SAMPLES = 2


@dataclass
class Taken:
    """What was taken from one place.

    Attributes:
        sequences: Token ids, each ``(T,)``.
        documents: Documents used.
        left: Token ids that filled no sequence.
        keys: Keys of the documents used.
        samples: The first characters of some.
        answers: Of examples, the position of the first token of each answer.
        labels: Of examples, what the first field of each answer was filled with.
        passed_over: Examples left out because their answer alone is longer than a sequence.
    """

    sequences: list[torch.Tensor] = field(default_factory=list)
    documents: int = 0
    left: list[int] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    samples: list[str] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    passed_over: int = 0


@dataclass(frozen=True)
class SequenceReader:
    """Turns documents into sequences of one kind.

    Attributes:
        tokenizer: Makes token ids, and puts in the special tokens that the model expects.
        length: Tokens in a sequence, at most.
        packing: Whether documents are joined.
        at_most: Whether fewer sequences than asked for will do.
        exclude: Documents with one of these keys are passed over.
        examples: Whether answers are kept apart; then documents without one are passed over.
    """

    tokenizer: Any
    length: int
    packing: bool
    at_most: bool
    exclude: frozenset[str]
    examples: bool = False

    def take(self, found: Iterable[Document], count: int, what: str, bar: Any) -> Taken:
        """Read documents until they fill ``count`` sequences.

        Raises:
            CorpusError: There are no more documents before that; what is missing is said of ``what``.
        """
        taken = Taken()
        for document in found:
            if self.exclude.intersection(document.keys):
                continue
            before = len(taken.sequences)
            if not (self._add_example(taken, document) if self.examples else self._add(taken, document, count)):
                continue
            taken.documents += 1
            taken.keys.update(document.keys)
            if len(taken.samples) < SAMPLES:
                taken.samples.append(document.text[:SAMPLE_CHARACTERS])
            bar.update(len(taken.sequences) - before)
            if len(taken.sequences) == count:
                return taken
        if self.at_most and not taken.sequences and len(taken.left) >= SHORTEST:
            taken.sequences.append(torch.tensor(taken.left))
        self._refuse_too_little(taken, count, what)
        return taken

    def _add(self, taken: Taken, document: Document, count: int) -> bool:
        """Add a document as text; False for one that is too short to stand alone."""
        ids = self._token_ids(document)
        if not self.packing:
            if len(ids) >= SHORTEST:
                taken.sequences.append(torch.tensor(ids[: self.length]))
            return len(ids) >= SHORTEST
        taken.left += ids
        while len(taken.left) >= self.length and len(taken.sequences) < count:
            taken.sequences.append(torch.tensor(taken.left[: self.length]))
            del taken.left[: self.length]
        return True

    def _add_example(self, taken: Taken, document: Document) -> bool:
        """Add a document as a question with its answer; False for one without, or whose answer does not fit.

        What is too long loses the beginning of its question; the tokens that the tokenizer puts in front stay. At
        least one token must stand before the answer, since the first token of a sequence is not predicted.
        """
        if document.answer is None:
            return False
        ids, front, start = locate_answer(self.tokenizer, document.text, document.answer)
        answer = len(ids) - start
        if not answer:
            return False
        question = min(start - front, self.length - front - answer)
        if question < 0 or front + question < 1:
            taken.passed_over += 1
            return False
        taken.sequences.append(torch.tensor(ids[:front] + ids[start - question :]))
        taken.answers.append(front + question)
        taken.labels.append(document.label)
        return True

    def _refuse_too_little(self, taken: Taken, count: int, what: str) -> None:
        left_out = ""
        if taken.passed_over:
            left_out = (
                f"; {taken.passed_over} examples were passed over, since their answer alone is longer than a sequence "
                f"of {self.length} tokens: raise sequence_length"
            )
        if not taken.documents:
            raise CorpusError(
                f"{what} holds no text that can be used: give texts, a template or a text column that is not empty"
                + left_out
            )
        if not taken.sequences or not self.at_most:
            tokens = sum(len(sequence) for sequence in taken.sequences) + len(taken.left)
            raise CorpusError(
                f"{what} must give {count} sequences of {self.length} tokens and gives {len(taken.sequences)} "
                f"({taken.documents} documents, {tokens:,} tokens): lower num_samples or sequence_length, or give "
                f"more text{left_out}"
            )

    def _token_ids(self, document: Document) -> list[int]:
        """Token ids of one document; a packed one is closed by the end token."""
        ids = list(self.tokenizer(document.text, add_special_tokens=document.bare, verbose=False)["input_ids"])
        end = self.tokenizer.eos_token_id
        return [*ids, end] if self.packing and end is not None and ids[-1:] != [end] else ids


def locate_answer(tokenizer: Any, text: str, answer: int) -> tuple[list[int], int, int]:
    """Make token ids of a text, and find the first token that holds something of its answer.

    A fast tokenizer says which characters a token stands for. Of another one, the tokens of the question alone are
    compared with those of the whole: where they part, the answer begins.

    Args:
        tokenizer: The tokenizer.
        text: Question and answer.
        answer: Character at which the answer begins.

    Returns:
        The token ids with special tokens, how many of these stand in front, and the position of the answer's first
        token; the number of token ids where the answer has none.
    """
    if getattr(tokenizer, "is_fast", False):
        found = tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False)
        ids, special = list(found["input_ids"]), found["special_tokens_mask"]
        front = next((i for i, is_special in enumerate(special) if not is_special), len(ids))
        for position in range(front, len(ids)):
            if not special[position] and found["offset_mapping"][position][1] > answer:
                return ids, front, position
        return ids, front, len(ids)
    ids = list(tokenizer(text, verbose=False)["input_ids"])
    bare, question = (
        list(tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]) for part in (text, text[:answer])
    )
    front = next((i for i in range(len(ids) - len(bare) + 1) if ids[i : i + len(bare)] == bare), 0)
    same = next((i for i, pair in enumerate(zip(question, bare, strict=False)) if pair[0] != pair[1]), len(question))
    return ids, front, len(ids) if same >= len(bare) else front + same
