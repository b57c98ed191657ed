"""Text to token blocks: named corpora, seeded, counted exactly, fingerprinted.

Sequences carry no padding: a packed corpus holds sequences of one length, an unpacked one a sequence for each
document. What a corpus has used is remembered by hashes of its documents, so that text a model was pruned on is not
evaluated on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from tqdm import tqdm

from hubprune import hub, ranks
from hubprune.architecture import max_length
from hubprune.corpora import CorpusConfig, SourceConfig, parse_corpus
from hubprune.errors import CorpusError
from hubprune.facts import CorpusFacts, SourceFacts
from hubprune.sources import Document, documents, resolve_source, text_key

# Tokens in a sequence unless more are asked for. Models announce contexts of 128k tokens and more; taking that as the
# default is what runs calibration out of memory elsewhere.
DEFAULT_LENGTH = 2048
# A single token predicts nothing.
SHORTEST = 2
# Splits that hold text apart from the training text, the usual first choice in front.
HELD_OUT_SPLITS = ("test", "validation", "valid", "dev")
SAMPLE_CHARACTERS = 240
SAMPLES = 2


@dataclass(frozen=True, eq=False)
class Corpus:
    """Text as tokens, ready for the engine.

    Attributes:
        name: ``general``, ``domain``, or the label of an evaluation text.
        sequences: Token ids, each ``(T,)``, int64.
        facts: What the report says about it.
        keys: Hashes by which its documents are recognised.
    """

    name: str
    sequences: tuple[torch.Tensor, ...]
    facts: CorpusFacts
    keys: frozenset[str] = frozenset()

    def named(self, name: str) -> Corpus:
        """The same text under another name."""
        facts = _count(replace(self.facts, name=name), self.sequences)
        return self if name == self.name else replace(self, name=name, facts=facts)

    def first(self, count: int) -> Corpus:
        """The same text, its first sequences only."""
        sequences = self.sequences[:count]
        return replace(self, sequences=sequences, facts=_count(self.facts, sequences))

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
    **settings: Any,
) -> Corpus:
    """Read text and cut it into token blocks.

    Args:
        value: A preset, data sets or files joined with ``+``, a ``CorpusConfig``, its dictionary, or a list of texts.
        tokenizer: Makes token ids, and puts in the special tokens that the model expects.
        name: What the corpus is called in the report and in messages.
        max_length: Tokens the model can read, None for no limit.
        at_most: Take what there is where ``num_samples`` sequences cannot be had.
        exclude: Documents with one of these ``keys`` are passed over.
        token: Token of the Hub.
        progress: Whether to show a progress bar, once it takes more than two seconds.
        settings: Fields of ``CorpusConfig`` for values that carry none.

    Returns:
        The corpus; the same arguments always give the same tokens.

    Raises:
        ConfigError: The value is no corpus.
        CorpusError: A data set, configuration, split or column does not exist, there is no text, or too little.
        AccessError, OfflineError: A data set cannot be reached.
    """
    config = parse_corpus(value, **settings)
    length = _sequence_length(config, name, max_length)
    reader = _Reader(tokenizer, length, config.packing, at_most, frozenset(exclude))
    bar = tqdm(
        desc=f"Reading {name} text",
        unit="sequence",
        total=config.num_samples,
        disable=not progress,
        delay=2,
        leave=False,
    )
    taken: list[_Taken] = []
    sources: list[SourceFacts] = []
    with bar:
        if config.texts:
            given = (Document(text, keys=text_key(text)) for text in config.texts if text.strip())
            taken.append(reader.take(given, config.num_samples, f"the {name} corpus", bar))
        for source, count in zip(config.sources, _shares(config, name) if config.sources else (), strict=True):
            known, commit = resolve_source(source, token=token)
            rows = documents(
                known, tokenizer, commit=commit, streaming=config.streaming, seed=config.seed, token=token
            )
            taken.append(reader.take(rows, count, f"the {name} corpus, {known.dataset},", bar))
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
                )
            )
    sequences = tuple(sequence for part in taken for sequence in part.sequences)
    samples = [part.samples[turn] for turn in range(SAMPLES) for part in taken if turn < len(part.samples)]
    facts = CorpusFacts(
        name=name, sources=sources, packing=config.packing, seed=config.seed, samples=samples[:SAMPLES]
    )
    return Corpus(name, sequences, _count(facts, sequences), frozenset(key for part in taken for key in part.keys))


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


@dataclass
class _Taken:
    """What was taken from one place.

    Attributes:
        sequences: Token ids, each ``(T,)``.
        documents: Documents used.
        left: Token ids that filled no sequence.
        keys: Keys of the documents used.
        samples: The first characters of some.
    """

    sequences: list[torch.Tensor] = field(default_factory=list)
    documents: int = 0
    left: list[int] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    samples: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Reader:
    """Turns documents into sequences of one kind."""

    tokenizer: Any
    length: int
    packing: bool
    at_most: bool
    exclude: frozenset[str]

    def take(self, found: Iterable[Document], count: int, what: str, bar: Any) -> _Taken:
        """Read documents until they fill ``count`` sequences.

        Raises:
            CorpusError: There are no more documents before that; what is missing is said of ``what``.
        """
        taken = _Taken()
        for document in found:
            if self.exclude.intersection(document.keys):
                continue
            ids = self._token_ids(document)
            if len(ids) < SHORTEST and not self.packing:
                continue
            taken.documents += 1
            taken.keys.update(document.keys)
            if len(taken.samples) < SAMPLES:
                taken.samples.append(document.text[:SAMPLE_CHARACTERS])
            before = len(taken.sequences)
            self._fill(taken, ids, count)
            bar.update(len(taken.sequences) - before)
            if len(taken.sequences) == count:
                return taken
        if self.at_most and not taken.sequences and len(taken.left) >= SHORTEST:
            taken.sequences.append(torch.tensor(taken.left))
        self._refuse_too_little(taken, count, what)
        return taken

    def _fill(self, taken: _Taken, ids: list[int], count: int) -> None:
        if not self.packing:
            taken.sequences.append(torch.tensor(ids[: self.length]))
            return
        taken.left += ids
        while len(taken.left) >= self.length and len(taken.sequences) < count:
            taken.sequences.append(torch.tensor(taken.left[: self.length]))
            del taken.left[: self.length]

    def _refuse_too_little(self, taken: _Taken, count: int, what: str) -> None:
        if not taken.documents:
            raise CorpusError(
                f"{what} holds no text that can be used: give texts, a template or a text column that is not empty"
            )
        if not taken.sequences or not self.at_most:
            tokens = sum(len(sequence) for sequence in taken.sequences) + len(taken.left)
            raise CorpusError(
                f"{what} must give {count} sequences of {self.length} tokens and gives {len(taken.sequences)} "
                f"({taken.documents} documents, {tokens:,} tokens): lower num_samples or sequence_length, or give "
                "more text"
            )

    def _token_ids(self, document: Document) -> list[int]:
        """Token ids of one document; a packed one is closed by the end token."""
        ids = list(self.tokenizer(document.text, add_special_tokens=document.bare, verbose=False)["input_ids"])
        end = self.tokenizer.eos_token_id
        return [*ids, end] if self.packing and end is not None and ids[-1:] != [end] else ids


def _sequence_length(config: CorpusConfig, name: str, limit: int | None) -> int:
    if config.sequence_length is None:
        return min(DEFAULT_LENGTH, limit or DEFAULT_LENGTH)
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


def _count(facts: CorpusFacts, sequences: Sequence[torch.Tensor]) -> CorpusFacts:
    """Fill in counts and hashes."""
    counted = replace(
        facts,
        num_sequences=len(sequences),
        sequence_length=max(len(sequence) for sequence in sequences),
        tokens=sum(len(sequence) for sequence in sequences),
        token_sha256=_hash(sequences),
    )
    said = {k: v for k, v in dataclasses.asdict(counted).items() if k not in ("fingerprint", "samples")}
    return replace(counted, fingerprint=hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest())


def _hash(sequences: Sequence[torch.Tensor]) -> str:
    """Hex SHA-256 over the lengths and the ids, little-endian 64-bit integers."""
    digest = hashlib.sha256()
    for sequence in sequences:
        digest.update(len(sequence).to_bytes(8, "little"))
        digest.update(sequence.numpy().astype("<i8").tobytes())
    return digest.hexdigest()
