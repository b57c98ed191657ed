"""A smoke test: fixed prompts, the likeliest token each time, and a look for gibberish.

Perplexity is the mean over text that people wrote; a model can keep most of it and still say the same three words for
ever once it reads its own. Greedy decoding of a small model loops easily, so what counts is the difference to the
base.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tqdm import tqdm

from hubprune.architecture import evaluation_mode, is_paired
from hubprune.labelling import end_tokens
from hubprune.outcomes import Answer

PROMPTS = (
    "Once upon a time there was",
    "The most important thing to know about",
    "Question: What should a patient with a fever do?\nAnswer:",
    "The court held that",
)
NEW_TOKENS = 48
# A loop is a run of up to PERIOD tokens that stands TIMES times in a row; an answer of which half is loop is one.
PERIOD = 16
TIMES = 3
MOST_LOOPED = 0.5
MOST_BROKEN = 0.2


def write_answers(
    model: Any,
    tokenizer: Any,
    *,
    variant: str,
    prompts: Sequence[str] = PROMPTS,
    new_tokens: int = NEW_TOKENS,
    progress: bool = True,
) -> list[Answer]:
    """Let a model go on from each prompt; the model is left as it was.

    Args:
        model: A causal language model or an encoder-decoder.
        tokenizer: Its tokenizer.
        variant: What the rows are called.
        prompts: The prompts.
        new_tokens: Tokens to write, at most; fewer where the model ends its text.
        progress: Whether to show a progress bar, once it takes more than two seconds.
    """
    found = []
    bar = tqdm(
        prompts, desc=f"Answers of the {variant} model", unit="prompt", disable=not progress, delay=2, leave=False
    )
    ends = end_tokens(model, tokenizer)
    with bar, evaluation_mode(model), torch.no_grad():
        for prompt in bar:
            ids = tokenizer(prompt, return_tensors="pt").input_ids
            written = greedy(model, ids, new_tokens, ends)
            text = tokenizer.decode(written, skip_special_tokens=True)
            share = looped(written)
            found.append(Answer(variant, prompt, text, len(written), share, _problem(text, written, share)))
    return found


def greedy(model: Any, ids: torch.Tensor, new_tokens: int, ends: frozenset[int] = frozenset()) -> list[int]:
    """Write the likeliest token again and again.

    Args:
        model: A causal language model or an encoder-decoder, in evaluation mode.
        ids: The prompt, ``(1, T)``.
        new_tokens: Tokens to write, at most.
        ends: Token ids that end the text.

    Returns:
        The token ids written, without one that ends the text.
    """
    written: list[int] = []
    part, cache = ids.to(model.device), None
    name, known = "input_ids", {}
    if is_paired(model.config):
        name, known = "decoder_input_ids", {"encoder_outputs": model.get_encoder()(input_ids=part)}
        part = torch.full_like(part[:, :1], model.config.decoder_start_token_id)
    for _ in range(new_tokens):
        out = model(**{name: part}, **known, past_key_values=cache, use_cache=True)
        part, cache = out.logits[:, -1:].argmax(-1), out.past_key_values
        if int(part) in ends:
            break
        written.append(int(part))
    return written


def looped(written: Sequence[int]) -> float:
    """Fraction of the tokens in loops: up to ``PERIOD`` tokens that stand at least ``TIMES`` times in a row."""
    inside = [False] * len(written)
    for period in range(1, PERIOD + 1):
        start = 0
        while start + TIMES * period <= len(written):
            stop = start + period
            while stop < len(written) and written[stop] == written[stop - period]:
                stop += 1
            if stop - start >= TIMES * period:
                inside[start:stop] = [True] * (stop - start)
            start = max(start + 1, stop - period + 1)
    return sum(inside) / len(written) if written else 0.0


def _problem(text: str, written: Sequence[int], share: float) -> str:
    """What is wrong with an answer, in words; empty for one that could be language."""
    if not written or not text.strip():
        return "says nothing"
    if share >= MOST_LOOPED:
        return f"repeats itself ({share:.0%} of its tokens)"
    broken = sum(not (character.isprintable() or character in "\n\t") or character == "\ufffd" for character in text)
    if broken > MOST_BROKEN * len(text):
        return f"holds characters that are none ({broken} of {len(text)})"
    return ""


def gibberish(rows: Sequence[Answer], base: str = "base") -> list[str]:
    """What the answers say about each model, in sentences; nothing for one that does as well as the base.

    Args:
        rows: Answers of all models.
        base: Name of the base.
    """
    bad: dict[str, list[Answer]] = {}
    asked: dict[str, int] = {}
    for row in rows:
        asked[row.variant] = asked.get(row.variant, 0) + 1
        bad.setdefault(row.variant, []).extend([row] if row.problem else [])
    allowed = len(bad.get(base, ()))
    return [
        f"of {asked[variant]} answers of the {variant} model {len(found)} are gibberish"
        + (f" ({allowed} of the base's)" if base in asked else "")
        + f": the first {found[0].problem}"
        for variant, found in bad.items()
        if variant != base and len(found) > allowed
    ]
