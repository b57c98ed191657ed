"""The loop: statistics in, scores, masks, weights out. Block by block, through the engine's two sweeps.

Two strategies. A criterion that needs gradients, or whose weights compete across the whole model, is scored on the
dense model: one forward sweep, one backward sweep. Every other criterion goes through the blocks in order, so that
each block is scored on inputs that come from blocks already pruned (as Wanda and SparseGPT do). Repairing the
remaining weights always runs in order.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from tqdm import tqdm

from hubprune import apply, masks, ranks
from hubprune.activations import Activations, Kept
from hubprune.architecture import Matrix
from hubprune.calibration import Corpus
from hubprune.config import PruningConfig
from hubprune.criterion import Criterion
from hubprune.errors import NumericalError, OutputError
from hubprune.evidence import Evidence, Need, needs_of
from hubprune.facts import MatrixFacts
from hubprune.replay import GradientSink, Replay
from hubprune.report import PruningReport
from hubprune.sparsity import NM, Unstructured
from hubprune.sweeps import Sinks, Stream, Sweeps, front_of
from hubprune.work import Journal

# Stages of a run, as the report's timings and a work folder name them.
FORWARD, BACKWARD, PRUNE, REPAIR = "forward", "backward", "prune", "repair"


def _constant(values: torch.Tensor) -> bool:
    return values.numel() > 1 and bool(values.max() == values.min())


class Loop:
    """One pruning run: the state that the two sweeps share."""

    def __init__(
        self,
        replay: Replay,
        config: PruningConfig,
        criterion: Criterion,
        matrices: Sequence[Matrix],
        corpora: Mapping[str, Corpus],
        report: PruningReport,
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
        self.damping: dict[str, float | None] = {}
        self.facts: dict[str, MatrixFacts] = {}
        self.unranked: list[str] = []

    def start(self, journal: Journal, activations: Activations, progress: bool) -> None:
        """Take up the run where the journal says it was left."""
        self.journal = journal
        self.sweeps = Sweeps(self.replay, self.by_block, activations)
        quiet = not progress or ranks.rank() > 0
        self.bar = tqdm(desc="Pruning", unit="block", disable=quiet, delay=1, total=0)
        for stage in (BACKWARD, PRUNE, REPAIR):
            for note in journal.notes(stage):
                self.facts |= {
                    row["name"]: MatrixFacts(**{**row, "shape": tuple(row["shape"])}) for row in note["rows"]
                }
                self.unranked += note["unranked"]
                self.damping |= note["damping"]

    def __call__(self) -> None:
        """Prune every block and fill the report's rows."""
        on_dense = self.criterion.gradients is not None or self.whole_model
        with self.bar:
            if on_dense:
                self._score_dense()
            if self.compensates or not on_dense:
                self._prune_in_order(REPAIR if on_dense else PRUNE)
        self.report.matrices = [self.facts[matrix.name] for block in self.by_block for matrix in block]
        if self.unranked:
            names = ", ".join(self.unranked[:5]) + (", ..." if len(self.unranked) > 5 else "")
            self.report.warnings.append(
                f"no calibration token told the weights of {len(self.unranked)} matrices apart ({names}): "
                "they were ranked by magnitude"
            )

    def _score_dense(self) -> None:
        """Score every matrix on the dense model; zero at once where nothing has to wait.

        Gradients are those of the dense model, so that a run that goes on takes the dense blocks that are left once
        more forwards, and the gradient at the last of them from the journal.
        """
        left = len(self.by_block) - len(self.journal.notes(BACKWARD))
        if left == 0:
            return
        if self.whole_model:  # all weights are compared at once, again
            left = len(self.by_block)
        needs = needs_of(self.criterion, scores=True, compensation=False)
        with_gradients = self._names([self.criterion.gradients] if self.criterion.gradients else [])
        streams = self._open({corpus for _, corpus in needs}, singly=with_gradients)
        boundaries: dict[str, list[list[Kept]]] = {name: [] for name in with_gradients}

        def visit(index: int) -> None:
            for matrix in self.by_block[index]:
                self.summaries[matrix] = self.evidence.summary(matrix)
                self.damping[matrix.name] = self.evidence.damping_of(matrix)
                if not with_gradients:
                    self._decide(matrix, None)
            for name, kept in boundaries.items():
                kept.append(streams[name].front)
            del self.evidence
            self.bar.update()

        with self._stage(FORWARD, left):
            self.sweeps.forward(streams, range(left), self._watch(needs), visit)
        if with_gradients:
            self._backward({name: streams[name] for name in with_gradients}, boundaries, left)
        if self.whole_model:
            self._decide_on_all()

    def _backward(self, streams: Mapping[str, Stream], boundaries: dict[str, list[list[Kept]]], left: int) -> None:
        """Push the loss gradient down and decide on each block's weights once its gradients are known."""
        sums: dict[Matrix, torch.Tensor] = {}

        def start(index: int) -> GradientSink:
            sums.update((m, torch.zeros_like(m.view(), dtype=torch.float32)) for m in self.by_block[index])
            weights = {matrix: self.replay.values(matrix).float() for matrix in self.by_block[index]}

            def add(matrix: Matrix, gradient: torch.Tensor) -> None:
                sums[matrix] += self.criterion.contribution(weights[matrix], gradient, self.summaries[matrix])

            return add

        def finish(index: int, front: Mapping[str, Kept]) -> None:
            for matrix in self.by_block[index]:
                self._decide(matrix, ranks.add_up(sums.pop(matrix)))
            if self.whole_model:  # nothing is decided before the last block
                self.bar.update()
            else:
                self._finish(BACKWARD, index, front)

        with self._stage(BACKWARD, left):
            known = self._front(BACKWARD, left < len(self.by_block))
            for name, stream in streams.items():
                if known:
                    stream.front = [self.sweeps.activations.keep(each.clone()) for each in front_of(name, known)]
                else:
                    stream.front = self.sweeps.loss_gradients(stream)
            self.sweeps.backward(streams, boundaries, left, start, finish)

    def _decide_on_all(self) -> None:
        """Choose among the weights of all matrices at once."""
        assert isinstance(self.pattern, Unstructured)  # N:M has no scope
        total = sum(matrix.view().numel() for block in self.by_block for matrix in block)
        apart = sum(int((~keep).sum()) for keep in self.keep.values())
        removed = masks.removed_count(total, self.pattern.sparsity) - apart
        self.keep |= masks.keep_masks_of_model(self.scores, removed)
        self.scores.clear()
        if not self.compensates:
            for matrix, keep in self.keep.items():
                self._zero(matrix, keep)
            self.keep.clear()
            for index in reversed(range(len(self.by_block) - len(self.journal.notes(BACKWARD)))):
                self._finish(BACKWARD, index, {})

    def _prune_in_order(self, stage: str) -> None:
        """Go through the blocks in order; each sees what the pruned blocks before it give."""
        done, count = len(self.journal.notes(stage)), len(self.by_block)
        if done == count:
            return
        needs = needs_of(self.criterion, scores=stage == PRUNE, compensation=self.compensates)
        front = self._front(stage, done > 0 and bool(needs))
        streams = self._open({corpus for _, corpus in needs}, singly=(), front=front)

        def visit(index: int) -> None:
            widths = {matrix.name: matrix.shape[1] for matrix in self.by_block[index]}
            known = self.journal.masks(index, widths)
            self.keep |= {m: known[m.name].to(m.view().device) for m in self.by_block[index] if m.name in known}
            for matrix in self.by_block[index]:
                self._prune_matrix(matrix, self.evidence)
            del self.evidence

        with self._stage(stage, count - done):
            finish = functools.partial(self._finish, stage)
            self.sweeps.forward(streams, range(done, count), self._watch(needs), visit, finish)

    def _front(self, stage: str, needed: bool) -> dict[str, torch.Tensor]:
        """Where the sequences have got to in a stage that is gone on with; empty at its beginning."""
        front = self.journal.front(stage)
        if needed and not front:
            raise OutputError(
                f"the unfinished run has lost what its sequences look like after its last block ({stage}): start over "
                "(--fresh, fresh=True)"
            )
        return front

    def _watch(self, needs: Sequence[Need]) -> Callable[[int], dict[str, Sinks]]:
        """Make a function that gathers new evidence for each block."""

        def watch(index: int) -> dict[str, Sinks]:
            self.evidence = Evidence(self.criterion, self.config.damping, needs)
            return {name: self.evidence.sinks(name) for name in self.corpora}

        return watch

    def _finish(self, stage: str, index: int, front: Mapping[str, Kept]) -> None:
        """Write down that a block's turn is over, and with it its weights, or the choice among them."""
        matrices = self.by_block[index]
        names = [matrix.name for matrix in matrices]
        note = {
            "rows": [dataclasses.asdict(self.facts[name]) for name in names if name in self.facts],
            "unranked": [name for name in names if name in self.unranked and stage != REPAIR],
            "damping": {name: self.damping[name] for name in names if name in self.damping},
        }
        if stage == BACKWARD and self.compensates:
            waiting = {matrix.name: self.keep[matrix] for matrix in matrices}
            self.journal.finish(stage, index, note, front=front, masks=waiting)
            if self.journal.lasting:
                for matrix in matrices:
                    del self.keep[matrix]
        else:
            above = f"{self.replay.prefix}.{index}."
            state = ((above + name, value) for name, value in self.replay.blocks[index].state_dict().items())
            self.journal.finish(stage, index, note, front=front, weights=state)
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
            self.damping.setdefault(matrix.name, evidence.damping_of(matrix))
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
        factor, self.damping[matrix.name] = evidence.compensation_factor(matrix)
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
        damping = self.damping.get(matrix.name)
        stored = matrix.stored()
        apply.copy(stored, ranks.copy_from_first(stored))
        view = matrix.view()
        if not bool(torch.isfinite(view).all()):
            raise NumericalError(
                f"repaired weights must be finite, and {matrix.name} is not: use damping above {damping}"
            )
        pruned, zeros = int((~keep).sum()), int((view == 0).sum())
        self.facts[matrix.name] = MatrixFacts(
            matrix.name, matrix.block, matrix.kind, matrix.shape, pruned, zeros, damping
        )

    def _names(self, corpora: Iterable[str]) -> tuple[str, ...]:
        """Corpora given that are meant, ``all`` standing for every one."""
        wanted = set(corpora)
        return tuple(name for name in self.corpora if name in wanted or "all" in wanted)

    def _open(
        self, corpora: Iterable[str], *, singly: Sequence[str], front: Mapping[str, torch.Tensor] | None = None
    ) -> dict[str, Stream]:
        """Embed the corpora that are needed; those in ``singly`` one by one, for gradients per sequence."""
        return {
            name: self.sweeps.open(
                self.corpora[name].batches(1 if name in singly else self.config.batch_size),
                front_of(name, front or {}),
            )
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
