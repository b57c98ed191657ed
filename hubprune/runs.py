"""One run whose result is a folder: whole in memory or streamed from disk, and gone on with where it was killed."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from hubprune import environment, flow, pruner, ranks, saving
from hubprune.activations import Activations
from hubprune.allocation import allocate, blocks_of, weights_in
from hubprune.architecture import find_matrices
from hubprune.config import PruningConfig
from hubprune.corpora import CORPUS_KEYWORDS
from hubprune.criterion import Criterion
from hubprune.errors import OutputError, UsageError
from hubprune.estimate import Estimate, choose, estimate
from hubprune.facts import Perplexity
from hubprune.fields import parse_size
from hubprune.flow import Plan
from hubprune.footprint import peak_memory
from hubprune.opening import Opening
from hubprune.reloading import make_probe
from hubprune.removal import bare, fewer_layers, outline_of, plain_class
from hubprune.report import REPORT_NAME, PruningReport
from hubprune.shards import Shards
from hubprune.verifier import verify
from hubprune.weights import weights_of
from hubprune.work import WorkFolder

logger = logging.get_logger(__name__)

SHARD_SIZE = "5GB"
# Keywords of ``from_pretrained`` that say how the model is reached, not which one it is.
ABOUT_ACCESS = ("token", "cache_dir", "force_download", "local_files_only", "proxies")


def work_folder(out: Path) -> Path:
    """The work folder of a run that writes a folder: hidden, beside it."""
    out = out.resolve()
    return out.parent / f".{out.name}-run"


def fingerprint(plan: Plan) -> dict[str, Any]:
    """What a run is about: all that its weights depend on, in JSON types."""
    keywords = plan.base.keywords
    return {
        "base": {"model": plan.base.repo.repo_id, "commit": plan.base.repo.commit or _state(Path(plan.base.name))},
        "keywords": {name: str(keywords[name]) for name in sorted(keywords) if name not in ABOUT_ACCESS},
        "device": str(plan.base.device).partition(":")[0],
        "config": plan.config.to_dict(),
        "corpora": {name: corpus.facts.fingerprint for name, corpus in plan.corpora.items()},
        "evaluation": {name: corpus.facts.fingerprint for name, corpus in plan.evaluation.items()},
        "versions": {name: environment.versions().get(name) for name in ("hubprune", "torch", "transformers")},
        "processes": ranks.size(),
    }


def _state(folder: Path) -> str:
    """A local model as it is now, from the sizes and times of its files."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".safetensors", ".bin", ".py"))
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr(stats).encode()).hexdigest()


def produce(
    plan: Plan,
    target: Path,
    work: WorkFolder,
    *,
    streamed: bool = False,
    activation_budget: int | None = None,
    repo_id: str | None = None,
    progress: bool = True,
) -> PruningReport:
    """Carry out a run, or what is left of it, and put its result in place.

    Args:
        plan: The run.
        target: Folder of the result; one of an earlier run is replaced.
        work: The work folder, on the same file system as the target.
        streamed: Leave the blocks on disk and bring them in one at a time.
        activation_budget: Bytes of host memory for activations; None for no limit.
        repo_id: Repository that the card names.
        progress: Whether to show progress bars.

    Returns:
        The record of the run, which also lies in the folder.

    Raises:
        NumericalError: NaN was met, or a Hessian cannot be factorised.
        OutputError: The folder cannot be written, or has no room.
    """
    environment.return_large_memory_at_once(environment.NARROW if streamed else environment.LARGE)
    with saving.disk_errors(target):
        if not work.fact("saved"):
            _prune(plan, target, work, streamed, activation_budget, progress)
            _complete(plan, target, work, streamed, repo_id, progress)
            shutil.rmtree(_offload(work), ignore_errors=True)
        ranks.in_first(lambda: _check_there(target, work))
        if ranks.rank() == 0 and work.model.is_dir():
            target.parent.mkdir(parents=True, exist_ok=True)
            saving.place(work.model, target.resolve(), work.folder / "old")
        ranks.wait()
    return PruningReport.load(target)


def _check_there(target: Path, work: WorkFolder) -> None:
    """Refuse to go on with a run whose result was taken away after it was finished."""
    if not work.model.is_dir() and not (target / REPORT_NAME).is_file():
        raise OutputError(
            f"the finished model is gone from {target}: put it back, or start over (--fresh, fresh=True)"
        )


def _open(base: Opening, work: WorkFolder, streamed: bool) -> PreTrainedModel:
    """The model, its blocks in memory or on disk; a converted copy of blocks from an earlier attempt goes."""
    if not streamed:
        return base.weights()
    shutil.rmtree(_offload(work), ignore_errors=True)
    return base.weights_on_disk(_offload(work))


def _offload(work: WorkFolder) -> Path:
    """Where this process keeps blocks whose files hold them in another form."""
    return work.folder / f"offload-{ranks.rank()}"


def _measured(plan: Plan, work: WorkFolder, model: PreTrainedModel, variant: str, progress: bool) -> None:
    """Measure perplexities, once for all attempts."""
    if work.fact(variant) is not None:
        return
    started = time.perf_counter()
    rows = flow.measure(model, plan, variant, progress=progress)
    _add_time(work, {f"evaluate {variant}": time.perf_counter() - started} if rows else {})
    work.remember(variant, [dataclasses.asdict(row) for row in rows])


def _add_time(work: WorkFolder, seconds: Mapping[str, float]) -> None:
    known = work.fact("timings") or {}
    work.remember("timings", {**known, **{name: known.get(name, 0.0) + value for name, value in seconds.items()}})


def _prune(plan: Plan, target: Path, work: WorkFolder, streamed: bool, budget: int | None, progress: bool) -> None:
    """Measure the base, and prune it into the work folder's files."""
    if work.fact("report") is not None:
        return
    if not work.fact("laid out"):
        ranks.in_first(lambda: saving.check_output(target, plan.base.outline))
    model = _open(plan.base, work, streamed)
    if work.fact("base") is None:
        weights_of(model).check_finite()
    _measured(plan, work, model, "base", progress)
    weights = weights_of(model)
    work.lay_out(Shards(_result(plan, model), work.model, SHARD_SIZE), weights.outside())
    activations = Activations(budget, work.folder)
    report = pruner.prune(
        weights, plan.tokenizer, plan.config, plan.corpora, progress=progress, journal=work, activations=activations
    )
    report.base = flow.base_facts(model, plan)
    _add_time(work, report.timings)
    if ranks.rank() == 0:
        result = model
        if report.application == "remove":
            result = outline_of(model, report.units)
            result.config.hubprune = report.summary()
        saving.write_config(result, work.model)
    ranks.wait()
    work.remember("report", report.to_dict())


def _result(plan: Plan, model: PreTrainedModel) -> PreTrainedModel:
    """The result as far as shapes go: the model itself, or a smaller one without weights."""
    if plan.config.resolved_application() != "remove":
        return model
    allocation = allocate(model, plan.config)
    if allocation.result is not None:
        return allocation.result
    left = range(len(blocks_of(model)) - allocation.layers)
    return bare(fewer_layers(model.config, left), plain_class(model), model.dtype)


def _complete(plan: Plan, target: Path, work: WorkFolder, streamed: bool, repo_id: str | None, progress: bool) -> None:
    """Measure the result as it lies in the files, and write its record beside it."""
    report = PruningReport.from_dict(work.fact("report"))
    elsewhere = ("token", "subfolder", "force_download")  # what is about the base's repository
    keywords = {name: value for name, value in plan.base.keywords.items() if name not in elsewhere} | {"dtype": "auto"}
    model = _open(Opening(str(work.model), None, keywords), work, streamed)
    _measured(plan, work, model, "pruned", progress)
    report.evaluation = [Perplexity(**row) for row in work.fact("base") + work.fact("pruned")]
    report.warnings = plan.warnings + report.warnings
    timings = {"prepare": plan.seconds, **work.fact("timings")}
    report.timings = {name: round(seconds, 3) for name, seconds in timings.items()}
    report.peak_memory_bytes = max(report.peak_memory_bytes, environment.peak_memory())
    report.peak_gpu_memory_bytes = max(report.peak_gpu_memory_bytes or 0, environment.peak_gpu_memory() or 0) or None
    report.probe = make_probe(model, plan.tokenizer)
    report.verification = None
    model.config.hubprune = report.summary()
    ranks.wait()  # nobody reads the folder any more
    if ranks.rank() == 0:
        with work.replacing() as staged:
            saving.write_config(model, staged)
            saving.complete(
                staged, target.resolve(), report=report, tokenizer=plan.tokenizer, model=model, repo_id=repo_id
            )
    ranks.wait()
    work.remember("saved", True)


def prune(
    model: PreTrainedModel | str | os.PathLike[str],
    tokenizer: PreTrainedTokenizerBase | None = None,
    config: PruningConfig | None = None,
    corpora: Mapping[str, Any] | None = None,
    *,
    criterion: Criterion | None = None,
    progress: bool = True,
    out: str | os.PathLike[str] | None = None,
    max_memory: int | str | None = None,
    activation_budget: int | str | None = None,
    fresh: bool = False,
    evaluation: str | Mapping[str, Any] | None = "auto",
    **keywords: Any,
) -> PruningReport:
    """Prune a decoder language model: one in memory in place, or one by its name into a folder.

    A model by its name may be larger than memory: then its blocks stay on disk and are brought in one at a time. Such
    a run is taken up again where it was killed when it is started again with the same arguments.

    In a ``torch.distributed`` program every process calls this with the same arguments; each runs its part of the
    sequences, and all end with the same weights.

    Args:
        model: The model, or its repository or folder.
        tokenizer: Its tokenizer. For a model in memory, None when every corpus is given as token ids; for one by its
            name, None for its own.
        config: What to prune and how.
        corpora: Calibration text by name (``general``, ``domain``, ``language``, ``task``): a ``Corpus``, token ids
            ``(n, T)``, or what ``from_pretrained`` takes.
        criterion: For a model in memory, a criterion of your own instead of the config's method.
        progress: Whether to show a progress bar.
        out: Folder to write, for a model by its name.
        max_memory: Memory that the run may take, in bytes or as ``"4GiB"``; decides whether the blocks stay on disk.
            None for what is free.
        activation_budget: Host memory for activations, likewise; beyond it they go to a scratch file. None for what
            the rest leaves of ``max_memory``.
        fresh: Start over instead of going on with an earlier run.
        evaluation: ``"auto"`` measures perplexity on the held-out splits of the calibration sets; or text by label, or
            None. For a model by its name.
        keywords: For a model by its name: ``num_samples`` and ``sequence_length`` of the corpora, and keywords of
            ``from_pretrained`` (``dtype``, ``revision``, ``token``, ...).

    Returns:
        The record of the run; ``model.config.hubprune``, or that of the folder, holds its summary.

    Raises:
        ConfigError: A corpus the method needs is missing, or a pattern fits nothing.
        CorpusError: A corpus cannot be read or is too short.
        UnsupportedModelError: The model is quantised, or not a decoder language model.
        NumericalError: NaN was met, or a Hessian cannot be factorised.
        OutputError: The folder cannot be written, or another run is at work on it.
    """
    if not isinstance(model, str | os.PathLike):
        asked = {"out": out, "max_memory": max_memory, "activation_budget": activation_budget, **keywords}
        given = [name for name, value in asked.items() if value is not None]
        if given:
            raise UsageError(
                f"{', '.join(given)} goes with a model by its name, and this one is in memory: give its repository or "
                "folder instead, or leave that out"
            )
        if criterion is None and (config or PruningConfig()).resolved_application() == "remove":
            raise UsageError(
                "a smaller model is a new one, and this one is pruned in place, got application 'remove': use "
                "application='compensate' and then small = hubprune.shrink(model, report)"
            )
        return pruner.prune(model, tokenizer, config, corpora, criterion=criterion, progress=progress)
    if out is None or criterion is not None:
        what = "out=, the folder of the result" if out is None else "a method by its name, got criterion="
        raise UsageError(f"a model by its name is pruned into a folder and needs {what}")
    limit, budget = parse_size(max_memory, "max_memory"), parse_size(activation_budget, "activation_budget")
    saving.check_output(out)
    run = _prepared(model, tokenizer, config, corpora, evaluation, progress, keywords)
    card = environment.free_gpu_memory(run.base.gpus)
    choice = ranks.from_first(lambda: choose(peak_memory(run), limit, budget, card))
    if ranks.rank() == 0:  # what was decided for the user is said where it is seen
        say = logger.warning if choice.streamed or limit is not None else logger.info
        say("%s.", choice)
    target = Path(out)
    with WorkFolder(work_folder(target), fingerprint(run), fresh=fresh) as work:
        produce(run, target, work, streamed=choice.streamed, activation_budget=choice.budget, progress=progress)
        trusted = run.base.keywords["trust_remote_code"]
        ranks.in_first(lambda: verify(target, trust_remote_code=trusted, max_memory=limit))
        work.remove()
    return PruningReport.load(target)


def shrink(model: PreTrainedModel, report: PruningReport) -> PreTrainedModel:
    """Cut the removed units out of a model that was pruned in memory.

    Args:
        model: The model, with its units masked.
        report: What ``prune`` returned; it is brought up to date.

    Returns:
        A new, smaller model of the same class.

    Raises:
        UsageError: No units were removed.
        ConfigError: The model's class cannot be built so small; it names what is possible, and the model is as it was.
    """
    if not report.units or report.application == "remove":
        raise UsageError(
            f"only masked units can be cut out, and this run removed {report.pattern} ({report.application}): prune "
            "with unit='ffn_neuron' and application='compensate' or 'zero'"
        )
    small = flow.smaller(model, report)
    report.application = "remove"
    report.config |= {"application": "remove", "multiple": report.config.get("multiple") or 1}
    matrices = {matrix.name: matrix for matrix in find_matrices(small)}
    for row in report.matrices:
        view = matrices[row.name].view()
        row.shape, row.pruned, row.zeros = (view.shape[0], view.shape[1]), 0, int((view == 0).sum())
    report.totals.zeros = sum(row.zeros for row in report.matrices)
    report.totals.left = weights_in(small)
    report.probe = make_probe(small)
    small.config.hubprune = report.summary()
    return small


def plan(
    model: str | os.PathLike[str],
    tokenizer: PreTrainedTokenizerBase | None = None,
    config: PruningConfig | None = None,
    corpora: Mapping[str, Any] | None = None,
    *,
    progress: bool = True,
    max_memory: int | str | None = None,
    activation_budget: int | str | None = None,
    evaluation: str | Mapping[str, Any] | None = "auto",
    timed: bool = True,
    **keywords: Any,
) -> Estimate:
    """Estimate what ``prune`` takes with the same arguments, for a model by its name: download, disk, memory, time.

    The text is read, and one block with random weights is pruned to take the time. Nothing large is downloaded.

    Args:
        model: Its repository or folder.
        tokenizer: Its tokenizer, None for its own.
        config: What to prune and how.
        corpora: Calibration text by name.
        progress: Whether to show progress bars.
        max_memory: Memory that the run may take.
        activation_budget: Host memory for activations.
        evaluation: Held-out text.
        timed: Whether to measure the time, for which one block of random weights is pruned.
        keywords: As for ``prune``; ``out`` and ``fresh`` are passed over.

    Returns:
        The estimate; ``str(estimate.choice)`` says where the blocks will be, and why.

    Raises:
        ConfigError: The request breaks a rule, or not even one block fits into ``max_memory``.
        CorpusError, UnsupportedModelError, AccessError, NotFoundError, OfflineError: As for ``prune``.
    """
    limit, budget = parse_size(max_memory, "max_memory"), parse_size(activation_budget, "activation_budget")
    more = {name: value for name, value in keywords.items() if name not in ("out", "fresh")}
    return estimate(
        _prepared(model, tokenizer, config, corpora, evaluation, progress, more), limit, budget, timed=timed
    )


def _prepared(
    model: str | os.PathLike[str],
    tokenizer: PreTrainedTokenizerBase | None,
    config: PruningConfig | None,
    corpora: Mapping[str, Any] | None,
    evaluation: str | Mapping[str, Any] | None,
    progress: bool,
    keywords: Mapping[str, Any],
) -> Plan:
    """Check the request of a model by its name, and read its text."""
    loading = {name: value for name, value in keywords.items() if name not in (*CORPUS_KEYWORDS, "revision")}
    return flow.prepare(
        Opening(os.fspath(model), keywords.get("revision"), loading),
        config or PruningConfig(),
        corpora or {},
        settings={name: keywords[name] for name in CORPUS_KEYWORDS if name in keywords},
        evaluation=evaluation,
        tokenizer=tokenizer,
        progress=progress,
    )
