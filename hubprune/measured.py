"""The texts that models are measured on, read with each model's tokenizer, and never text that shaped one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hubprune.architecture import is_paired, max_length
from hubprune.calibrated import read_again
from hubprune.calibration import DEFAULT_LENGTH, Corpus, check_fits, held_out, load_corpus, refuse_overlap
from hubprune.corpora import CorpusConfig
from hubprune.errors import ConfigError
from hubprune.evaluation import cut
from hubprune.presets import CORPORA
from hubprune.protocol import PACKED_SAMPLES, Protocol
from hubprune.variants import Variant


@dataclass(frozen=True)
class Text:
    """A text for one tokenizer, and the window that reads it, as ``evaluation.cut`` takes them."""

    corpus: Corpus
    window: int | None = None
    stride: int | None = None
    start: int | None = None


def read_texts(
    variants: Sequence[Variant],
    texts: Mapping[str, Any],
    protocol: Protocol,
    *,
    exclude: bool = False,
    token: str | bool | None = None,
    progress: bool = True,
) -> tuple[dict[str, list[Text]], list[str]]:
    """Read the texts for every model; models with one tokenizer share them.

    Args:
        variants: The models.
        texts: Text by label.
        protocol: How perplexity is measured.
        exclude: Pass over documents that a model was calibrated on, instead of refusing the text; of presets they are
            always passed over.
        token: Token of the Hub.
        progress: Whether to show progress bars.

    Returns:
        The texts by the name of the model, and notes on what is not known about them.

    Raises:
        CorpusError: A text cannot be read, or a model was calibrated on it.
        ConfigError: The protocol does not fit a model.
    """
    if not texts:
        return {variant.name: [] for variant in variants}, []
    used: list[Corpus] = []
    notes: list[str] = []
    for variant in variants:
        again, missing = read_again(variant.report, variant.tokenizer, token=token, progress=progress)
        used += again
        notes += [note for note in missing if note not in notes]
    keys = frozenset(key for corpus in used for key in corpus.keys)
    found: dict[str, list[Text]] = {}
    known: dict[Any, list[Text]] = {}
    for variant in variants:
        kind = (_identity(variant.tokenizer), max_length(variant.config))
        if kind not in known:
            reader = _Reader(variant, protocol, keys if exclude else frozenset(), keys, token, progress)
            known[kind] = [reader.read(label, value) for label, value in texts.items()]
        refuse_overlap(used, [text.corpus for text in known[kind]])
        for text in known[kind]:
            read = text.window or text.corpus.facts.sequence_length
            facts = replace(text.corpus.facts, sequence_length=min(read, max_length(variant.config) or read))
            check_fits(replace(text.corpus, facts=facts), variant.outline)
        found[variant.name] = known[kind]
    return found, notes


def _identity(tokenizer: Any) -> Any:
    """What tells a tokenizer from another that makes other tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return id(tokenizer) if backend is None else (backend.to_str(), tokenizer.bos_token_id, tokenizer.eos_token_id)


@dataclass(frozen=True)
class _Reader:
    """Reads texts for one model."""

    variant: Variant
    protocol: Protocol
    exclude: frozenset[str]
    used: frozenset[str]
    token: str | bool | None
    progress: bool

    def read(self, label: str, value: Any) -> Text:
        """Read one text, and decide on the window."""
        limit, exclude = max_length(self.variant.config), self.exclude
        config, protocol = self.protocol.corpus(label, value)
        if isinstance(value, str) and value in CORPORA:
            config = held_out(config, num_samples=config.num_samples, token=self.token) or config
            exclude = self.used
        length = protocol.sequence_length or min(DEFAULT_LENGTH, limit or DEFAULT_LENGTH)
        if limit is not None and length > limit:
            raise ConfigError(
                f"sequence_length must be at most the {limit} tokens that the {self.variant.name} model can read, got "
                f"{length}: lower it"
            )
        paired = is_paired(self.variant.config)
        if paired:
            config = self._examples(config, length)
        elif protocol.layout != "separate":
            config = replace(config, sequence_length=length)
        corpus = load_corpus(
            config,
            self.variant.tokenizer,
            name=label,
            at_most=True,
            exclude=exclude,
            token=self.token,
            progress=self.progress,
            pairs=paired,
        )
        if paired:
            return Text(corpus)
        if protocol.bos:
            # The token behind what is read is predicted as well, so that every token is, once.
            text = Text(corpus, length + 1, protocol.stride or length, self._start())
        elif protocol.layout != "separate" and protocol.stride in (None, length):
            text = Text(corpus)
        else:
            text = Text(corpus, length, protocol.stride)
        cut(corpus, text.window, text.stride, text.start)
        return text

    def _examples(self, config: CorpusConfig, length: int) -> CorpusConfig:
        """What to read for an encoder-decoder, which is asked for the answers of examples."""
        if self.protocol.bos or self.protocol.stride is not None:
            raise ConfigError(
                f"the {self.variant.name} model is an encoder-decoder, which answers questions one by one, got a "
                "start token or a stride: take the default protocol"
            )
        count = self.protocol.num_samples or PACKED_SAMPLES
        return replace(config, packing=False, join=None, sequence_length=length, num_samples=count)

    def _start(self) -> int:
        tokenizer = self.variant.tokenizer
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if start is None:
            raise ConfigError(
                "each text was to begin with the start token, and the tokenizer of the "
                f"{self.variant.name} model has none: take another protocol"
            )
        return int(start)
