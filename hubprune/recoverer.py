"""Recovery of a pruned model in memory, or of one by its name into a folder, and gone on with where it was killed."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hubprune import environment, hub, recovery, saving
from hubprune.activations import Activations
from hubprune.errors import UsageError
from hubprune.facts import Perplexity
from hubprune.fields import parse_size
from hubprune.flow import Plan
from hubprune.opening import Opening
from hubprune.outcomes import RecoveryFacts
from hubprune.recovery_config import RecoveryConfig
from hubprune.recovery_plan import RecoveryPlan, matrices_of, pattern_of, prepare
from hubprune.reloading import make_probe
from hubprune.report import PruningReport
from hubprune.runs import SHARD_SIZE
from hubprune.shards import Shards
from hubprune.verifier import verify
from hubprune.weights import weights_of
from hubprune.work import WorkFolder
from hubprune.zeros import Zeros

# What a reconstruction holds of one block, in copies of its weights in float32: the values, their gradients, two
# moments, the dense block's and the pruned one's own.
BLOCK_COPIES = 6
ELSEWHERE = ("token", "subfolder", "force_download")  # what is about the pruned model's repository


class RecoveryFolder(WorkFolder):
    """The work folder of a recovery: checkpoints of the training, or blocks that are fitted."""

    @property
    def worth_keeping(self) -> bool:
        """Whether anything is finished that would take long to do again."""
        return super().worth_keeping or any((self.folder / "checkpoints").glob("checkpoint-*"))


def work_folder(out: Path) -> Path:
    """The work folder of a recovery that writes a folder: hidden, beside it."""
    out = out.resolve()
    return out.parent / f".{out.name}-recovery"


def recover(
    model: PreTrainedModel | str | os.PathLike[str],
    config: RecoveryConfig | Mapping[str, Any] | str | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    report: PruningReport | None = None,
    general: Any = None,
    domain: Any = None,
    evaluation: str | Mapping[str, Any] | None = "auto",
    base: PreTrainedModel | str | None = None,
    out: str | os.PathLike[str] | None = None,
    adapter_out: str | os.PathLike[str] | None = None,
    checkpoints: str | os.PathLike[str] | None = None,
    max_memory: int | str | None = None,
    fresh: bool = False,
    progress: bool = True,
    **keywords: Any,
) -> PruningReport:
    """Recover what pruning cost: train an adapter and merge it under the mask, or fit every block to the dense one.

    Every zero stays zero, and every N:M group right; both are checked on the merged weights. A recovery that was
    killed goes on when it is started again with the same arguments: into a folder always, in memory where
    ``checkpoints`` is given.

    Args:
        model: A model that hubprune pruned, or its folder or repository.
        config: How; or its fields, or one word: ``lora``, ``shira``, ``hira``, ``reconstruct``.
        tokenizer: Its tokenizer, None for its own.
        report: The record of its pruning, for a model in memory that carries none.
        general: General text, as ``from_pretrained`` takes it. Without it and ``domain``: the data sets of the
            calibration.
        domain: Text of the domain, likewise.
        evaluation: ``"auto"`` measures perplexity where it was measured after pruning; or text by label, or None.
        base: The dense base for ``distill`` and ``reconstruct``; None for the one that the report names.
        out: Folder to write, for a model by its name; None for the model's own folder, which is replaced.
        adapter_out: Folder for the adapter itself, which loads in plain PEFT onto the pruned model.
        checkpoints: Work folder of a model in memory, to go on with; removed at the end.
        max_memory: Memory that the run may take, in bytes or as ``"4GiB"``; beyond it the blocks of the dense base,
            and for ``reconstruct`` those of the pruned model, stay on disk. None for what is free.
        fresh: Start over instead of going on with an earlier run.
        progress: Whether to show progress bars.
        keywords: For a model by its name, keywords of ``from_pretrained`` (``dtype``, ``revision``, ``token``, ...).

    Returns:
        The record of the model, with its recovery.

    Raises:
        ConfigError, CorpusError, UsageError: The request is refused.
        NumericalError: A loss is NaN or infinite.
        VerificationError: A zero is no zero any more.
        OutputError: The folder cannot be written, or another run is at work on it.
    """
    texts = {name: value for name, value in (("general", general), ("domain", domain)) if value is not None}
    shared: dict[str, Any] = {"evaluation": evaluation, "base": base, "progress": progress}
    limit = parse_size(max_memory, "max_memory")
    adapter = None if adapter_out is None else Path(adapter_out)
    if not isinstance(model, str | os.PathLike):
        _refuse_for_memory(out=out, **keywords)
        return _recover_in_memory(
            model, config, texts, shared, tokenizer, report, adapter, checkpoints, limit, fresh=fresh
        )
    if checkpoints is not None or report is not None:
        raise UsageError("checkpoints= and report= go with a model in memory, and this one is given by its name")
    return _recover_folder(os.fspath(model), config, texts, shared, tokenizer, out, adapter, limit, fresh, keywords)


def _refuse_for_memory(**asked: Any) -> None:
    given = [name for name, value in asked.items() if value is not None]
    if given:
        raise UsageError(
            f"{', '.join(given)} goes with a model by its name, and this one is in memory: give its repository or "
            "folder instead, or leave that out"
        )


def _recover_in_memory(
    model: Any,
    config: Any,
    texts: Mapping[str, Any],
    shared: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase | None,
    report: PruningReport | None,
    adapter: Path | None,
    checkpoints: str | os.PathLike[str] | None,
    limit: int | None,
    *,
    fresh: bool,
) -> PruningReport:
    report = report or getattr(model, "hubprune_report", None)
    if report is None:
        raise UsageError("a model is recovered by the report of its own pruning, got none: give report=")
    tokenizer = tokenizer or getattr(model, "tokenizer", None)
    plan = prepare(model, report, config, texts, tokenizer=tokenizer, **shared)
    settings: dict[str, Any] = {"tokenizer": tokenizer, "adapter_out": adapter, "max_memory": limit}
    settings["progress"] = shared["progress"]
    if checkpoints is None:
        with tempfile.TemporaryDirectory(prefix="hubprune-recovery-") as folder:
            recovery.execute(model, plan, report, Path(folder), **settings)
        return report
    with RecoveryFolder(checkpoints, plan.fingerprint(report), fresh=fresh) as work:
        recovery.execute(model, plan, report, work.folder, **settings)
        work.remove()
    return report


def recover_planned(
    model: Any,
    config: RecoveryConfig,
    planned: Plan,
    corpora: Mapping[str, Any],
    keywords: Mapping[str, Any],
    *,
    progress: bool,
) -> None:
    """Recover a model that was pruned a moment ago, on the same text.

    Args:
        model: The model, with its report.
        config: How.
        planned: The run that pruned it.
        corpora: Text by name, as the user gave it.
        keywords: Keywords of ``from_pretrained``.
        progress: Whether to show progress bars.
    """
    report, base = model.hubprune_report, planned.base.name
    plan = prepare(
        model,
        report,
        config,
        corpora,
        tokenizer=planned.tokenizer,
        evaluation=planned.evaluation,
        base=None if report.base.commit or not base else base,
        keywords=keywords,
        progress=progress,
    )
    with tempfile.TemporaryDirectory(prefix="hubprune-recovery-") as folder:
        recovery.execute(model, plan, report, Path(folder), tokenizer=planned.tokenizer, progress=progress)


def _recover_folder(
    name: str,
    config: Any,
    texts: Mapping[str, Any],
    shared: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase | None,
    out: str | os.PathLike[str] | None,
    adapter: Path | None,
    limit: int | None,
    fresh: bool,
    keywords: Mapping[str, Any],
) -> PruningReport:
    opening, report, target = _opened(name, out, keywords)
    work_at = work_folder(target)
    if report.recovery is not None and work_at.is_dir() and out is None:  # killed after all was in its place
        verify(target, trust_remote_code=opening.keywords["trust_remote_code"], max_memory=limit)
        shutil.rmtree(work_at)
        return PruningReport.load(target)
    tokenizer, plan = _planned(opening, report, target, config, texts, shared, tokenizer)
    environment.return_large_memory_at_once()
    with RecoveryFolder(work_at, plan.fingerprint(report), fresh=fresh) as work, saving.disk_errors(target):
        if not work.fact("saved"):
            run = _fit_into if plan.config.method == "reconstruct" else _train_into
            run(opening, plan, report, target, work, tokenizer, adapter, limit, shared["progress"])
            work.remember("saved", True)
        if work.model.is_dir():
            target.parent.mkdir(parents=True, exist_ok=True)
            saving.place(work.model, target.resolve(), work.folder / "old")
        verify(target, trust_remote_code=opening.keywords["trust_remote_code"], max_memory=limit)
        work.remove()
    return PruningReport.load(target)


def plan_for(
    model: str | os.PathLike[str],
    config: RecoveryConfig,
    *,
    general: Any = None,
    domain: Any = None,
    evaluation: str | Mapping[str, Any] | None = "auto",
    base: str | None = None,
    out: str | os.PathLike[str] | None = None,
    progress: bool = True,
    **keywords: Any,
) -> tuple[RecoveryPlan, PruningReport, Path]:
    """Check everything that ``recover`` would check for a model by its name, and read the text; arguments as there.

    Returns:
        The plan, the record of the pruned model, and the folder that would be written.
    """
    texts = {name: value for name, value in (("general", general), ("domain", domain)) if value is not None}
    opening, report, target = _opened(os.fspath(model), out, keywords)
    shared = {"evaluation": evaluation, "base": base, "progress": progress}
    return _planned(opening, report, target, config, texts, shared, None)[1], report, target


def _opened(
    name: str, out: str | os.PathLike[str] | None, keywords: Mapping[str, Any]
) -> tuple[Opening, PruningReport, Path]:
    """A pruned model by its name, its record, and the folder that its recovery goes to."""
    loading = {key: value for key, value in keywords.items() if key != "revision"}
    opening = Opening(name, keywords.get("revision"), {"dtype": "auto", **loading})
    report = hub.read_report(opening.repo, token=loading.get("token"), **opening.cache)
    if report is None:
        raise UsageError(f"{name} holds no report of a pruning: give the folder of a model pruned by hubprune")
    if out is None and not opening.repo.local:
        raise UsageError("a model of the Hub is recovered into a folder and needs out=, the folder of the result")
    return opening, report, Path(name if out is None else out)


def _planned(
    opening: Opening,
    report: PruningReport,
    target: Path,
    config: Any,
    texts: Mapping[str, Any],
    shared: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase | None,
) -> tuple[PreTrainedTokenizerBase | None, RecoveryPlan]:
    """Check a request for a model by its name, and read its text."""
    saving.check_output(target)
    tokenizer = tokenizer or opening.find_tokenizer()
    passed = ("token", "cache_dir", "local_files_only", "device_map")
    more: dict[str, Any] = {key: opening.keywords[key] for key in passed if key in opening.keywords}
    plan = prepare(opening.outline, report, config, texts, tokenizer=tokenizer, keywords=more, **shared)
    return tokenizer, plan


def _train_into(
    opening: Opening,
    plan: RecoveryPlan,
    report: PruningReport,
    target: Path,
    work: WorkFolder,
    tokenizer: PreTrainedTokenizerBase | None,
    adapter: Path | None,
    limit: int | None,
    progress: bool,
) -> None:
    """Train in memory and save into the work folder."""
    model = opening.weights()
    recovery.execute(
        model,
        plan,
        report,
        work.folder,
        tokenizer=tokenizer,
        adapter_out=adapter,
        adapter_base=opening.repo.repo_id,
        max_memory=limit,
        progress=progress,
    )
    shutil.rmtree(work.model, ignore_errors=True)
    model.save_pretrained(work.model, max_shard_size=SHARD_SIZE)
    saving.complete(work.model, target.resolve(), report=report, tokenizer=tokenizer, model=model, repo_id=None)


def _fit_into(
    opening: Opening,
    plan: RecoveryPlan,
    report: PruningReport,
    target: Path,
    work: WorkFolder,
    tokenizer: PreTrainedTokenizerBase | None,
    adapter: Path | None,
    limit: int | None,
    progress: bool,
) -> None:
    """Reconstruct block by block into the work folder's files; both models may stay on disk."""
    if adapter is not None:
        raise UsageError("a reconstruction has no adapter, got adapter_out: leave it out")
    streamed = not _fits(opening, plan, limit)
    facts = RecoveryFacts(corpora=[corpus.facts for corpus in plan.corpora.values()])
    facts.timings["prepare"] = plan.seconds
    zeros = Zeros(pattern_of(report))
    room = limit or environment.free_memory() // 2
    model = opening.weights_on_disk(work.folder / "offload") if streamed else opening.weights()
    if work.fact("pruned") is None:
        recovery.measure_before(model, plan, report, progress)
        work.remember("pruned", [dataclasses.asdict(row) for row in report.evaluation])
    report.evaluation = [Perplexity(**row) for row in work.fact("pruned")]
    weights = weights_of(model)
    work.lay_out(Shards(model, work.model, SHARD_SIZE), weights.outside())
    with recovery.timed(facts, "reconstruct"):
        with recovery.dense_model(plan, work.folder, 0 if streamed else limit) as (dense, facts.teacher):
            matrices, beside = matrices_of(model, report), weights_of(dense)
            put_away = Activations(room, work.folder)
            counts = recovery.fit(weights, beside, matrices, plan, facts, zeros, work, put_away, progress)
    saving.write_config(model, work.model)
    del model, weights, matrices
    keywords = {key: value for key, value in opening.keywords.items() if key not in ELSEWHERE} | {"dtype": "auto"}
    done = Opening(str(work.model), None, keywords)
    again = done.weights_on_disk(work.folder / "offload") if streamed else done.weights()
    with recovery.timed(facts, "evaluate recovered"):
        recovery.measure_after(again, plan, report, progress)
    recovery.record(report, plan, facts, zeros, counts)
    report.probe = make_probe(again, tokenizer)
    again.config.hubprune = report.summary()
    with work.replacing() as staged:
        saving.write_config(again, staged)
        saving.complete(staged, target.resolve(), report=report, tokenizer=tokenizer, model=again, repo_id=None)


def _fits(opening: Opening, plan: RecoveryPlan, limit: int | None) -> bool:
    """Whether the pruned model and the dense one fit into memory, beside what one block takes."""
    weights = sum(p.numel() for p in opening.outline.parameters())
    block = weights // max(1, opening.config.get_text_config().num_hidden_layers)
    needed = 2 * weights * opening.dtype.itemsize + BLOCK_COPIES * 4 * block
    return needed <= (environment.free_memory() if limit is None else limit)
