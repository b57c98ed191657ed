"""Perplexity, with its protocol.

The windows are the sequences of the corpus, so the stride equals the window: every token but the first of each window
is predicted once, from the tokens before it in the same window. The mean is taken over all predicted tokens of all
windows, not over windows.

The standard error is that of a ratio of two sums over windows (the delta method): with ``s`` the loss of a window,
``n`` its predicted tokens and ``m = sum(s) / sum(n)``, the variance of ``m`` over ``k`` windows is
``k / (k - 1) * sum((s - m * n)**2) / sum(n)**2``, and that of ``exp(m)`` is ``exp(m)**2`` times as large. It says how
far another draw of windows may lie; it is 0 where there is one window, which says nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from tqdm import tqdm

from hubprune import ranks
from hubprune.architecture import evaluation_mode
from hubprune.calibration import Corpus
from hubprune.corpora import filter_text
from hubprune.errors import ConfigError, NumericalError
from hubprune.facts import Perplexity, SourceFacts

# Logits in one forward pass, and logits widened to float32 at a time: 1 GiB in bfloat16, and 64 MiB.
MOST_LOGITS = 2**29
MOST_WIDE_LOGITS = 2**24
# exp() of more nats does not fit a float, nor any table.
MOST_NATS = 700.0


def perplexity(
    model: Any, corpus: Corpus, *, variant: str = "pruned", batch_size: int = 8, progress: bool = True
) -> Perplexity:
    """Measure the perplexity of a causal language model; the model is left as it was.

    In a ``torch.distributed`` program every process calls this, and each scores its part of the windows.

    Args:
        model: Any causal language model of transformers, on any device.
        corpus: The text.
        variant: What the row in the report is called, ``base`` or ``pruned``.
        batch_size: Sequences in a forward pass, at most; fewer where the logits would not fit into memory.
        progress: Whether to show a progress bar, once it takes more than two seconds.

    Returns:
        The perplexity with its protocol.

    Raises:
        NumericalError: The loss is NaN or infinite, or too large to take its exponential.
        ConfigError: ``batch_size`` is below 1.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1 sequence, got {batch_size}")
    longest = max(len(sequence) for sequence in corpus.sequences)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    fitting = max(1, MOST_LOGITS // (longest * vocabulary))
    losses: list[float] = []
    counts: list[int] = []
    batches = ranks.share(list(corpus.batches(min(batch_size, fitting))))
    bar = tqdm(
        desc=f"Perplexity on {corpus.name}",
        unit="window",
        total=sum(map(len, batches)),
        disable=not progress or ranks.rank() > 0,
        delay=2,
        leave=False,
    )
    # Not inference_mode: models that recompute rotary frequencies would keep tensors that cannot be trained with.
    with bar, evaluation_mode(model), torch.no_grad():
        for batch in batches:
            ids = batch.to(model.device)
            logits = model(input_ids=ids, use_cache=False).logits
            losses += [_loss(row, targets) for row, targets in zip(logits, ids, strict=True)]
            counts += [batch.shape[1] - 1] * len(batch)
            bar.update(len(batch))
    losses, counts = ranks.gather(losses), ranks.gather(counts)
    mean, stderr = _mean_and_error(losses, counts)
    if not mean < MOST_NATS:
        raise NumericalError(
            f"the loss of the {variant} model on the {corpus.name} text is {mean} nats a token: its perplexity cannot "
            "be stated; check the weights for NaN, prune less, or evaluate in float32"
        )
    value = math.exp(mean)
    start = getattr(model.config, "bos_token_id", None)
    return Perplexity(
        variant=variant,
        corpus=corpus.name,
        perplexity=value,
        stderr=value * stderr,
        tokens=sum(counts),
        windows=len(counts),
        window=longest,
        stride=longest,
        bos=start is not None and all(int(sequence[0]) == start for sequence in corpus.sequences),
        sources=[_spec(source) for source in corpus.facts.sources],
        fingerprint=corpus.facts.fingerprint,
    )


def _loss(logits: torch.Tensor, ids: torch.Tensor) -> float:
    """Sum the loss over one window.

    Args:
        logits: ``(T, vocabulary)``, in the model's type.
        ids: ``(T,)``.

    Returns:
        Nats. The softmax is taken in float32, a few tokens at a time, and summed in float64.
    """
    step = max(1, MOST_WIDE_LOGITS // logits.shape[1])
    total = 0.0
    for start in range(0, len(ids) - 1, step):
        stop = min(start + step, len(ids) - 1)
        targets = ids[start + 1 : stop + 1].to(logits.device)
        nats = torch.nn.functional.cross_entropy(logits[start:stop].float(), targets, reduction="none")
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
