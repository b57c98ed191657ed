"""Single weights chosen and pruned, matrix by matrix: scores, masks, weights out."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hubprune import apply, masks, ranks
from hubprune.architecture import Matrix
from hubprune.choosing import REPAIR, Chooser, note_fields
from hubprune.config import PruningConfig
from hubprune.criterion import Criterion
from hubprune.engine import Engine, GradientSink
from hubprune.errors import NumericalError
from hubprune.evidence import needs_of
from hubprune.facts import MatrixFacts, UnitFacts
from hubprune.scoring import Scoring
from hubprune.sparsity import NM, Structured, Unstructured
from hubprune.sweeps import Sinks


class Weightwise(Chooser):
    """Chooses single weights.

    Args:
        replay: The engine.
        config: What to prune and how.
        criterion: The rule.
        matrices: The matrices to prune.
    """

    def __init__(
        self, replay: Engine, config: PruningConfig, criterion: Criterion, matrices: Sequence[Matrix]
    ) -> None:
        super().__init__()
        self.config, self.criterion = config, criterion
        pattern = config.resolved_pattern()
        assert not isinstance(pattern, Structured)  # units are chosen elsewhere
        self.pattern = pattern
        self.gradients = criterion.gradients
        self.repairs = config.repairs()
        self.whole_model = isinstance(self.pattern, Unstructured) and self.pattern.scope == "model"
        self.by_block: list[list[Matrix]] = [[] for _ in replay.blocks]
        for matrix in matrices:
            self.by_block[matrix.block].append(matrix)
        self.overlap: dict[str, dict[str, float]] = {}
        self.scoring = Scoring(replay, criterion, config.damping)
        self.scores: dict[Matrix, torch.Tensor] = {}
        self.keep: dict[Matrix, torch.Tensor] = {}
        self.facts: dict[str, MatrixFacts] = {}

    def matrices(self, index: int) -> list[Matrix]:
        """The matrices that are pruned."""
        return self.by_block[index]

    def _needs(self, scores: bool) -> Any:
        """To score on the dense model, to repair what was scored there, or both at once."""
        on_dense = self.gradients is not None or self.whole_model
        return needs_of(self.criterion, scores=scores, compensation=self.repairs and not (scores and on_dense))

    def corpora(self, *, scores: bool) -> set[str]:
        """Corpora whose inputs are summed up."""
        return {corpus for _, corpus in self._needs(scores)}

    def watch(self, index: int, corpora: Sequence[str], *, scores: bool) -> dict[str, Sinks]:
        """Begin with the evidence of a block."""
        return self.scoring.watch(self._needs(scores), corpora)

    def seen(self, index: int) -> None:
        """Keep summaries until gradients are known, or choose at once."""
        self.scoring.summarise(self.by_block[index])
        if self.gradients is None:
            for matrix in self.by_block[index]:
                self._decide(matrix)

    def attribute(self, index: int, losses: Mapping[str, list[float]]) -> GradientSink:
        """Begin to add up contributions."""
        return self.scoring.gradients(self.by_block[index])

    def decide(self, index: int) -> None:
        """Choose by the gradients."""
        for matrix in self.by_block[index]:
            self._decide(matrix)

    def _decide(self, matrix: Matrix) -> None:
        """Score a matrix on the dense model and take the decision as far as it can be taken now."""
        # Magnitudes say nothing beside the scores of other matrices: a matrix ranked by them gets its own share.
        pattern = Unstructured(self.pattern.sparsity) if self.whole_model else self.pattern
        choose = functools.partial(masks.keep_mask, pattern=pattern, block_size=self.config.block_size)
        alone: dict[str, torch.Tensor] = {}
        scores = self.scoring.score(matrix, lambda name, each: alone.update({name: choose(each)}))
        self.overlap[matrix.name] = masks.overlap(alone)
        if self.whole_model and matrix.name not in self.scoring.unranked:
            self.scores[matrix] = scores
            return
        keep = choose(scores)
        if self.repairs or self.whole_model:
            self.keep[matrix] = keep
        else:
            self._zero(matrix, keep)

    def decide_on_all(self) -> None:
        """Choose among the weights of all matrices at once."""
        assert isinstance(self.pattern, Unstructured)  # N:M has no scope
        total = sum(matrix.view().numel() for block in self.by_block for matrix in block)
        apart = sum(int(torch.count_nonzero(~keep)) for keep in self.keep.values())
        removed = masks.removed_count(total, self.pattern.sparsity) - apart
        self.keep |= masks.keep_masks_of_model(self.scores, removed)
        self.scores.clear()
        if not self.repairs:
            for matrix, keep in self.keep.items():
                self._zero(matrix, keep)
            self.keep.clear()

    def prune(self, index: int) -> None:
        """Choose, unless that was done on the dense model, and write."""
        for matrix in self.by_block[index]:
            self._prune_matrix(matrix)
        self.scoring.forget()

    def _prune_matrix(self, matrix: Matrix) -> None:
        evidence, damping = self.scoring.evidence, self.scoring.damping_of
        keep = self.keep.pop(matrix, None)
        seen = evidence.seen_columns(matrix) if self.repairs else None
        repairs = seen is not None and bool(seen.any())
        blockwise = isinstance(self.pattern, NM) or self.pattern.scope == "block"
        if keep is None and not (repairs and blockwise and self.criterion.selects_in_sweep):
            keep = masks.keep_mask(self.scoring.score(matrix), self.pattern, self.config.block_size)
        if seen is None or not repairs:
            assert keep is not None
            damping.setdefault(matrix.name, evidence.damping_of(matrix))
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
        factor, damping[matrix.name] = evidence.compensation_factor(matrix)
        keep = apply.compensate(matrix.view(), factor, ~seen, select, span=span, block_size=size)
        self._record(matrix, keep)

    def _score_span(self, weights: torch.Tensor, inverse_diagonal: torch.Tensor) -> torch.Tensor:
        return self.criterion.scores(weights, inverse_diagonal, None)

    def _zero(self, matrix: Matrix, keep: torch.Tensor) -> None:
        apply.zero(matrix.view(), keep)
        self._record(matrix, keep)

    def _record(self, matrix: Matrix, keep: torch.Tensor) -> None:
        damping = self.scoring.damping_of.get(matrix.name)
        overlap = self.overlap.get(matrix.name, {})
        stored = matrix.stored()
        apply.copy(stored, ranks.copy_from_first(stored))
        view = matrix.view()
        if not bool(torch.isfinite(view).all()):
            raise NumericalError(
                f"repaired weights must be finite, and {matrix.name} is not: use damping above {damping}"
            )
        pruned, zeros = int(torch.count_nonzero(~keep)), int(torch.count_nonzero(view == 0))
        self.facts[matrix.name] = MatrixFacts(
            matrix.name, matrix.block, matrix.kind, matrix.shape, pruned, zeros, damping, overlap
        )

    def waiting(self, index: int) -> dict[str, torch.Tensor]:
        """Masks of matrices that are still to be repaired."""
        return {matrix.name: self.keep[matrix] for matrix in self.by_block[index]}

    def take_waiting(self, index: int, known: Mapping[str, torch.Tensor]) -> None:
        """Take them back."""
        self.keep |= {m: known[m.name].to(m.view().device) for m in self.by_block[index] if m.name in known}

    def forget_waiting(self, index: int) -> None:
        """Let go of them."""
        for matrix in self.by_block[index]:
            del self.keep[matrix]

    def widths(self, index: int) -> dict[str, int]:
        """Input width of each matrix."""
        return {matrix.name: matrix.shape[1] for matrix in self.by_block[index]}

    def note(self, index: int, stage: str) -> dict[str, Any]:
        """Rows of the report, and what else has to be known later."""
        names = [matrix.name for matrix in self.by_block[index]]
        damping, overlap = self.scoring.damping_of, self.overlap
        return {
            "rows": [dataclasses.asdict(self.facts[name]) for name in names if name in self.facts],
            "unranked": [name for name in names if name in self.scoring.unranked and stage != REPAIR],
            "damping": {name: damping[name] for name in names if name in damping},
            "overlap": {name: overlap[name] for name in names if name in overlap},
        }

    def take_up(self, note: Mapping[str, Any]) -> None:
        """Take them back."""
        self.facts |= {row.name: row for row in note_fields(note, "rows", MatrixFacts)}
        self.scoring.unranked += [name for name in note["unranked"] if name not in self.scoring.unranked]
        self.scoring.damping_of |= note["damping"]
        self.overlap |= note["overlap"]

    def rows(self) -> tuple[list[MatrixFacts], list[UnitFacts]]:
        """A row for each matrix."""
        unranked = self.scoring.unranked
        if unranked:
            names = ", ".join(unranked[:5]) + (", ..." if len(unranked) > 5 else "")
            self.warnings.append(
                f"no calibration token told the weights of {len(unranked)} matrices apart ({names}): "
                "they were ranked by magnitude"
            )
        return [self.facts[matrix.name] for block in self.by_block for matrix in block], []
