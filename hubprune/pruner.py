"""The loop: statistics in, scores, masks, weights out. Block by block, through the engine's two sweeps.

Two strategies. A criterion that needs gradients, or whose weights compete across the whole model, is scored on the
dense model: one forward sweep, one backward sweep. Every other criterion goes through the blocks in order, so that
each block is scored on inputs that come from blocks already pruned (as Wanda and SparseGPT do). Repairing the
remaining weights always runs in order.
"""

from __future__ import annotations

import dataclasses
import datetime
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hubprune import apply, environment, masks, ranks
from hubprune.architecture import (
    Matrix,
    check_finite,
    check_pattern_fits,
    check_supported,
    describe,
    find_matrices,
    max_length,
    untouched_sha256,
)
from hubprune.calibration import Corpus, check_fits, corpus_from_tokens, load_corpus
from hubprune.config import PruningConfig
from hubprune.criterion import Criterion, load_criterion
from hubprune.errors import ConfigError, NumericalError
from hubprune.evidence import Evidence, Need, needs_of
from hubprune.replay import Batch, InputSink, Replay
from hubprune.report import MatrixFacts, PruningReport, Totals
from hubprune.sparsity import NM, Unstructured

CorpusLike = Any  # a Corpus, a tensor of token ids (n, T), or anything config.parse_corpus reads
Streams = Mapping[str, list[Batch]]
Visit = Callable[[int, Evidence], None]


def prune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    config: PruningConfig | None = None,
    corpora: Mapping[str, CorpusLike] | None = None,
    *,
    criterion: Criterion | None = None,
    progress: bool = True,
) -> PruningReport:
    """Prune a decoder language model in place.

    In a ``torch.distributed`` program every process calls this with the same arguments; each runs its part of the
    sequences, and all end with the same weights.

    Args:
        model: The model, its weights in memory.
        tokenizer: Its tokenizer; None when every corpus is given as token ids.
        config: What to prune and how.
        corpora: Calibration text by name (``general``, ``domain``): a ``Corpus``, token ids ``(n, T)``, or what
            ``from_pretrained`` takes.
        criterion: A criterion of your own, instead of the config's method.
        progress: Whether to show a progress bar.

    Returns:
        The record of the run; ``model.config.hubprune`` holds its summary.

    Raises:
        ConfigError: A corpus the method needs is missing, or a pattern fits nothing.
        CorpusError: A corpus cannot be read or is too short.
        UnsupportedModelError: The model is quantised, or not a decoder language model.
        NumericalError: NaN was met, or a Hessian cannot be factorised.
    """
    config = config or PruningConfig()
    given = dict(corpora or {})
    check_supported(model.config)
    if criterion is None:
        config.check_corpora(tuple(given))
        criterion = load_criterion(config)
        method = config.method
    else:
        method = type(criterion).__name__
        scope = config.scope or (None if config.pattern else criterion.scope)
        config = dataclasses.replace(config, scope=scope, application=config.application or criterion.application)
        criterion.check_corpora(tuple(given), compensates=config.application == "compensate")
    matrices = find_matrices(model, config.targets, config.ignore)
    check_pattern_fits(matrices, config.resolved_pattern())
    check_finite(model)
    loaded = {name: _as_corpus(name, value, tokenizer, model, config.seed, progress) for name, value in given.items()}
    for corpus in loaded.values():
        check_fits(corpus, model)
    report = PruningReport(
        base=describe(model, model_id=model.config.name_or_path or ""),
        config={**config.to_dict(), "method": method},
        pattern=str(config.resolved_pattern()),
        application=config.resolved_application(),
        options=config.resolved_options() if method == config.method else {},
        corpora=[corpus.facts for corpus in loaded.values()],
        untouched_sha256=untouched_sha256(model, matrices),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    with Replay(model) as replay:
        _Run(replay, config, criterion, matrices, loaded, report, progress)()
    report.totals = Totals(
        targeted=sum(row.numel for row in report.matrices),
        pruned=sum(row.pruned for row in report.matrices),
        zeros=sum(row.zeros for row in report.matrices),
        parameters=sum(p.numel() for p in model.parameters()),
    )
    report.peak_memory_bytes = environment.peak_memory()
    report.peak_gpu_memory_bytes = environment.peak_gpu_memory()
    report.hardware, report.versions = environment.hardware(), environment.versions()
    model.config.hubprune = report.summary()
    return report


def _as_corpus(
    name: str, value: CorpusLike, tokenizer: Any, model: PreTrainedModel, seed: int, progress: bool
) -> Corpus:
    if isinstance(value, Corpus):
        return value.named(name)
    if isinstance(value, torch.Tensor):
        return corpus_from_tokens(value, name)
    if tokenizer is None:
        raise ConfigError(
            f"the {name} corpus is text, and text needs a tokenizer, got None: give it, or give token ids (n, T)"
        )
    return load_corpus(value, tokenizer, name=name, max_length=max_length(model.config), progress=progress, seed=seed)


def _constant(values: torch.Tensor) -> bool:
    return values.numel() > 1 and bool(values.max() == values.min())


class _Run:
    """One pruning run: the state that the two sweeps share."""

    def __init__(
        self,
        replay: Replay,
        config: PruningConfig,
        criterion: Criterion,
        matrices: Sequence[Matrix],
        corpora: Mapping[str, Corpus],
        report: PruningReport,
        progress: bool,
    ) -> None:
        self.replay, self.config, self.criterion = replay, config, criterion
        self.corpora = {
            name: dataclasses.replace(corpus, sequences=tuple(ranks.share(corpus.sequences)))
            for name, corpus in corpora.items()
        }
        self.report = report
        self.pattern = config.resolved_pattern()
        self.compensates = config.resolved_application() == "compensate"
        self.whole_model = isinstance(self.pattern, Unstructured) and self.pattern.scope == "model"
        self.by_block: list[list[Matrix]] = [[] for _ in replay.blocks]
        for matrix in matrices:
            self.by_block[matrix.block].append(matrix)
        self.summaries: dict[Matrix, torch.Tensor | None] = {}
        self.scores: dict[Matrix, torch.Tensor] = {}
        self.keep: dict[Matrix, torch.Tensor] = {}
        self.damping: dict[Matrix, float | None] = {}
        self.facts: dict[Matrix, MatrixFacts] = {}
        self.unranked: list[str] = []
        quiet = not progress or ranks.rank() > 0
        self.bar = tqdm(desc="Pruning", unit="block", disable=quiet, delay=1, total=0)

    def __call__(self) -> None:
        """Prune every block and fill the report's rows."""
        on_dense = self.criterion.gradients is not None or self.whole_model
        with self.bar:
            if on_dense:
                self._score_dense()
            if self.compensates or not on_dense:
                self._prune_in_order(scored=on_dense)
        self.report.matrices = [self.facts[matrix] for block in self.by_block for matrix in block]
        if self.unranked:
            names = ", ".join(self.unranked[:5]) + (", ..." if len(self.unranked) > 5 else "")
            self.report.warnings.append(
                f"no calibration token told the weights of {len(self.unranked)} matrices apart ({names}): "
                "they were ranked by magnitude"
            )

    def _score_dense(self) -> None:
        """Score every matrix on the dense model; zero at once where nothing has to wait."""
        needs = needs_of(self.criterion, scores=True, compensation=False)
        with_gradients = self._names([self.criterion.gradients] if self.criterion.gradients else [])
        streams = self._open({corpus for _, corpus in needs}, singly=with_gradients)
        boundaries: dict[str, list[list[torch.Tensor]]] = {name: [] for name in with_gradients}

        def visit(index: int, evidence: Evidence) -> None:
            for matrix in self.by_block[index]:
                self.summaries[matrix] = evidence.summary(matrix)
                self.damping[matrix] = evidence.damping_of(matrix)
                if not with_gradients:
                    self._decide(matrix, None)
            for name, kept in boundaries.items():
                kept.append([batch.hidden for batch in streams[name]])

        self._forward_sweep("forward", streams, needs, visit, rerun=False)
        if with_gradients:
            self._backward_sweep({name: streams[name] for name in with_gradients}, boundaries)
        if self.whole_model and isinstance(self.pattern, Unstructured):
            total = sum(matrix.view().numel() for block in self.by_block for matrix in block)
            apart = sum(int((~keep).sum()) for keep in self.keep.values())
            removed = masks.removed_count(total, self.pattern.sparsity) - apart
            self.keep |= masks.keep_masks_of_model(self.scores, removed)
            self.scores.clear()
            if not self.compensates:
                for matrix, keep in self.keep.items():
                    self._zero(matrix, keep)

    def _prune_in_order(self, *, scored: bool) -> None:
        """Go through the blocks in order; each sees what the pruned blocks before it give."""
        needs = needs_of(self.criterion, scores=not scored, compensation=self.compensates)
        streams = self._open({corpus for _, corpus in needs}, singly=())

        def visit(index: int, evidence: Evidence) -> None:
            for matrix in self.by_block[index]:
                self._prune_matrix(matrix, evidence)

        self._forward_sweep("repair" if scored else "prune", streams, needs, visit, rerun=True)

    def _forward_sweep(
        self, stage: str, streams: Streams, needs: Sequence[Need], visit: Visit, *, rerun: bool
    ) -> None:
        """Run the blocks in order and show each one's inputs.

        Args:
            stage: Name of the stage in the report's timings.
            streams: Batches of each corpus; none for a criterion that needs no data.
            needs: Statistics to collect.
            visit: Called once a block's inputs were seen, while each batch still holds them.
            rerun: Whether ``visit`` changes the block, so that its outputs are computed again.
        """
        count = len(self.by_block)
        with self._stage(stage, count):
            for index in range(count):
                evidence = Evidence(self.criterion, self.config.damping, needs)
                outputs = {
                    name: self._observe(index, batches, evidence.sinks(name)) for name, batches in streams.items()
                }
                visit(index, evidence)
                changed = rerun and index + 1 < count
                for name, batches in streams.items():
                    for position, batch in enumerate(batches):
                        batch.hidden = self.replay.forward(index, batch) if changed else outputs[name][position]
                self.bar.update()

    def _observe(self, index: int, batches: list[Batch], sinks: Sequence[InputSink]) -> list[torch.Tensor]:
        """Run one block on all batches of a corpus, showing its inputs to the sinks."""

        def sink(matrices: Sequence[Matrix], inputs: torch.Tensor) -> None:
            for receive in sinks:
                receive(matrices, inputs)

        with self.replay.inputs(index, self.by_block[index], sink) if sinks else nullcontext():
            return [self.replay.forward(index, batch) for batch in batches]

    def _backward_sweep(self, streams: Streams, boundaries: Mapping[str, list[list[torch.Tensor]]]) -> None:
        """Push the loss gradient down and decide on each block's weights once its gradients are known.

        Args:
            streams: Batches of one sequence each, at the last boundary.
            boundaries: For each corpus and block, the block's inputs; used up.
        """
        with self._stage("backward", len(self.by_block)):
            gradients = {
                name: [self.replay.loss_gradient(batch, batch.hidden)[1] for batch in batches]
                for name, batches in streams.items()
            }
            for index in reversed(range(len(self.by_block))):
                matrices = self.by_block[index]
                sums = {matrix: torch.zeros_like(matrix.view(), dtype=torch.float32) for matrix in matrices}
                weights = {matrix: matrix.view().float() for matrix in matrices}

                def add(matrix: Matrix, gradient: torch.Tensor, sums: Any = sums, weights: Any = weights) -> None:
                    sums[matrix] += self.criterion.contribution(weights[matrix], gradient, self.summaries[matrix])

                for name, batches in streams.items():
                    inputs = boundaries[name].pop()
                    for position, batch in enumerate(batches):
                        gradients[name][position] = self.replay.backward(
                            index, batch.calls[index], inputs[position], gradients[name][position], matrices, add
                        )
                for matrix in matrices:
                    self._decide(matrix, ranks.add_up(sums.pop(matrix)))
                self.bar.update()

    def _decide(self, matrix: Matrix, gradient: torch.Tensor | None) -> None:
        """Score a matrix on the dense model and take the decision as far as it can be taken now."""
        scores = self._score(matrix, self.summaries.pop(matrix), gradient)
        if self.whole_model and matrix.name not in self.unranked:
            self.scores[matrix] = scores
            return
        # Magnitudes say nothing beside the scores of other matrices: a matrix ranked by them gets its own share.
        pattern = Unstructured(self.pattern.sparsity) if self.whole_model else self.pattern
        keep = masks.keep_mask(scores, pattern, self.config.block_size)
        if self.compensates or self.whole_model:
            self.keep[matrix] = keep
        else:
            self._zero(matrix, keep)

    def _prune_matrix(self, matrix: Matrix, evidence: Evidence) -> None:
        """Choose, unless the choice was made on the dense model, and write the weights of one matrix."""
        keep = self.keep.pop(matrix, None)
        seen = evidence.seen_columns(matrix) if self.compensates else None
        repairs = seen is not None and bool(seen.any())
        blockwise = isinstance(self.pattern, NM) or self.pattern.scope == "block"
        if keep is None and not (repairs and blockwise and self.criterion.selects_in_sweep):
            scores = self._score(matrix, evidence.summary(matrix), None)
            keep = masks.keep_mask(scores, self.pattern, self.config.block_size)
        if seen is None or not repairs:
            assert keep is not None
            self.damping.setdefault(matrix, evidence.damping_of(matrix))
            self._zero(matrix, keep)
            return
        size = span = self.config.block_size
        if isinstance(self.pattern, NM):  # a group lies in one block
            span = self.pattern.group
            size = max(span, size // span * span)
        if keep is not None:
            select = apply.select_from_mask(keep)
        else:
            select = apply.select_by_scores(self._score_span, self.pattern, matrix.shape, size)
        factor, self.damping[matrix] = evidence.compensation_factor(matrix)
        keep = apply.compensate(matrix.view(), factor, ~seen, select, span=span, block_size=size)
        self._record(matrix, keep)

    def _score_span(self, weights: torch.Tensor, inverse_diagonal: torch.Tensor) -> torch.Tensor:
        return self.criterion.scores(weights, inverse_diagonal, None)

    def _score(self, matrix: Matrix, summary: torch.Tensor | None, gradient: torch.Tensor | None) -> torch.Tensor:
        weight = matrix.view().float()
        scores = self.criterion.scores(weight, summary, gradient)
        if not bool(torch.isfinite(scores).all()):
            raise NumericalError(
                f"scores must be finite, and those of {matrix.name} are not: load the model in float32"
            )
        # An expert that no token was routed to: nothing is known of its inputs and nothing flowed back to it.
        blind = summary is not None and gradient is None and _constant(summary)
        if blind or _constant(scores):
            self.unranked.append(matrix.name)
            return weight.abs()
        return scores

    def _zero(self, matrix: Matrix, keep: torch.Tensor) -> None:
        apply.zero(matrix.view(), keep)
        self._record(matrix, keep)

    def _record(self, matrix: Matrix, keep: torch.Tensor) -> None:
        damping = self.damping.get(matrix)
        stored = matrix.stored()
        apply.copy(stored, ranks.copy_from_first(stored))
        view = matrix.view()
        if not bool(torch.isfinite(view).all()):
            raise NumericalError(
                f"repaired weights must be finite, and {matrix.name} is not: use damping above {damping}"
            )
        pruned, zeros = int((~keep).sum()), int((view == 0).sum())
        self.facts[matrix] = MatrixFacts(matrix.name, matrix.block, matrix.kind, matrix.shape, pruned, zeros, damping)

    def _names(self, corpora: Iterable[str]) -> tuple[str, ...]:
        """Corpora given that are meant, ``all`` standing for every one."""
        wanted = set(corpora)
        return tuple(name for name in self.corpora if name in wanted or "all" in wanted)

    def _open(self, corpora: Iterable[str], *, singly: Sequence[str]) -> dict[str, list[Batch]]:
        """Embed the corpora that are needed; those in ``singly`` one by one, for gradients per sequence."""
        return {
            name: [
                self.replay.open(ids)
                for ids in self.corpora[name].batches(1 if name in singly else self.config.batch_size)
            ]
            for name in self._names({*corpora, *singly})
        }

    @contextmanager
    def _stage(self, name: str, steps: int) -> Iterator[None]:
        """Time a stage of the run and add its steps to the progress bar."""
        self.bar.total = (self.bar.total or 0) + steps
        self.bar.set_description(f"Pruning ({name})")
        started = time.perf_counter()
        yield
        self.report.timings[name] = round(time.perf_counter() - started, 3)
