"""Models side by side: perplexity with its protocol, tasks, answers, size and speed. Nothing is left on disk."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from hubprune import environment, saving
from hubprune.answers import PROMPTS, gibberish, write_answers
from hubprune.errors import UsageError
from hubprune.evaluation import perplexity
from hubprune.harness import Task, Tasks, recover
from hubprune.measured import Text, read_texts
from hubprune.outcomes import Evaluation
from hubprune.protocol import Protocol
from hubprune.sizes import measure_size, resident_bytes
from hubprune.speed import measure_speed, what_zeros_do
from hubprune.variants import Variant, find_variants, recorded_texts


@dataclass(frozen=True)
class Request:
    """What is to be measured, of every model alike.

    Attributes:
        texts: Text by label.
        protocol: How perplexity is measured.
        tasks: Tasks of the harness.
        fewshot: Worked examples in each prompt; None for the task's own number.
        limit: Examples of each task, at most.
        answers: Whether to let the models answer fixed prompts.
        prompts: The prompts.
        size: Whether to measure how large they are.
        speed: Whether to measure how fast they are.
        batch_size: Windows or requests in a forward pass.
        progress: Whether to show progress bars.
    """

    texts: Mapping[str, Any] = field(default_factory=dict)
    protocol: Protocol = Protocol()
    tasks: Sequence[Task] = ()
    fewshot: int | None = None
    limit: int | None = None
    answers: bool = False
    prompts: Sequence[str] = PROMPTS
    size: bool = False
    speed: bool = False
    batch_size: int = 8
    progress: bool = True

    def __post_init__(self) -> None:
        if not (self.texts or self.tasks or self.answers or self.size or self.speed):
            raise UsageError(
                "there is nothing to measure: give texts, tasks, answers=True, size=True or speed=True "
                "(--text, --task, --answers, --size, --speed)"
            )


def evaluate(
    model: Any,
    texts: Mapping[str, Any] | None = None,
    *,
    base: Any = "auto",
    beside: Mapping[str, Any] | None = None,
    variant: str | None = None,
    tokenizer: Any = None,
    protocol: str | Protocol = "default",
    num_samples: int | None = None,
    sequence_length: int | None = None,
    stride: int | None = None,
    tasks: Sequence[Task] | Task = (),
    fewshot: int | None = None,
    limit: int | None = None,
    answers: bool = False,
    prompts: Sequence[str] = PROMPTS,
    size: bool = False,
    speed: bool = False,
    batch_size: int = 8,
    progress: bool = True,
    **keywords: Any,
) -> Evaluation:
    """Measure a model beside the one that it was made from, or any models side by side.

    Args:
        model: A model in memory, its repository or folder; or several by name, such as
            ``{"base": "org/base", "pruned": "folder", "recovered": model}``.
        texts: Text by label, as for ``from_pretrained``: a preset (its held-out splits are read), ``"wikitext2"``, a
            data set, a file, a ``CorpusConfig``, or a list of strings. None: the texts that the model's record names,
            where nothing else is asked for.
        base: What to measure beside a single model: ``"auto"`` for the base that its record names, a model, a
            repository or folder, or None for nothing.
        beside: More models to measure, by name.
        variant: What the rows of a single model are called; None for ``pruned`` or ``recovered``, as its record says,
            or ``base`` where it has none.
        tokenizer: Tokenizer of a single model in memory.
        protocol: How perplexity is measured: a ``Protocol``, or the name of one: ``default``, ``papers`` (whole text,
            windows side by side) or ``harness`` (each document by itself, every token predicted).
        num_samples: Windows of each text, at most.
        sequence_length: Tokens that the model reads in a window.
        stride: Tokens between the starts of two windows; below ``sequence_length``, a token has more before it.
        tasks: Tasks of lm-evaluation-harness: names, or task files of your own. Needs the extra ``eval``.
        fewshot: Worked examples in each prompt; None for the task's own number.
        limit: Examples of each task, at most.
        answers: Whether to let the models answer fixed prompts, and look for gibberish.
        prompts: The prompts.
        size: Whether to count parameters, zeros, bytes on disk and after compression, and memory.
        speed: Whether to time reading and writing; all models are in memory at once then.
        batch_size: Windows or requests in a forward pass, at most.
        progress: Whether to show progress bars.
        keywords: Keywords of ``from_pretrained`` for models by name (``dtype``, ``device_map``, ``revision``,
            ``token``, ...); ``revision`` is that of the single model.

    Returns:
        What was measured, with notes on what it means.

    Raises:
        UsageError: There is nothing to measure, or a tokenizer is missing; a task is unknown.
        ConfigError: The protocol breaks a rule.
        CorpusError: A text cannot be read, or the model was calibrated on it.
        AccessError, NotFoundError, OfflineError: A model or text is out of reach.
        NumericalError: A loss is NaN or infinite.
    """
    variants = find_variants(model, base, beside or {}, variant, tokenizer, keywords)
    asked = not (tasks or answers or size or speed)
    known = recorded_texts(variants) if texts is None and asked else None
    chosen = (Protocol.named(protocol) if isinstance(protocol, str) else protocol).changed(
        num_samples=num_samples, sequence_length=sequence_length, stride=stride
    )
    request = Request(
        texts=known or texts or {},
        protocol=chosen,
        tasks=[tasks] if isinstance(tasks, str | Mapping) else list(tasks),
        fewshot=fewshot,
        limit=limit,
        answers=answers,
        prompts=prompts,
        size=size,
        speed=speed,
        batch_size=batch_size,
        progress=progress,
    )
    return run(variants, request, exclude=known is not None, token=keywords.get("token"))


def run(
    variants: Sequence[Variant], request: Request, *, exclude: bool = False, token: str | bool | None = None
) -> Evaluation:
    """Measure what was asked for; everything that can be refused is refused before any weight is downloaded.

    Args:
        variants: The models.
        request: What to measure.
        exclude: Pass over documents that a model was calibrated on, instead of refusing the text.
        token: Token of the Hub.
    """
    found = Evaluation(hardware=environment.hardware(), versions=environment.versions())
    tasks = None
    if request.tasks:
        tasks = Tasks(request.tasks, fewshot=request.fewshot, limit=request.limit, progress=request.progress)
    texts, found.notes = read_texts(
        variants, request.texts, request.protocol, exclude=exclude, token=token, progress=request.progress
    )
    if request.speed:
        _measure_together(variants, request, texts, tasks, found)
    else:
        for variant in variants:
            with variant.loaded() as model:
                _measure(variant, model, request, texts[variant.name], tasks, found)
    recover(found.tasks)
    found.notes += gibberish(found.answers)
    sizes = {row.variant: row for row in found.sizes}
    if found.speeds:
        found.notes += what_zeros_do(sizes)
    return found


def _measure_together(
    variants: Sequence[Variant],
    request: Request,
    texts: Mapping[str, list[Text]],
    tasks: Tasks | None,
    found: Evaluation,
) -> None:
    """Measure with all models in memory, so that their speeds are taken in one run."""
    with ExitStack() as stack:
        models = {variant.name: stack.enter_context(variant.loaded()) for variant in variants}
        found.speeds = measure_speed(models, progress=request.progress)
        for variant in variants:
            _measure(variant, models[variant.name], request, texts[variant.name], tasks, found)


def _measure(
    variant: Variant,
    model: Any,
    request: Request,
    texts: Sequence[Text],
    tasks: Tasks | None,
    found: Evaluation,
) -> None:
    """Measure one model in memory."""
    name, progress = variant.name, request.progress
    for text in texts:
        row = perplexity(
            model,
            text.corpus,
            variant=name,
            batch_size=request.batch_size,
            progress=progress,
            window=text.window,
            stride=text.stride,
            start=text.start,
        )
        found.perplexities.append(row)
    if tasks is not None:
        found.tasks += tasks.score(
            model, variant.tokenizer, variant=name, batch_size=request.batch_size, progress=progress
        )
    if request.answers:
        found.answers += write_answers(
            model, variant.tokenizer, variant=name, prompts=request.prompts, progress=progress
        )
    if request.size:
        with _folder_of(variant, model) as folder:
            size = measure_size(model, variant=name, folder=folder)
            trusted = variant.opening is not None and bool(variant.opening.keywords["trust_remote_code"])
            # Code of its own is run again only where it was trusted, and that of a model in memory is not known.
            if variant.folder is not None or not hasattr(model.config, "auto_map"):
                size.resident_bytes = resident_bytes(folder, dtype=size.dtype, trust_remote_code=trusted)
        found.sizes.append(size)
    elif request.speed:
        found.sizes.append(measure_size(model, variant=name, folder=variant.folder))


@contextmanager
def _folder_of(variant: Variant, model: Any) -> Iterator[Path]:
    """The folder of a model's files; those of a model in memory are written, and go again."""
    if variant.folder is not None:
        yield variant.folder
        return
    with tempfile.TemporaryDirectory(prefix="hubprune-") as place:
        with saving.disk_errors(Path(place)):
            PreTrainedModel.save_pretrained(model, place)
        yield Path(place)
