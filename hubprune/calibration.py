"""Text to token blocks: named corpora, seeded, counted exactly, fingerprinted.

Sequences carry no padding: a packed corpus holds sequences of one length, an unpacked one a sequence for each
document. Of examples it is known where the answer begins. What a corpus has used is remembered by hashes of its
documents, so that text a model was pruned on is not evaluated on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from tqdm import tqdm

from hubprune import hub, ranks
from hubprune.architecture import is_paired, max_length
from hubprune.corpora import TASK, CorpusConfig, SourceConfig, filter_text, joins_documents, parse_corpus
from hubprune.errors import CorpusError
from hubprune.facts import CorpusFacts, SourceFacts
from hubprune.sequences import SAMPLES, SHORTEST, SequenceReader, Taken
from hubprune.sources import Document, documents, resolve_source, text_key

# Tokens in a sequence unless more are asked for. Models announce contexts of 128k tokens and more; taking that as the
# default is what runs calibration out of memory elsewhere.
DEFAULT_LENGTH = 2048
NO_ANSWERS = (
    "an encoder-decoder is shown questions with their answers, so give a task whose template ends in an answer "
    "(SourceConfig(..., template='{question} {answer}', answer='{answer}')), or a preset that has them (medical, "
    "legal, code, math)"
)
# Splits that hold text apart from the training text, the usual first choice in front.
HELD_OUT_SPLITS = ("test", "validation", "valid", "dev")


@dataclass(frozen=True, eq=False)
class Corpus:
    """Text as tokens, ready for the engine.

    Attributes:
        name: ``general``, ``domain``, ``language``, ``task``, or the label of an evaluation text.
        sequences: Token ids, each ``(T,)``, int64.
        facts: What the report says about it.
        keys: Hashes by which its documents are recognised.
        answers: Of examples, the position of the first token of each sequence's answer, at least 1; empty for text
            without answers.
        labels: Of examples, what the first field of each sequence's answer holds, such as ``yes``; as many as answers.
        sizes: Bytes of text that each token stands for, shaped as the sequences; empty where that is not known.
    """

    name: str
    sequences: tuple[torch.Tensor, ...]
    facts: CorpusFacts
    keys: frozenset[str] = frozenset()
    answers: tuple[int, ...] = ()
    labels: tuple[str, ...] = ()
    sizes: tuple[torch.Tensor, ...] = ()

    def share(self) -> Corpus:
        """The part of it that this process runs."""
        return replace(
            self,
            sequences=tuple(ranks.share(self.sequences)),
            answers=tuple(ranks.share(self.answers)),
            labels=tuple(ranks.share(self.labels)),
            sizes=tuple(ranks.share(self.sizes)),
        )

    def named(self, name: str) -> Corpus:
        """The same text under another name."""
        facts = _count(replace(self.facts, name=name), self.sequences, self.answers, self.labels)
        return self if name == self.name else replace(self, name=name, facts=facts)

    def first(self, count: int) -> Corpus:
        """The same text, its first sequences only."""
        sequences, answers, labels = self.sequences[:count], self.answers[:count], self.labels[:count]
        facts = _count(self.facts, sequences, answers, labels)
        return replace(
            self, sequences=sequences, facts=facts, answers=answers, labels=labels, sizes=self.sizes[:count]
        )

    def batches(self, size: int) -> Iterator[torch.Tensor]:
        """Yield the sequences in order, ``(b, T)`` with b at most ``size``; a batch holds sequences of one length."""
        start = 0
        while start < len(self.sequences):
            stop = start + 1
            while stop < min(start + size, len(self.sequences)) and (
                len(self.sequences[stop]) == len(self.sequences[start])
            ):
                stop += 1
            yield torch.stack(self.sequences[start:stop])
            start = stop


def load_corpus(
    value: Any,
    tokenizer: Any,
    *,
    name: str = "corpus",
    max_length: int | None = None,
    at_most: bool = False,
    exclude: Iterable[str] = (),
    token: str | bool | None = None,
    progress: bool = True,
    pairs: bool = False,
    questions: bool = False,
    usual_length: int | None = None,
    **settings: Any,
) -> Corpus:
    """Read text and cut it into token blocks.

    Args:
        value: A preset, data sets or files joined with ``+``, a ``CorpusConfig``, its dictionary, or a list of texts.
        tokenizer: Makes token ids, and puts in the special tokens that the model expects.
        name: What the corpus is called in the report and in messages; one that is called ``task`` is read as examples
            where its sources have answers.
        max_length: Tokens the model can read, None for no limit.
        at_most: Take what there is where ``num_samples`` sequences cannot be had.
        exclude: Documents with one of these ``keys`` are passed over.
        token: Token of the Hub.
        progress: Whether to show a progress bar, once it takes more than two seconds.
        pairs: Whether it is for an encoder-decoder: each sequence is a question followed by its answer, and each of
            them has its own special tokens.
        questions: Whether documents without an answer are questions, one in a sequence.
        usual_length: Tokens in a sequence where the config does not say it, and the model can read so many; None for
            2,048.
        settings: Fields of ``CorpusConfig`` for values that carry none.

    Returns:
        The corpus; the same arguments always give the same tokens.

    Raises:
        ConfigError: The value is no corpus.
        CorpusError: A data set, configuration, split or column does not exist, no row passes a filter, some sources of
            a task have answers and some have none, there is no text, or too little; an encoder-decoder gets text
            without answers.
        AccessError, OfflineError: A data set cannot be reached.
    """
    config = parse_corpus(value, **settings)
    length = _sequence_length(config, name, max_length, usual_length or DEFAULT_LENGTH)
    given_answers = [source.answer for source in config.sources]
    answered = bool(given_answers) and None not in given_answers
    asks = questions and not answered and not config.packing
    packing = joins_documents(name, given_answers, config.packing, pairs=pairs) and not asks
    examples = not packing and answered
    if (pairs or name == TASK) and not config.packing and not examples:
        _refuse_mixture(config)
    if pairs and not examples and not asks:
        raise CorpusError(f"the {name} corpus holds no answers: {NO_ANSWERS}")
    reader = SequenceReader(
        tokenizer, length, packing, at_most, frozenset(exclude), examples, config.join, pairs=pairs, questions=asks
    )
    taken, sources = _read(config, name, reader, token, progress)
    sequences = tuple(sequence for part in taken for sequence in part.sequences)
    samples = [part.samples[turn] for turn in range(SAMPLES) for part in taken if turn < len(part.samples)]
    facts = CorpusFacts(
        name=name,
        sources=sources,
        packing=packing,
        seed=config.seed,
        samples=samples[:SAMPLES],
        join=config.join,
        passed_over=sum(part.passed_over for part in taken),
    )
    answers = tuple(position for part in taken for position in part.answers)
    labels = tuple(label for part in taken for label in part.labels)
    keys = frozenset(key for part in taken for key in part.keys)
    sizes = tuple(size for part in taken for size in part.sizes)
    known_sizes = sizes if len(sizes) == len(sequences) else ()
    return Corpus(name, sequences, _count(facts, sequences, answers, labels), keys, answers, labels, known_sizes)


def _read(
    config: CorpusConfig, name: str, reader: SequenceReader, token: str | bool | None, progress: bool
) -> tuple[list[Taken], list[SourceFacts]]:
    """Read the texts or the sources of a corpus, each with its share of the sequences.

    Returns:
        What was taken from each place, and the facts of each source.
    """
    bar = tqdm(
        desc=f"Reading {name} text",
        unit="sequence",
        total=config.num_samples,
        disable=not progress,
        delay=2,
        leave=False,
    )
    taken: list[Taken] = []
    sources: list[SourceFacts] = []
    with bar:
        if config.texts:
            given = (Document(text, keys=text_key(text)) for text in config.texts if text.strip() or config.join)
            taken.append(reader.take(given, config.num_samples, f"the {name} corpus", bar))
        for source, count in zip(config.sources, _shares(config, name) if config.sources else (), strict=True):
            known, commit = resolve_source(source, token=token)
            seed = config.seed if config.join is None else None
            rows = documents(
                known, reader.tokenizer, commit=commit, streaming=config.streaming, seed=seed, token=token
            )
            place = known.dataset + filter_text(known.filters)
            taken.append(reader.take(rows, count, f"the {name} corpus, {place},", bar))
            sources.append(
                SourceFacts(
                    dataset=known.dataset,
                    config=known.config,
                    split=known.split,
                    commit=commit,
                    template=known.template,
                    text_column=known.text_column,
                    weight=known.weight,
                    rows=taken[-1].documents,
                    filters=list(known.filters),
                    answer=known.answer,
                )
            )
    return taken, sources


def _refuse_mixture(config: CorpusConfig) -> None:
    """Refuse a task of which some sources say what the answer is and others do not."""
    without = [source.dataset for source in config.sources if source.answer is None]
    if without and len(without) < len(config.sources):
        raise CorpusError(
            f"either all sources of a task have an answer or none, and {', '.join(without)} has none: give it a "
            "template and its end as answer, leave it out, or read all as joined text (packing=True)"
        )


def corpus_from_tokens(token_ids: torch.Tensor, name: str = "corpus") -> Corpus:
    """Take token ids as they are.

    Args:
        token_ids: ``(n, T)``, integers; no padding.
        name: What the corpus is called.

    Raises:
        CorpusError: The tensor has another shape or type.
    """
    whole = not (token_ids.is_floating_point() or token_ids.is_complex() or token_ids.dtype == torch.bool)
    if token_ids.dim() != 2 or not whole or token_ids.shape[0] < 1 or token_ids.shape[1] < SHORTEST:
        raise CorpusError(
            f"token ids are integers of shape (n, T) with T of at least {SHORTEST}, got {tuple(token_ids.shape)} of "
            f"{str(token_ids.dtype).removeprefix('torch.')} for the {name} corpus: give one row a sequence"
        )
    sequences = tuple(token_ids.detach().cpu().long())
    keys = frozenset("tokens:" + _hash([sequence]) for sequence in sequences)
    return Corpus(name, sequences, _count(CorpusFacts(name=name, packing=False), sequences), keys)


def as_questions(corpus: Corpus) -> Corpus:
    """The corpus as questions whose answers are still to come, unless it has answers."""
    return corpus if corpus.answers else replace(corpus, answers=tuple(map(len, corpus.sequences)))


def held_out(config: CorpusConfig, *, num_samples: int, token: str | bool | None = None) -> CorpusConfig | None:
    """Find text like that of a corpus that it does not use: the test or validation splits of its data sets.

    Args:
        config: The corpus.
        num_samples: Sequences wanted, at most.
        token: Token of the Hub.

    Returns:
        The same corpus on the held-out splits of those data sets that have one, pinned to their commits; None when
        none has.

    Raises:
        CorpusError, AccessError, OfflineError: A data set cannot be read.
    """
    found = []
    for source in config.sources:
        known, commit = resolve_source(source, token=token)
        split = _held_out_split(known, commit, token)
        if split is not None:
            found.append(replace(known, split=split, revision=commit))
    return replace(config, sources=tuple(found), num_samples=num_samples) if found else None


def _held_out_split(source: SourceConfig, commit: str | None, token: str | bool | None) -> str | None:
    if hub.local_file(source) is not None:
        return None
    splits = hub.dataset_splits(source.dataset, source.config, commit=commit, token=token)
    return next((name for name in HELD_OUT_SPLITS if name in splits and name != source.split), None)


def check_fits(corpus: Corpus, model: Any) -> None:
    """Refuse token ids that a model cannot read, and fewer sequences than there are processes.

    Args:
        corpus: The corpus.
        model: A language model; its weights may be missing.

    Raises:
        CorpusError: What does not fit.
    """
    if is_paired(model.config) and not corpus.answers:
        raise CorpusError(f"the {corpus.name} corpus holds no answers: {NO_ANSWERS}")
    vocabulary, limit = model.get_input_embeddings().num_embeddings, max_length(model.config)
    lowest = min(int(sequence.min()) for sequence in corpus.sequences)
    highest = max(int(sequence.max()) for sequence in corpus.sequences)
    if lowest < 0 or highest >= vocabulary:
        raise CorpusError(
            f"token ids must lie between 0 and the model's vocabulary of {vocabulary}, and the {corpus.name} corpus "
            f"has {lowest if lowest < 0 else highest}: use the tokenizer that belongs to the model, and no padding"
        )
    if limit is not None and corpus.facts.sequence_length > limit:
        raise CorpusError(
            f"sequences must be at most the {limit} tokens that the model can read, and the {corpus.name} corpus has "
            f"{corpus.facts.sequence_length}: cut them"
        )
    if len(corpus.sequences) < ranks.size():
        raise CorpusError(
            f"every process needs a sequence, and the {corpus.name} corpus has {len(corpus.sequences)} for "
            f"{ranks.size()} processes: give more text or start fewer processes"
        )


def refuse_overlap(calibration: Iterable[Corpus], evaluation: Iterable[Corpus]) -> None:
    """Refuse an evaluation on text that the model was calibrated on: its result would be too good.

    Raises:
        CorpusError: A document, or a row whatever its template, is in both.
    """
    used = list(calibration)
    for test in evaluation:
        for corpus in used:
            shared = corpus.keys & test.keys
            if shared:
                raise CorpusError(
                    f"evaluation text must not be calibration text, and the {test.name} evaluation text shares "
                    f"{len(shared)} of its documents with the {corpus.name} corpus: take another split, such as 'test'"
                )


def _sequence_length(config: CorpusConfig, name: str, limit: int | None, usual: int) -> int:
    if config.sequence_length is None:
        return min(usual, limit or usual)
    if limit is not None and config.sequence_length > limit:
        raise CorpusError(
            f"sequence_length must be at most the {limit} tokens that the model can read, got "
            f"{config.sequence_length} for the {name} corpus: lower it"
        )
    return config.sequence_length


def _shares(config: CorpusConfig, name: str) -> list[int]:
    """Split the samples over the sources: one each, the others by weight; the shares add up exactly."""
    weights = [source.weight for source in config.sources]
    spare = config.num_samples - len(weights)
    if spare < 0:
        raise CorpusError(
            f"num_samples must be at least one for each source, got {config.num_samples} for the {len(weights)} "
            f"sources of the {name} corpus: raise it, or name fewer data sets"
        )
    exact = [spare * weight / sum(weights) for weight in weights]
    counts = [1 + int(share) for share in exact]
    by_remainder = sorted(range(len(weights)), key=lambda i: int(exact[i]) - exact[i])
    for i in by_remainder[: config.num_samples - sum(counts)]:
        counts[i] += 1
    return counts


def _count(
    facts: CorpusFacts, sequences: Sequence[torch.Tensor], answers: Sequence[int] = (), labels: Sequence[str] = ()
) -> CorpusFacts:
    """Fill in counts and hashes."""
    counted = replace(
        facts,
        num_sequences=len(sequences),
        sequence_length=max(len(sequence) for sequence in sequences),
        tokens=sum(len(sequence) for sequence in sequences),
        token_sha256=_hash(sequences),
        examples=len(answers),
        distinct_answers=len({*labels}),
    )
    unsaid = {"fingerprint", "samples", "labelled", "dropped"} | ({"join"} if facts.join is None else set())
    said = {k: v for k, v in dataclasses.asdict(counted).items() if k not in unsaid}
    said["answers"] = list(answers)
    return replace(counted, fingerprint=hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest())


def _hash(sequences: Sequence[torch.Tensor]) -> str:
    """Hex SHA-256 over the lengths and the ids, little-endian 64-bit integers."""
    digest = hashlib.sha256()
    for sequence in sequences:
        digest.update(len(sequence).to_bytes(8, "little"))
        digest.update(sequence.numpy().astype("<i8").tobytes())
    return digest.hexdigest()
