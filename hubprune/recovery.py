"""A pruned model recovered: trained or fitted, measured, and all of it recorded.

Only the matrices that the report lists are changed, and in them only weights that are not zero: what was true of the
pruned files stays true, and the same checks hold.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hubprune import adapters, apply, environment
from hubprune.activations import Activations
from hubprune.architecture import Matrix
from hubprune.calibration import Corpus
from hubprune.energy import metered
from hubprune.errors import UsageError
from hubprune.evaluation import perplexity, windows_of
from hubprune.facts import Perplexity
from hubprune.opening import Opening
from hubprune.outcomes import LossPoint, RecoveryFacts
from hubprune.reconstruct import reconstruct
from hubprune.recovery_config import RecoveryConfig
from hubprune.recovery_plan import RecoveryPlan, matrices_of, pattern_of
from hubprune.reloading import make_probe
from hubprune.report import PruningReport
from hubprune.teacher import DenseTeacher
from hubprune.training import train
from hubprune.weights import weights_of
from hubprune.work import Journal
from hubprune.zeros import Zeros

IN_MEMORY, ON_DISK = "in memory", "on disk"


def execute(
    model: PreTrainedModel,
    plan: RecoveryPlan,
    report: PruningReport,
    folder: Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    adapter_out: Path | None = None,
    adapter_base: str | None = None,
    max_memory: int | None = None,
    progress: bool = True,
) -> None:
    """Recover a model in memory, measure it, and add what was done to its report.

    Args:
        model: The pruned model; changed in place.
        plan: The recovery.
        report: Its record.
        folder: Where checkpoints and what else is bulky goes; a training goes on with what is there.
        tokenizer: Its tokenizer, for the probe.
        adapter_out: Folder for the adapter itself, None for nowhere.
        adapter_base: What the adapter's config names as its base.
        max_memory: Bytes that the dense base may take; beyond it, or what is free, its blocks stay on disk.
        progress: Whether to show progress bars.

    Raises:
        NumericalError: A loss is NaN or infinite.
        VerificationError: A zero is no zero any more, or a group is wrong.
        UsageError: The adapter cannot be published by itself.
    """
    facts = RecoveryFacts(corpora=[corpus.facts for corpus in plan.corpora.values()])
    matrices = matrices_of(model, report)
    facts.timings["prepare"] = plan.seconds
    with timed(facts, "evaluate pruned"):
        measure_before(model, plan, report, progress)
    zeros = Zeros(pattern_of(report))
    if plan.config.method == "reconstruct":
        _reconstruct(model, matrices, plan, facts, zeros, folder, max_memory, progress)
    else:
        _train(model, matrices, plan, facts, zeros, folder, adapter_out, adapter_base, max_memory, progress)
    with timed(facts, "evaluate recovered"):
        measure_after(model, plan, report, progress)
    counts = {matrix.name: int((matrix.view() == 0).sum()) for matrix in matrices}
    record(report, plan, facts, zeros, counts)
    report.probe = make_probe(model, tokenizer)
    model.config.hubprune = report.summary()


@contextmanager
def timed(facts: RecoveryFacts, stage: str) -> Iterator[None]:
    """Add the time of what is done meanwhile to the record."""
    started = time.perf_counter()
    yield
    facts.timings[stage] = time.perf_counter() - started


@contextmanager
def dense_model(plan: RecoveryPlan, folder: Path, max_memory: int | None) -> Iterator[tuple[Any, str]]:
    """The dense base, and where its blocks are.

    Args:
        plan: The recovery.
        folder: Where blocks go whose files hold them in another form than the model does.
        max_memory: Bytes that it may take, None for what is free.
    """
    base = plan.base
    assert base is not None
    if not isinstance(base, Opening):
        yield base, IN_MEMORY
        return
    size = sum(p.numel() for p in base.outline.parameters()) * base.dtype.itemsize
    room = environment.free_memory() if max_memory is None else max_memory
    if size <= room:
        yield base.weights(), IN_MEMORY
    else:
        yield base.weights_on_disk(folder / "offload-base"), ON_DISK


def _train(
    model: PreTrainedModel,
    matrices: list[Matrix],
    plan: RecoveryPlan,
    facts: RecoveryFacts,
    zeros: Zeros,
    folder: Path,
    adapter_out: Path | None,
    adapter_base: str | None,
    max_memory: int | None,
    progress: bool,
) -> None:
    """Train an adapter and merge it."""
    config, dtype = plan.config, model.dtype
    training, looked_at = plan.split()
    changed = adapters.adaptable(matrices, config)
    if len(changed) < len(matrices):
        plan.warnings.append(
            f"adapters go to matrices with a module of their own: {len(matrices) - len(changed)} fused experts stayed "
            "as they were pruned; method 'reconstruct' fits them too"
        )
    zeros.note(matrices)
    masked = config.kind == "lora" and adapters.needs_mask(changed)
    if adapter_out is not None and masked:
        raise UsageError(adapters.NO_MASK)
    with ExitStack() as stack:
        teacher = None
        if config.distill:
            with timed(facts, "teacher"):
                base, facts.teacher = stack.enter_context(dense_model(plan, folder, max_memory))
                put_away = Activations(max_memory or environment.free_memory() // 4, folder)
                teacher = stack.enter_context(DenseTeacher(base, training, put_away, progress))
        if _widens(model, config):
            apply.retype(model, torch.float32)
        try:
            with (
                timed(facts, "train"),
                metered(partial(setattr, facts, "energy")),
                adapters.attached(model, changed, config) as wrapped,
            ):
                facts.parameters = sum(p.numel() for p in wrapped.parameters() if p.requires_grad)
                done = train(
                    wrapped, training, looked_at, config, folder / "checkpoints", teacher=teacher, progress=progress
                )
                if adapter_out is not None:
                    adapters.save_adapter(wrapped, adapter_out, adapter_base)
                if done.kept_step > 0:
                    wrapped.merge_and_unload(safe_merge=True)
        finally:
            apply.retype(model, dtype)
    zeros.check(matrices)
    if done.kept_step == 0:
        plan.warnings.append(
            "training never lowered the held-out loss, so the weights stayed as they were pruned: lower the learning "
            "rate, or give more text"
        )
    facts.adapter = "masked lora" if masked else config.kind
    facts.matrices, facts.trained, facts.held_out = len(changed), len(training), len(looked_at)
    facts.steps, facts.kept_step, facts.tokens, facts.curve = done.steps, done.kept_step, done.tokens, done.curve


def _widens(model: PreTrainedModel, config: RecoveryConfig) -> bool:
    """Whether training runs on float32 copies: a CPU is slow in half precision, and float16 underflows."""
    half = model.dtype.itemsize == 2
    return half and (model.device.type == "cpu" or model.dtype == torch.float16 or config.kind == "shira")


def _reconstruct(
    model: PreTrainedModel,
    matrices: list[Matrix],
    plan: RecoveryPlan,
    facts: RecoveryFacts,
    zeros: Zeros,
    folder: Path,
    max_memory: int | None,
    progress: bool,
) -> None:
    with timed(facts, "reconstruct"), dense_model(plan, folder, max_memory) as (base, facts.teacher):
        fit(weights_of(model), weights_of(base), matrices, plan, facts, zeros, None, Activations(), progress)


def fit(
    pruned: Any,
    dense: Any,
    matrices: list[Matrix],
    plan: RecoveryPlan,
    facts: RecoveryFacts,
    zeros: Zeros,
    journal: Journal | None,
    activations: Activations,
    progress: bool,
) -> dict[str, int]:
    """Reconstruct, and note what was done; returns the zeros of each matrix afterwards."""
    batches = plan.batches()
    with metered(partial(setattr, facts, "energy")):
        done = reconstruct(
            pruned,
            dense,
            matrices,
            batches,
            plan.config,
            zeros,
            journal=journal,
            activations=activations,
            progress=progress,
        )
    steps = plan.config.steps or 0
    facts.parameters = sum(m.view().numel() for m in matrices) - sum(done.zero_counts.values())
    facts.matrices, facts.curve = len(matrices), done.curve
    facts.trained = sum(len(batch) for batch in batches)
    facts.steps = facts.kept_step = steps * len(done.curve)
    facts.tokens = round(sum(batch.numel() for batch in batches) / len(batches) * facts.steps)
    return done.zero_counts


def measure_before(model: Any, plan: RecoveryPlan, report: PruningReport, progress: bool) -> None:
    """Measure the pruned model where its perplexity on the same text is not known yet."""
    for label, corpus in plan.evaluation.items():
        rows = [row for row in report.evaluation if row.corpus == label]
        same = [row for row in rows if _measured_alike(row, model, corpus)]
        if not any(row.variant == "pruned" for row in same):
            for row in rows:
                report.evaluation.remove(row)
            report.evaluation += [*(row for row in same if row.variant == "base")]
            report.evaluation.append(_perplexity(model, corpus, "pruned", plan, progress))


def _measured_alike(row: Perplexity, model: Any, corpus: Corpus) -> bool:
    """Whether a row was measured on a text sequence by sequence, as is done here."""
    tokens = sum(len(one.ids) - one.context for one in windows_of(model, corpus))
    return (row.fingerprint, row.stride, row.tokens) == (corpus.facts.fingerprint, row.window, tokens)


def measure_after(model: Any, plan: RecoveryPlan, report: PruningReport, progress: bool) -> None:
    """Measure the recovered model."""
    report.evaluation += [
        _perplexity(model, corpus, "recovered", plan, progress) for corpus in plan.evaluation.values()
    ]


def _perplexity(model: Any, corpus: Corpus, variant: str, plan: RecoveryPlan, progress: bool) -> Any:
    return perplexity(model, corpus, variant=variant, batch_size=plan.config.batch_size, progress=progress)


def record(
    report: PruningReport, plan: RecoveryPlan, facts: RecoveryFacts, zeros: Zeros, counts: Mapping[str, int]
) -> None:
    """Add a recovery to the report.

    Args:
        report: The report.
        plan: The recovery.
        facts: What is known of it; completed.
        zeros: The zeros that were checked.
        counts: Zeros of each matrix now; there may be more than before.
    """
    facts.config = plan.config.to_dict()
    facts.zeros_kept = zeros.kept
    facts.groups_kept = zeros.groups if zeros.pattern is not None else None
    facts.peak_memory_bytes = environment.peak_memory()
    facts.versions = environment.versions()
    facts.created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    facts.timings = {name: round(seconds, 3) for name, seconds in facts.timings.items()}
    facts.curve = [
        LossPoint(point.step, *(None if v is None else round(v, 6) for v in (point.training, point.held_out)))
        for point in facts.curve
    ]
    for row in report.matrices:
        row.zeros = counts.get(row.name, row.zeros)
    report.totals.zeros = sum(row.zeros for row in report.matrices)
    report.recovery = facts
    report.warnings += plan.warnings
    report.verification = None
