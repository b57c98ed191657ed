"""Answers as they are written, token by token, with how fast they come."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from facts import MAX_INPUT_TOKENS, SPACE
from models import TOKENIZER, Side
from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

PAUSE = 0.05  # seconds between two looks at an answer: showing it takes time from the model
SILENCE = 120.0  # seconds without a token after which an answer is given up


@dataclass
class Answer:
    """What a model has written so far.

    Attributes:
        text: The text.
        tokens: Tokens of it.
        first: Seconds until the first token; None before it.
        rate: Tokens a second from the first one on; None before the second.
        state: ``waiting``, ``writing``, ``done``, ``recorded`` or ``none``.
        note: What the visitor should know about it.
    """

    text: str = ""
    tokens: int = 0
    first: float | None = None
    rate: float | None = None
    state: str = "waiting"
    note: str = ""


@dataclass
class TokenTimes:
    """Moments at which tokens came out, in seconds."""

    started: float = field(default_factory=time.perf_counter)
    moments: list[float] = field(default_factory=list)

    def fill(self, answer: Answer) -> None:
        """Write into an answer how fast it comes."""
        moments = list(self.moments)
        answer.tokens = len(moments)
        if moments:
            answer.first = moments[0] - self.started
        if len(moments) > 1 and moments[-1] > moments[0]:
            answer.rate = (len(moments) - 1) / (moments[-1] - moments[0])


class TimedStreamer(TextIteratorStreamer):
    """A streamer that notes when each token came out; text is handed out in whole words."""

    def __init__(self, tokenizer: Any, times: TokenTimes) -> None:
        super().__init__(tokenizer, skip_prompt=True, timeout=SILENCE, skip_special_tokens=True)
        self.times = times

    def put(self, value: Any) -> None:
        """Take a token, or at first the prompt."""
        if not self.next_tokens_are_prompt:
            self.times.moments.append(time.perf_counter())
        super().put(value)


class Stop(StoppingCriteria):
    """Ends an answer that nobody waits for any more."""

    def __init__(self) -> None:
        self.asked = threading.Event()

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """Say for each sequence whether it ends."""
        return torch.full((input_ids.shape[0],), self.asked.is_set(), device=input_ids.device)


def encode(prompt: str, as_chat: bool, new_tokens: int, model: Any) -> dict[str, torch.Tensor]:
    """Return the prompt as tokens, its beginning cut away where it is too long."""
    if as_chat and TOKENIZER.chat_template:
        text = TOKENIZER.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    else:
        ids = TOKENIZER(prompt)["input_ids"]
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or MAX_INPUT_TOKENS
    kept = ids[-max(1, min(MAX_INPUT_TOKENS, context - new_tokens)) :]
    tokens = torch.tensor([kept], device=model.device)
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def write(side: Side, prompt: str, as_chat: bool, settings: dict[str, Any], seed: int) -> Iterator[Answer]:
    """Let a model answer.

    Args:
        side: The model.
        prompt: The prompt.
        as_chat: Whether to put the prompt through the tokenizer's chat template.
        settings: Keywords of ``generate``.
        seed: Seed of the sampling.

    Yields:
        The answer as far as it is; the same object each time.
    """
    inputs = encode(prompt, as_chat, settings["max_new_tokens"], side.model)
    answer, stop, failed = Answer(state="writing"), Stop(), []
    times = TokenTimes()
    streamer = TimedStreamer(TOKENIZER, times)

    def generate() -> None:
        try:
            torch.manual_seed(seed)
            side.model.generate(
                **inputs, **settings, streamer=streamer, stopping_criteria=StoppingCriteriaList([stop])
            )
        except Exception as error:  # shown to the visitor, who would wait for ever otherwise
            failed.append(error)
            streamer.end()

    thread = threading.Thread(target=generate, daemon=True)
    thread.start()
    shown = 0.0
    try:
        for part in streamer:
            answer.text += part
            if time.perf_counter() - shown >= PAUSE:
                times.fill(answer)
                yield answer
                shown = time.perf_counter()
    finally:
        stop.asked.set()
        thread.join()
    times.fill(answer)
    answer.state = "done"
    if failed:
        print(f"{side.variant}: {failed[0]!r}")
        answer.note = f"it failed: {failed[0]}"
    yield answer


def recorded(variant: str, prompt: str, why: str) -> Answer:
    """Return what a model that is not loaded wrote after this prompt when it was measured, if it did."""
    said = next((row for row in SPACE["recorded"][variant] if row["prompt"].strip() == prompt.strip()), None)
    if said is not None:
        return Answer(text=said["text"], tokens=said["tokens"], state="recorded")
    more = " Some of the examples have a recorded answer." if SPACE["recorded"][variant] else ""
    return Answer(state="none", note=f"This model is not run here: {why}.{more}")
