"""Perplexity, with its protocol.

A text is one sequence of tokens or several. Without a stride each sequence is a window: every token but the first is
predicted once, from the tokens before it in the same window. With a stride, sequences that were cut out of one text
are put together again and read by a window that moves on by the stride; the tokens that an earlier window predicted
are then context only. The mean is taken over all predicted tokens of all windows, not over windows.

An encoder-decoder reads the question of an example and is asked for its answer: each example is a window, of which the
tokens of the answer are predicted.

Bits per byte are the nats of all predicted tokens, over ln 2, over the UTF-8 bytes of the text that they stand for:
unlike perplexity they do not depend on the vocabulary.

The standard error is that of a ratio of two sums over windows (the delta method): with ``s`` the loss of a window,
``n`` its predicted tokens and ``m = sum(s) / sum(n)``, the variance of ``m`` over ``k`` windows is
``k / (k - 1) * sum((s - m * n)**2) / sum(n)**2``, and that of ``exp(m)`` is ``exp(m)**2`` times as large. It says how
far another draw of windows may lie; it is 0 where there is one window, which says nothing.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from hubprune import ranks
from hubprune.architecture import evaluation_mode, is_paired
from hubprune.calibration import NO_ANSWERS, Corpus
from hubprune.corpora import filter_text
from hubprune.errors import ConfigError, CorpusError, NumericalError
from hubprune.facts import Perplexity, SourceFacts

# Logits of the windows of one batch; logits that exist at once, where a head can be asked for some positions; and
# logits widened to float32 at a time: 64 MiB.
MOST_LOGITS = 2**29
MOST_AT_ONCE = 2**26
MOST_WIDE_LOGITS = 2**24
# exp() of more nats does not fit a float, nor any table.
MOST_NATS = 700.0


@dataclass(frozen=True, eq=False)
class Window:
    """Part of a text that is read in one go.

    Attributes:
        ids: Token ids, ``(T,)``.
        context: Tokens at the start that are not predicted, at least 1.
        text_bytes: Bytes that the predicted tokens stand for; None where that is not known.
    """

    ids: torch.Tensor
    context: int = 1
    text_bytes: int | None = None


def perplexity(
    model: Any,
    corpus: Corpus,
    *,
    variant: str = "pruned",
    batch_size: int = 8,
    progress: bool = True,
    window: int | None = None,
    stride: int | None = None,
    start: int | None = None,
) -> Perplexity:
    """Measure the perplexity of a language model; the model is left as it was.

    In a ``torch.distributed`` program every process calls this, and each scores its part of the windows.

    Args:
        model: Any causal language model or encoder-decoder of transformers, on any device.
        corpus: The text.
        variant: What the row in the report is called, such as ``base`` or ``pruned``.
        batch_size: Windows in a forward pass, at most; fewer where the logits would not fit into memory.
        progress: Whether to show a progress bar, once it takes more than two seconds.
        window: Tokens in a window; None for the corpus' own sequences.
        stride: Tokens between the starts of two windows, at most ``window``; None for the window.
        start: Token id that is put in front of each text; None for none.

    Returns:
        The perplexity with its protocol.

    Raises:
        NumericalError: The loss is NaN or infinite, or too large to take its exponential.
        ConfigError: ``batch_size`` is below 1, or the stride does not fit the window.
        CorpusError: The model is an encoder-decoder, and the text has no answers.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1 sequence, got {batch_size}")
    paired = is_paired(model.config)
    windows = windows_of(model, corpus, window, stride, start)
    losses, counts = _scored(model, corpus.name, windows, batch_size, progress)
    mean, stderr = _mean_and_error(losses, counts)
    if not mean < MOST_NATS:
        raise NumericalError(
            f"the loss of the {variant} model on the {corpus.name} text is {mean} nats a token: its perplexity cannot "
            "be stated; check the weights for NaN, prune less, or evaluate in float32"
        )
    value = math.exp(mean)
    longest = max(len(one.ids) for one in windows)
    first = getattr(model.config, "bos_token_id", None)
    bos = start is not None or first is not None and all(int(one.ids[0]) == first for one in windows)
    text_bytes = sum(one.text_bytes or 0 for one in windows) or None
    return Perplexity(
        variant=variant,
        corpus=corpus.name,
        perplexity=value,
        stderr=value * stderr,
        tokens=sum(counts),
        windows=len(counts),
        window=longest if window is None else window,
        stride=stride or window or longest,
        bos=bos,
        sources=[_spec(source) for source in corpus.facts.sources],
        fingerprint=corpus.facts.fingerprint,
        layout="answers" if paired else _layout(corpus),
        join=corpus.facts.join,
        text_bytes=text_bytes,
        bits_per_byte=None if text_bytes is None else math.fsum(losses) / math.log(2) / text_bytes,
    )


def _scored(
    model: Any, name: str, windows: Sequence[Window], batch_size: int, progress: bool
) -> tuple[list[float], list[int]]:
    """Each window's summed loss in nats and the tokens it is over, of all processes."""
    scored = ranks.share(_batches(windows, batch_size, model.get_input_embeddings().weight.shape[0]))
    bar = tqdm(
        desc=f"Perplexity on {name}",
        unit="window",
        total=sum(map(len, scored)),
        disable=not progress or ranks.rank() > 0,
        delay=2,
        leave=False,
    )
    losses: list[float] = []
    with bar:
        for batch in scored:
            losses += log_losses(model, batch)
            bar.update(len(batch))
    counts = ranks.gather([len(one.ids) - one.context for batch in scored for one in batch])
    return ranks.gather(losses), counts


def _layout(corpus: Corpus) -> str:
    """How a text is laid out, in a word."""
    if corpus.facts.join is not None:
        return "joined"
    return "packed" if corpus.facts.packing else "separate"


def windows_of(
    model: Any, corpus: Corpus, window: int | None = None, stride: int | None = None, start: int | None = None
) -> list[Window]:
    """What a model is measured on; arguments and errors as for ``cut`` and ``examples``."""
    return examples(corpus) if is_paired(model.config) else cut(corpus, window, stride, start)


def examples(corpus: Corpus) -> list[Window]:
    """The examples of a corpus, each a window whose context is its question.

    Raises:
        CorpusError: It has no answers.
    """
    if not corpus.answers:
        raise CorpusError(f"the {corpus.name} text holds no answers: {NO_ANSWERS}")
    return [Window(ids, answer) for ids, answer in zip(corpus.sequences, corpus.answers, strict=True)]


def cut(
    corpus: Corpus, window: int | None = None, stride: int | None = None, start: int | None = None
) -> list[Window]:
    """Cut a text into windows, so that no token is predicted twice.

    Args:
        corpus: The text.
        window: Tokens in a window; None for the corpus' own sequences.
        stride: Tokens between the starts of two windows; None for the window. Below the window, each token but the
            first of a text is predicted, from ``window - stride`` tokens before it or more.
        start: Token id that is put in front of each text; None for none.

    Raises:
        ConfigError: The stride is not between 1 and the window.
    """
    texts = list(zip(corpus.sequences, corpus.sizes or [None] * len(corpus.sequences), strict=True))
    if window is None and stride is None and start is None:
        return [Window(ids, 1, None if sizes is None else int(sizes[1:].sum())) for ids, sizes in texts]
    longest = max(len(ids) for ids, _ in texts)
    window = longest if window is None else window
    stride = window if stride is None else stride
    if not 1 <= stride <= window or window < 2:
        raise ConfigError(
            f"a window holds at least 2 tokens and moves on by 1 of them or more, at most by all, got a window of "
            f"{window} and a stride of {stride}"
        )
    if corpus.facts.packing:
        sizes = torch.cat(corpus.sizes) if corpus.sizes else None
        texts = [(torch.cat(corpus.sequences), sizes)]
    if start is not None:
        texts = [(_behind(start, ids), None if sizes is None else _behind(0, sizes)) for ids, sizes in texts]
    return [one for ids, sizes in texts for one in _windows(ids, sizes, window, stride)]


def _behind(first: int, rest: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.tensor([first]), rest])


def _windows(ids: torch.Tensor, sizes: torch.Tensor | None, window: int, stride: int) -> Iterator[Window]:
    """The windows of one text; the last one is moved back so that it is full."""
    predicted = 0
    for at in range(0, len(ids), stride):
        end = min(at + window, len(ids))
        first = max(predicted, at + 1)
        begin = max(0, end - window)
        if first < end:
            size = None if sizes is None else int(sizes[first:end].sum())
            yield Window(ids[begin:end], first - begin, size)
        predicted = end
        if end == len(ids):
            return


def _batches(windows: Sequence[Window], size: int, vocabulary: int) -> list[list[Window]]:
    """Windows in order, those in a batch of one length."""
    batches: list[list[Window]] = []
    for one in windows:
        fitting = max(1, MOST_LOGITS // (len(one.ids) * vocabulary))
        same = bool(batches) and len(batches[-1][0].ids) == len(one.ids)
        if same and len(batches[-1]) < min(size, fitting):
            batches[-1].append(one)
        else:
            batches.append([one])
    return batches


def log_losses(model: Any, windows: Sequence[Window]) -> list[float]:
    """Sum the losses of windows of one length, in one forward pass.

    Args:
        model: The model.
        windows: The windows.

    Returns:
        For each window the negative log likelihood of its predicted tokens, in nats.
    """
    if is_paired(model.config):
        return [_answer_loss(model, one) for one in windows]
    ids = torch.stack([one.ids for one in windows])
    losses = [0.0] * len(windows)
    # Not inference_mode: models that recompute rotary frequencies would keep tensors that cannot be trained with.
    with evaluation_mode(model), torch.no_grad():
        for begin, logits in _logits(model, ids[:, :-1].to(model.device)):
            for row, one in enumerate(windows):
                targets = one.ids[1:][begin : begin + logits.shape[1]]
                losses[row] += _loss(logits[row], targets, max(one.context - 1 - begin, 0))
    return losses


def _logits(model: Any, ids: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield the logits of some sequences, a few positions at a time where they are too many to exist at once.

    Then the model below the head is run once, and the model's own head is asked for positions of what that gives.

    Args:
        model: The model.
        ids: Token ids, ``(b, T)``.

    Returns:
        Where the positions begin, and their logits, ``(b, positions, vocabulary)``.
    """
    step = max(1, MOST_AT_ONCE // (len(ids) * model.get_input_embeddings().weight.shape[0]))
    if step >= ids.shape[1] or not keeps_some(model):
        yield 0, model(input_ids=ids, use_cache=False).logits
        return
    decoder = model.get_decoder()
    with _answering(decoder, decoder(input_ids=ids, use_cache=False)):
        for positions in torch.arange(ids.shape[1], device=ids.device).split(step):
            yield int(positions[0]), model(input_ids=ids, use_cache=False, logits_to_keep=positions).logits


def keeps_some(model: Any) -> bool:
    """Whether a model's head can be asked for some positions, and takes what the model below it gives."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters and model.get_decoder() is not model


@contextmanager
def _answering(module: nn.Module, answer: Any) -> Iterator[None]:
    """Have a module give the same answer to every call."""
    own = vars(module).get("forward")
    module.forward = lambda *_, **__: answer
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


def _answer_loss(model: Any, one: Window) -> float:
    """The loss of an answer, in nats, by an encoder-decoder that has read its question."""
    question, answer = (part[None].to(model.device) for part in (one.ids[: one.context], one.ids[one.context :]))
    with evaluation_mode(model), torch.no_grad():
        logits = model(input_ids=question, labels=answer, use_cache=False).logits
    return _loss(logits[0], answer[0], 0)


def _loss(logits: torch.Tensor, targets: torch.Tensor, first: int) -> float:
    """Sum the loss over one window.

    Args:
        logits: ``(T, vocabulary)``, in the model's type.
        targets: The tokens to predict, ``(T,)``.
        first: Place of the first one that counts.

    Returns:
        Nats. The softmax is taken in float32, a few tokens at a time, and summed in float64.
    """
    step = max(1, MOST_WIDE_LOGITS // logits.shape[1])
    total = 0.0
    for begin in range(first, len(targets), step):
        part = targets[begin : begin + step].to(logits.device)
        nats = torch.nn.functional.cross_entropy(logits[begin : begin + step].float(), part, reduction="none")
        total += float(nats.double().sum())
    return total


def _mean_and_error(losses: Sequence[float], counts: Sequence[int]) -> tuple[float, float]:
    """The mean loss of a token and its standard error, in nats; see the module's first paragraphs."""
    windows, tokens = len(losses), sum(counts)
    mean = math.fsum(losses) / tokens
    if windows < 2:
        return mean, 0.0
    spread = math.fsum((loss - mean * count) ** 2 for loss, count in zip(losses, counts, strict=True))
    return mean, math.sqrt(windows / (windows - 1) * spread) / tokens


def _spec(source: SourceFacts) -> str:
    """A data set as a user writes it: ``repo``, ``repo:config`` or ``repo:config:split``, and its filters."""
    place = ":".join([source.dataset, source.config or "", source.split or ""]).rstrip(":")
    return place + filter_text(source.filters)
