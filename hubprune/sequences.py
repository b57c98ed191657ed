"""Documents to sequences of token ids: joined and cut to full length, one each, or an example with its answer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from hubprune.errors import CorpusError
from hubprune.sources import Document, joined
from hubprune.tokens import tokenize

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
        sizes: Bytes of text that each token stands for, as far as the tokenizer says it.
        left_sizes: Those of ``left``.
    """

    sequences: list[torch.Tensor] = field(default_factory=list)
    documents: int = 0
    left: list[int] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    samples: list[str] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    passed_over: int = 0
    sizes: list[torch.Tensor] = field(default_factory=list)
    left_sizes: list[int] = field(default_factory=list)

    def add(self, length: int) -> None:
        """Make a sequence of the first token ids that are left."""
        self.sequences.append(torch.tensor(self.left[:length]))
        self.sizes += [torch.tensor(self.left_sizes[:length])] if len(self.left_sizes) == len(self.left) else []
        del self.left[:length], self.left_sizes[:length]


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
        pairs: Whether question and answer of an example become tokens apart, each with its own special tokens.
        questions: Whether each document is a question whose answer is still to come.
        join: What goes between documents that are made one text before it becomes tokens; None to leave them apart.
    """

    tokenizer: Any
    length: int
    packing: bool
    at_most: bool
    exclude: frozenset[str]
    examples: bool = False
    join: str | None = None
    pairs: bool = False
    questions: bool = False

    def take(self, found: Iterable[Document], count: int, what: str, bar: Any) -> Taken:
        """Read documents until they fill ``count`` sequences.

        Raises:
            CorpusError: There are no more documents before that; what is missing is said of ``what``.
        """
        taken = Taken()
        texts: Iterable[Document] = (one for one in found if not self.exclude.intersection(one.keys))
        rows = 1
        if self.join is not None:
            whole, rows = joined(texts, self.join, count * self.length)
            texts = [whole] if whole.text.strip() else []
        for document in texts:
            before = len(taken.sequences)
            if not self._adder(taken, document, count):
                continue
            taken.documents += rows
            taken.keys.update(document.keys)
            if len(taken.samples) < SAMPLES:
                taken.samples.append(document.text[:SAMPLE_CHARACTERS])
            bar.update(len(taken.sequences) - before)
            if len(taken.sequences) == count:
                return taken
        if self.at_most and not taken.sequences and len(taken.left) >= SHORTEST:
            taken.add(len(taken.left))
        self._refuse_too_little(taken, count, what)
        return taken

    def _adder(self, taken: Taken, document: Document, count: int) -> bool:
        """Add a document as what it is; False where it gives nothing."""
        if self.questions:
            return self._add_question(taken, document)
        if not self.examples:
            return self._add(taken, document, count)
        return self._add_pair(taken, document) if self.pairs else self._add_example(taken, document)

    def _add_question(self, taken: Taken, document: Document) -> bool:
        """Add a document as a question, whose answer would begin behind it; too long a one loses its beginning."""
        ids = cut_question(self.tokenizer, document.text, self.length)
        if not ids:
            return False
        taken.sequences.append(torch.tensor(ids))
        taken.answers.append(len(ids))
        taken.labels.append("")
        return True

    def _add_pair(self, taken: Taken, document: Document) -> bool:
        """Add a question that an encoder reads and the answer that a decoder is asked for, up to the end token.

        What is too long loses the beginning of its question. False as for ``_add_example``.
        """
        if document.answer is None:
            return False
        text = document.text[document.answer :].strip()
        answer = list(self.tokenizer(text_target=text, verbose=False)["input_ids"]) if text else []
        end = self.tokenizer.eos_token_id
        answer += [end] if answer and end is not None and answer[-1] != end else []
        if not answer:
            return False
        question = cut_question(self.tokenizer, document.text[: document.answer].rstrip(), self.length - len(answer))
        if not question:
            taken.passed_over += 1
            return False
        taken.sequences.append(torch.tensor(question + answer))
        taken.answers.append(len(question))
        taken.labels.append(document.label)
        return True

    def _add(self, taken: Taken, document: Document, count: int) -> bool:
        """Add a document as text; False for one that is too short to stand alone."""
        ids, sizes = self._tokens(document)
        if len(ids) < SHORTEST and not self.packing:
            return False
        taken.left += ids
        taken.left_sizes += sizes or ()
        if not self.packing:
            taken.add(self.length)
            del taken.left[:], taken.left_sizes[:]
        while len(taken.left) >= self.length and len(taken.sequences) < count:
            taken.add(self.length)
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

    def _tokens(self, document: Document) -> tuple[list[int], list[int] | None]:
        """Token ids of one document and their bytes; a packed one is closed by the end token, a joined one is not."""
        ids, sizes = tokenize(self.tokenizer, document.text, special=document.bare)
        end = self.tokenizer.eos_token_id
        closed = self.packing and self.join is None and end is not None and ids[-1:] != [end]
        return (ids, sizes) if not closed else ([*ids, end], None if sizes is None else [*sizes, 0])


def cut_question(tokenizer: Any, text: str, room: int) -> list[int]:
    """Make token ids of a question; one that is too long loses its beginning, and keeps its special tokens.

    Args:
        tokenizer: The tokenizer.
        text: The question.
        room: Tokens, at most.

    Returns:
        The token ids; empty where not even one of the text fits.
    """
    whole = list(tokenizer(text, verbose=False)["input_ids"])
    bare = list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    front = next((i for i in range(len(whole) - len(bare) + 1) if whole[i : i + len(bare)] == bare), 0)
    behind = whole[front + len(bare) :]
    left = min(len(bare), room - front - len(behind))
    return whole[:front] + bare[len(bare) - left :] + behind if left > 0 else []


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
