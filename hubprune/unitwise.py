"""Units chosen and pruned, group by group: what the sweeps show becomes scores, and the lowest units go.

What was chosen is masked in the model at once, so that the next block sees it; cutting out is left to whoever writes
the result (``final``) or holds the model (``removal.shrunk``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from hubprune import apply, ranks
from hubprune.architecture import Matrix
from hubprune.calibration import Corpus
from hubprune.choosing import QUANTILES, Chooser, note_fields
from hubprune.config import PruningConfig
from hubprune.criterion import Criterion
from hubprune.engine import Engine, GradientSink
from hubprune.errors import NumericalError
from hubprune.evidence import Evidence, needs_of
from hubprune.facts import MatrixFacts, UnitFacts, pack_removed
from hubprune.removal import Cut
from hubprune.scoring import Scoring
from hubprune.stats import Hessian
from hubprune.sweeps import Sinks
from hubprune.unit_criterion import UnitCriterion
from hubprune.unit_evidence import UnitEvidence, disagreements
from hubprune.unit_ranking import Ranking, agreement, rank_by_units, rank_by_weights, rank_tied
from hubprune.units import Group


class Unitwise(Chooser):
    """Chooses units.

    Args:
        replay: The engine.
        config: What to prune and how.
        criterion: The rule, of units or of weights.
        groups: The units of the model.
        removed: How many go from each group, by its name.
    """

    def __init__(
        self,
        replay: Engine,
        config: PruningConfig,
        criterion: Criterion,
        groups: Sequence[Group],
        removed: Mapping[str, int],
    ) -> None:
        super().__init__()
        self.config, self.criterion, self.removed = config, criterion, removed
        self.by_units = criterion if isinstance(criterion, UnitCriterion) else None
        self.units: UnitEvidence | None = None
        self.gradients = criterion.gradients
        self.answers_only = self.by_units is not None and self.by_units.answers_only
        self.repairs = config.repairs()
        self.cuts = config.resolved_application() == "remove"
        self.by_block: list[list[Group]] = [[] for _ in replay.blocks]
        for group in groups:
            self.by_block[group.block].append(group)
        self.whole_model = any(group.tied for group in groups)  # the same units go from several blocks
        self.tied: dict[str, dict[Group, Ranking]] = {}
        self.replay = replay
        self.scoring = Scoring(replay, criterion, config.damping)
        self.keep: dict[str, torch.Tensor] = {}
        self.facts: dict[str, UnitFacts] = {}
        self.matrix_facts: dict[str, MatrixFacts] = {}
        self.unranked: list[str] = []
        self._cut = Cut(groups, self.keep)

    # What it wants to see

    def matrices(self, index: int) -> list[Matrix]:
        """The writers, and for a criterion of weights all matrices of the groups."""
        found: dict[str, Matrix] = {}
        for group in self.by_block[index]:
            writer = () if group.writer is None else (group.writer,)
            for matrix in writer if self.by_units is not None else group.matrices:
                found[matrix.name] = matrix
        return list(found.values())

    def traced(self, index: int) -> Sequence[Matrix]:
        """The writers, for a criterion of units."""
        return self.matrices(index) if self.by_units is not None else ()

    def _needs(self, scores: bool) -> Any:
        at_once = scores and self.gradients is None and not self.whole_model
        wanted = scores and self.by_units is None
        return needs_of(self.criterion, scores=wanted, compensation=self.repairs and (at_once or not scores))

    def corpora(self, *, scores: bool) -> set[str]:
        """Corpora that are observed, or whose inputs are summed up."""
        observed = self.by_units.observed if self.by_units is not None and scores else ()
        return {*observed, *(corpus for _, corpus in self._needs(scores))}

    def singly(self) -> set[str]:
        """Corpora that are observed sequence by sequence."""
        return set(self.by_units.observed) if self.by_units is not None else set()

    def prepare(self, corpora: Mapping[str, Corpus]) -> None:
        """Tell the criterion how much text there is."""
        if self.by_units is not None:
            self.units = UnitEvidence(self.replay, self.by_units, corpora)
            self.warnings += [
                f"the {name} text does not say where its answers begin, so that all of its tokens count: give it a "
                "template that ends in an answer"
                for name in self.units.attributed
                if self.answers_only and not corpora[name].answers
            ]
        else:
            self.scoring.tell_apart(corpora)

    # What it sees

    def watch(self, index: int, corpora: Sequence[str], *, scores: bool) -> dict[str, Sinks]:
        """Begin with a block: sums for weights and repair, rows for units."""
        sinks = self.scoring.watch(self._needs(scores), corpora)
        if self.units is not None and scores:
            self.units.begin(self.by_block[index])
            for name in self.units.observed:
                sinks[name] = [*sinks[name], self.units.observer(self.by_block[index], name)]
        return sinks

    def seen(self, index: int) -> None:
        """Keep what is needed until gradients are known, or choose at once."""
        if self.units is None:
            self.scoring.summarise(self.matrices(index))
        if self.gradients is None:
            self.decide(index)

    def attribute(self, index: int, losses: Mapping[str, list[float]]) -> GradientSink:
        """Begin with the gradients of a block."""
        if self.units is None:
            return self.scoring.gradients(self.matrices(index))
        if not self.units.examples:
            self.units.take_losses(losses)
        return self.units.gradients(self.by_block[index])

    def close(self) -> None:
        """Look no longer at the model's attention."""
        if self.units is not None:
            self.units.end()

    # What it decides

    def decide(self, index: int) -> None:
        """Choose in a block of the dense model."""
        for group in self.by_block[index]:
            self._choose(group)
        if not self.whole_model:
            self._write(index)
        self._forget(index)

    def decide_on_all(self) -> None:
        """Choose units that go from several blocks."""
        for ranked in self.tied.values():
            rank_tied([*ranked.values()], self.removed[next(iter(ranked)).name])
            for group, ranking in ranked.items():
                self._note_choice(group, ranking)
        self.tied.clear()
        for index in range(len(self.by_block)):
            self._write(index)

    def _write(self, index: int) -> None:
        """Mask what was chosen in a block, unless it is to be repaired first."""
        if not self.repairs:
            for group in self.by_block[index]:
                self._mask(group)
            self._record(index)

    def prune(self, index: int) -> None:
        """Choose in a block, unless that is done; repair, and mask."""
        if self.units is not None:
            self.units.end()
        for group in self.by_block[index]:
            if group.name not in self.keep:
                self._choose(group)
        for group in self.by_block[index]:
            if self.repairs and group.writer is not None:
                self._repair(group)
            self._mask(group)
        self._record(index)
        self._forget(index)

    def _forget(self, index: int) -> None:
        self.scoring.forget()
        if self.units is not None:
            self.units.forget(self.by_block[index])

    def _choose(self, group: Group) -> None:
        """Rank the units of a group and mark the lowest."""
        removed = self.removed[group.name]
        if self.units is None:
            ranking = rank_by_weights(self.scoring, group, removed)
        else:
            ranking = rank_by_units(self.units, group, removed)
        if ranking.blind:
            self.unranked.append(group.name)
        if group.tied:
            self.tied.setdefault(group.tied, {})[group] = ranking
        else:
            self._note_choice(group, ranking)

    def _note_choice(self, group: Group, ranking: Ranking) -> None:
        keep, scores = ranking.keep, ranking.scores
        self.keep[group.name] = keep
        quantiles = scores.quantile(torch.tensor(list(QUANTILES.values()))).tolist()
        summary = dict(zip(QUANTILES, quantiles, strict=True))
        if not bool(keep.all()):
            summary["threshold"] = float(scores[~keep].max())
        self.facts[group.name] = UnitFacts(
            group.name,
            group.block,
            group.unit,
            group.count,
            pack_removed((~keep).tolist()),
            group.unit_size,
            scores=summary,
            **agreement(ranking, intersects=self.by_units is not None and self.by_units.intersects),
            **ranking.explained,
        )

    def _repair(self, group: Group) -> None:
        """Fold what the removed units contributed into the columns of those that stay."""
        assert group.writer is not None  # asked before
        hessian = self._second_moment(self.scoring.evidence, group.writer)
        keep = self.keep[group.name]
        if bool(keep.all()) or not bool(hessian.diagonal().any()):
            return
        gone = torch.zeros(group.writer.shape[1], dtype=torch.bool)
        gone[group.columns[~keep].flatten()] = True
        damping = apply.fold(group.writer.view(), hessian, gone.to(hessian.device), self.config.damping)
        self.facts[group.name].damping = damping

    def _second_moment(self, evidence: Evidence, writer: Matrix) -> torch.Tensor:
        """Second moment of the writer's inputs, the mean over the corpora, ``(d_in, d_in)``."""
        found = [evidence.statistic("hessian", name, writer) for name in self.criterion.compensation_corpora]
        return torch.stack([each.matrix() for each in found if isinstance(each, Hessian)]).mean(dim=0)

    def _mask(self, group: Group) -> None:
        """Set every weight of the removed units to zero."""
        keep = self.keep[group.name]
        for each in group.slices:
            gone = each.index[~keep].flatten()
            apply.zero_lines(each.stored(), each.axis, gone)

    def _record(self, index: int) -> None:
        """Take over the first process' weights, and write down what is zero."""
        pruned: dict[str, torch.Tensor] = {}
        for group in self.by_block[index]:
            gone = ~self.keep[group.name]
            for each in group.slices:
                stored = each.stored()
                apply.copy(stored, ranks.copy_from_first(stored))
                if each.matrix is None:
                    continue
                mask = pruned.setdefault(each.matrix.name, torch.zeros(each.matrix.shape, dtype=torch.bool))
                by_line = mask if each.line_axis == 0 else mask.T
                by_line[each.index[gone].flatten()] = True
        for matrix in {m.name: m for group in self.by_block[index] for m in group.matrices}.values():
            view = matrix.view()
            if not bool(torch.isfinite(view).all()):
                raise NumericalError(f"repaired weights must be finite, and {matrix.name} is not: raise damping")
            mask = pruned[matrix.name]
            facts = MatrixFacts(
                matrix.name,
                matrix.block,
                matrix.kind,
                matrix.shape,
                int(mask.sum()),
                int(torch.count_nonzero(view == 0)),
            )
            if self.cuts:
                whole = self._cut_matrix(matrix)
                facts.shape, facts.pruned = (whole.shape[0], whole.shape[1]), 0
                facts.zeros = int(torch.count_nonzero(whole == 0))
            self.matrix_facts[matrix.name] = facts

    def _cut_matrix(self, matrix: Matrix) -> torch.Tensor:
        """What is left of a matrix, ``(d_out, d_in)``."""
        return matrix.part(self._cut(matrix.parameter_name, matrix.parameter.detach()))

    # What has to be known later

    def waiting(self, index: int) -> dict[str, torch.Tensor]:
        """Units that stay of groups that are still to be repaired, ``(1, units)``."""
        return {group.name: self.keep[group.name][None] for group in self.by_block[index]}

    def take_waiting(self, index: int, known: Mapping[str, torch.Tensor]) -> None:
        """Take them back."""
        self.keep |= {name: mask[0].cpu() for name, mask in known.items()}

    def forget_waiting(self, index: int) -> None:
        """They are small, and needed to the end."""

    def widths(self, index: int) -> dict[str, int]:
        """Units of each group."""
        return {group.name: group.count for group in self.by_block[index]}

    def note(self, index: int, stage: str) -> dict[str, Any]:
        """Rows of the report, and the examples."""
        groups = self.by_block[index]
        names = {matrix.name for group in groups for matrix in group.matrices}
        return {
            "units": [dataclasses.asdict(self.facts[group.name]) for group in groups],
            "rows": [dataclasses.asdict(row) for name, row in self.matrix_facts.items() if name in names],
            "unranked": [group.name for group in groups if group.name in self.unranked],
            "examples": {} if self.units is None else self.units.noted_examples(),
        }

    def take_up(self, note: Mapping[str, Any]) -> None:
        """Take them back."""
        for row in note_fields(note, "units", UnitFacts):
            row.stand_ins = [tuple(each) for each in row.stand_ins]
            self.facts[row.name] = row
            keep = torch.ones(row.count, dtype=torch.bool)
            keep[row.removed_indices] = False
            self.keep[row.name] = keep
        self.matrix_facts |= {row.name: row for row in note_fields(note, "rows", MatrixFacts)}
        self.unranked += [name for name in note["unranked"] if name not in self.unranked]
        if self.units is not None:
            self.units.take_examples(note["examples"])

    def final(self, parameters: Iterator[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        """What is left of a block's weights."""
        return ((name, self._cut(name, value)) for name, value in parameters) if self.cuts else parameters

    def rows(self) -> tuple[list[MatrixFacts], list[UnitFacts]]:
        """A row for each matrix and each group."""
        if self.unranked:
            names = ", ".join(self.unranked[:5]) + (", ..." if len(self.unranked) > 5 else "")
            self.warnings.append(
                f"nothing told the units of {len(self.unranked)} places apart ({names}): they were ranked by the size "
                "of their weights"
            )
        self.warnings += disagreements(list(self.facts.values()))
        groups = [group for block in self.by_block for group in block]
        ordered = dict.fromkeys(matrix.name for group in groups for matrix in group.matrices)
        return [self.matrix_facts[name] for name in ordered], [self.facts[group.name] for group in groups]
