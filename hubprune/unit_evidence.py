"""What a criterion of units gets to see of one block: rows for each sequence, by what flows in and by gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hubprune import ranks
from hubprune.architecture import Matrix
from hubprune.attention import AttentionWatch
from hubprune.calibration import Corpus
from hubprune.engine import Engine, Flow, GradientSink
from hubprune.facts import UnitFacts
from hubprune.inputs import InputSink
from hubprune.unit_criterion import Example, UnitCriterion, UnitView
from hubprune.units import Group

Rows = dict[str, torch.Tensor]
# From this share of a ranking on, what dimensions have in common is hardly more than chance.
DISAGREE = 0.9


class UnitEvidence:
    """Lets a criterion note rows, and puts those of all processes together.

    Args:
        replay: The engine.
        criterion: The rule.
        corpora: This process' part of the text.

    Attributes:
        examples: The sequences that gradients are taken of, of all processes, by corpus.
    """

    def __init__(self, replay: Engine, criterion: UnitCriterion, corpora: Mapping[str, Corpus]) -> None:
        self.replay, self.criterion = replay, criterion
        self.given = tuple(corpora)
        self.labels = {name: list(corpus.labels) for name, corpus in corpora.items()}
        self.observed = self._named(criterion.observed)
        self.attributed = self._named((criterion.gradients,) if criterion.gradients else ())
        whole = {name: sum(ranks.gather([len(corpora[name].sequences)])) for name in self.observed}
        criterion.prepare(whole)
        self.watch = AttentionWatch(replay.model.config) if criterion.reads_attention else None
        self.examples: dict[str, list[Example]] = {}
        self._seen: dict[tuple[str, str], list[torch.Tensor]] = {}
        self._flowed: dict[str, list[torch.Tensor]] = {}
        self._views: dict[str, UnitView] = {}

    def _named(self, corpora: Sequence[str]) -> tuple[str, ...]:
        return tuple(name for name in self.given if name in corpora or "all" in corpora)

    def forget(self, groups: Sequence[Group]) -> None:
        """Let go of what is known of the groups of a block."""
        names = {group.name for group in groups}
        self._seen = {key: rows for key, rows in self._seen.items() if key[0] not in names}
        self._flowed = {name: rows for name, rows in self._flowed.items() if name not in names}
        self._views = {name: view for name, view in self._views.items() if name not in names}

    def view(self, group: Group) -> UnitView:
        """What the criterion sees of a group of the block that is held."""
        if group.name not in self._views:
            weight = None
            if group.writer is not None:
                whole = self.replay.values(group.writer).float()
                weight = whole[:, group.columns.to(whole.device)]
            self._views[group.name] = UnitView(group.name, weight, group.columns, group.count)
        return self._views[group.name]

    def begin(self, groups: Sequence[Group]) -> None:
        """Look at the attention of the block as well, where single dimensions of it are chosen."""
        if self.watch is not None and any(group.writer is None for group in groups):
            self.watch.start()

    def end(self) -> None:
        """The block has been seen."""
        if self.watch is not None:
            self.watch.stop()

    def observer(self, groups: Sequence[Group], corpus: str) -> InputSink:
        """A sink that notes what flows into the writers, sequence by sequence.

        Queries and keys meet before what they give flows into the writer of the same attention.
        """
        by_writer = {group.writer: group for group in groups if group.writer is not None}
        keys = {group.name.removesuffix(".keys"): group for group in groups if group.writer is None}

        def observe(matrices: Sequence[Matrix], inputs: torch.Tensor) -> None:
            for matrix in matrices:
                if matrix in by_writer:
                    group = by_writer[matrix]
                    rows = self.criterion.observe(self.view(group), inputs)
                    self._seen.setdefault((group.name, corpus), []).append(rows.cpu())
                    beside = keys.get(group.name.removesuffix(".values"))
                    if beside is not None and self.watch is not None and self.watch.latest is not None:
                        self._seen.setdefault((beside.name, corpus), []).append(self.watch.latest[None].cpu())

        return observe

    def take_losses(self, losses: Mapping[str, list[float]]) -> None:
        """Learn the loss of each sequence of this process; nothing is known of them when a run goes on."""
        for name, found in losses.items():
            labels = self.labels[name] or [""] * len(found)
            pairs = [(float(torch.tensor(-loss).exp()), label) for loss, label in zip(found, labels, strict=True)]
            self.examples[name] = [Example(weight, label) for weight, label in ranks.gather(pairs)]

    def noted_examples(self) -> dict[str, list[dict[str, Any]]]:
        """The examples in JSON types."""
        return {name: [vars(each) for each in found] for name, found in self.examples.items()}

    def take_examples(self, noted: Mapping[str, list[dict[str, Any]]]) -> None:
        """Take them back."""
        self.examples |= {name: [Example(**each) for each in found] for name, found in noted.items()}

    def gradients(self, groups: Sequence[Group]) -> GradientSink:
        """A sink that notes what each sequence's gradient says; of an answer, that of its log probability."""
        by_writer = {group.writer: group for group in groups if group.writer is not None}
        sign = -1.0 if self.criterion.answers_only else 1.0

        def add(matrix: Matrix, gradient: torch.Tensor, flow: Flow | None) -> None:
            group = by_writer[matrix]
            inputs, back = (flow[0], flow[1] * sign) if flow is not None else (None, None)
            row = self.criterion.attribute(self.view(group), gradient * sign, inputs, back)
            self._flowed.setdefault(group.name, []).append(row.cpu())

        return add

    def rows(self, group: Group) -> tuple[Rows, Rows]:
        """Rows of all processes, in their order: what was observed of a group, and what gradients said, by corpus.

        A corpus of which nothing reached the group is left out.
        """
        nothing = [torch.zeros(0, group.count)]
        observed = {
            name: torch.cat(ranks.gather(self._seen.get((group.name, name), [])) or nothing) for name in self.observed
        }
        observed = {name: rows for name, rows in observed.items() if bool(rows.any())}
        mine = self._flowed.get(group.name)
        if mine is None:
            return observed, {}
        counts = [len(ranks.share(self.examples[name])) for name in self.attributed]
        parts = torch.stack(mine).split(counts)
        gathered = (torch.stack(ranks.gather(list(part))) for part in parts)
        return observed, dict(zip(self.attributed, gathered, strict=True))


def disagreements(rows: Sequence[UnitFacts]) -> list[str]:
    """A warning where the dimensions of Cus-Prun want to keep different units."""
    far = [row for row in rows if row.overlap and row.reached is not None and row.reached > DISAGREE]
    if not far:
        return []
    worst = max(far, key=lambda row: row.reached or 0.0)
    return [
        f"the dimensions disagree in {len(far)} of {len(rows)} places: units up to {worst.reached:.0%} of a ranking "
        f"had to go ({worst.name}); give fewer dimensions or remove less"
    ]
