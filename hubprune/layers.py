"""Whole layers chosen by how little they turn what flows through them (ShortGPT, arXiv:2403.03853)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tqdm import tqdm

from hubprune import masks, ranks
from hubprune.activations import Activations
from hubprune.allocation import weights_in
from hubprune.calibration import Corpus
from hubprune.choosing import PRUNE, QUANTILES, note_fields
from hubprune.criteria.block_influence import BlockInfluence
from hubprune.facts import UnitFacts, pack_removed
from hubprune.replay import Replay
from hubprune.sweeps import Sweeps
from hubprune.work import Journal


def block_influence(
    replay: Replay,
    criterion: BlockInfluence,
    corpora: Mapping[str, Corpus],
    batch_size: int,
    *,
    activations: Activations | None = None,
    progress: bool = True,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Score every block over all tokens, ``(blocks,)``, and over those of each corpus; higher = keep.

    Args:
        replay: The engine, entered.
        criterion: The rule.
        corpora: This process' part of the text.
        batch_size: Sequences in a forward pass.
        activations: Where activations are put away.
        progress: Whether to show a progress bar.
    """
    sweeps = Sweeps(replay, [[] for _ in replay.blocks], activations or Activations())
    streams = {name: sweeps.open(corpus.batches(batch_size)) for name, corpus in corpora.items()}
    found: dict[str, list[torch.Tensor]] = {name: [] for name in corpora}
    quiet = not progress or ranks.rank() > 0
    for index in tqdm(range(len(replay.blocks)), desc="Measuring layers", unit="block", disable=quiet, delay=1):
        before = {name: stream.front for name, stream in streams.items()}
        sweeps.forward(streams, range(index, index + 1), lambda _: {}, lambda _: None)
        for name, stream in streams.items():
            total = torch.zeros(2, dtype=torch.float64)
            for left, right in zip(before[name], stream.front, strict=True):
                turned = criterion.turned(left.tensor(), right.tensor())
                total += torch.tensor([float(turned.sum()), turned.numel()], dtype=torch.float64)
            found[name].append(ranks.add_up(total))
    sums = {name: torch.stack(totals) for name, totals in found.items()}

    def mean(total: torch.Tensor) -> torch.Tensor:
        return (total[:, 0] / total[:, 1]).float()

    return mean(torch.stack([*sums.values()]).sum(dim=0)), {name: mean(total) for name, total in sums.items()}


def choose_layers(
    replay: Replay,
    criterion: BlockInfluence,
    corpora: Mapping[str, Corpus],
    batch_size: int,
    removed: int,
    journal: Journal,
    **keywords: Any,
) -> UnitFacts:
    """Choose the layers that go, and write the others down.

    Args:
        replay: The engine, entered.
        criterion: The rule.
        corpora: Calibration text.
        batch_size: Sequences in a forward pass.
        removed: How many go.
        journal: Where the layers that stay are written down.
        keywords: Keywords of ``block_influence``.
    """
    notes = journal.notes(PRUNE)
    if notes:
        (facts,) = note_fields(notes[0], "units", UnitFacts)
    else:
        mine = {name: corpus.share() for name, corpus in corpora.items()}
        scores, alone = block_influence(replay, criterion, mine, batch_size, **keywords)
        keep = masks.keep_block(scores[None], removed)[0]
        alone_keep = {name: masks.keep_block(each[None], removed)[0] for name, each in alone.items()}
        quantiles = scores.quantile(torch.tensor(list(QUANTILES.values()))).tolist()
        summary = {**dict(zip(QUANTILES, quantiles, strict=True)), "threshold": float(scores[~keep].max())}
        size = weights_in(replay.blocks[0])
        facts = UnitFacts(
            replay.weights.prefixes[0],
            0,
            "layer",
            len(keep),
            pack_removed((~keep).tolist()),
            size,
            scores=summary,
            each=[round(score, 6) for score in scores.tolist()],
            overlap=masks.overlap(alone_keep),
        )
    gone = set(facts.removed_indices)
    left = [index for index in range(facts.count) if index not in gone]
    for place in range(len(notes), len(left)):
        with replay.weights.block(left[place]) as block:
            state = ((f"{replay.weights.names[place]}.{name}", value) for name, value in block.state_dict().items())
            note = {"units": [vars(facts)]}
            journal.finish(PRUNE, place, note, front={}, weights=state)
    return facts
