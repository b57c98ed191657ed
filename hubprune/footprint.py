"""What a run holds in memory, added up from the shapes of the model and the amount of text.

It is what is there all the time, and the largest of what the steps of the work need besides: checking and measuring
the model, its head, and for each block running it, factorising Hessians, choosing among weights, pushing gradients
down. What shapes do not tell (what a token leaves in a block) are rules that were held against measured peaks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from hubprune import environment, evaluation, replay
from hubprune.allocation import blocks_of
from hubprune.architecture import Matrix, find_matrices, is_paired
from hubprune.calibration import Corpus
from hubprune.criterion import Criterion, load_criterion
from hubprune.evidence import Need, needs_of
from hubprune.flow import Plan
from hubprune.opening import Opening
from hubprune.scoring import takes_alike
from hubprune.sparsity import Structured, Unstructured
from hubprune.unit_criterion import UnitCriterion
from hubprune.units import find_groups

WIDE = 4  # bytes of a float32, in which statistics and scores are kept
# Bytes for each weight of a matrix while it is chosen among: weight, score, and a sorted copy with its indices.
CHOOSING = 24
# The same where all weights of the model compete: scores twice, a sorted copy with its indices, masks.
CHOOSING_ON_ALL = 24
# Bytes for each logit while its loss is taken, and with the gradient.
SCORED_LOGIT, LEARNT_LOGIT = 12, 20
# Of what flows through the matrices for a token, what is there at once forwards, and what is kept to go backwards.
FORWARD, BACKWARD = 0.6, 1.2
# Numbers for each pair of positions where a model computes attention step by step: scores, probabilities, a copy.
ATTENTION = 3
# The same where single dimensions of queries and keys are looked at: scores and probabilities with and without one.
WATCHED = 5
# Bytes for each weight that is checked for NaN, besides a copy of it.
CHECKING = 3
# What libraries set up on first use, and small pieces that were freed.
SLACK = 48 * 2**20


@dataclass(frozen=True)
class Memory:
    """What a run holds in memory, in bytes.

    Attributes:
        common: Python, everything outside the blocks, and the work on one block.
        blocks: All blocks.
        block: The largest block.
        activations: What all sequences look like at the block boundaries that are kept.
        scores: Scores of all weights, where they all compete; such a run needs the whole model.
        paired: Whether it is an encoder-decoder, which is run whole.
    """

    common: int
    blocks: int
    block: int
    activations: int
    scores: int = 0
    paired: bool = False

    def resident(self, budget: int | None = None) -> int:
        """The peak with the whole model in memory, and activations up to a budget."""
        return self.common + self.blocks + self.scores + self._kept(budget)

    def streamed(self, budget: int | None = None) -> int:
        """The peak with one block at a time in memory, and activations up to a budget."""
        return self.common + self.block + self._kept(budget)

    def _kept(self, budget: int | None) -> int:
        return self.activations if budget is None else min(self.activations, budget)


def peak_memory(plan: Plan) -> Memory:
    """Add up the peak memory of a run from the shapes of the model and the amount of text."""
    base, config, model = plan.base, plan.config, plan.base.outline
    itemsize, running = base.dtype.itemsize, _running(base)
    criterion = load_criterion(config)
    inside = [_numel(block) for block in blocks_of(model)]
    outside = _numel(model) - sum(inside)
    pattern = config.resolved_pattern()
    if isinstance(pattern, Structured) and "layer" not in pattern.units:
        groups = find_groups(model, pattern.units)
        matrices = list({m.name: m for group in groups for m in group.matrices}.values())
    else:
        matrices = find_matrices(model, config.targets, config.ignore)
    copy, copy_outside = (max(inside) * running, outside * running) if running != itemsize else (0, 0)
    steps = [
        max(parameter.numel() for parameter in model.parameters()) * (itemsize + CHECKING),
        _evaluation(plan),
        copy + max(_work(plan, criterion, _largest_block(matrices))),
        copy_outside + _head(plan) if criterion.gradients else 0,
    ]
    if is_paired(base.config):
        return _whole(plan, criterion, matrices, inside, outside, steps)
    generations = {name: len(inside) + 2 for name in _names(plan, criterion.gradients)}
    on_all = isinstance(pattern, Unstructured) and pattern.scope == "model"
    others = 2 if criterion.gradients or on_all else 1
    return Memory(
        common=environment.resident_memory() + SLACK + outside * itemsize + max(steps),
        blocks=sum(inside) * itemsize,
        block=max(inside) * itemsize,
        activations=sum(size * generations.get(name, others) for name, size in boundaries(plan).items()),
        scores=CHOOSING_ON_ALL * sum(matrix.view().numel() for matrix in matrices) if on_all else 0,
    )


def _whole(
    plan: Plan,
    criterion: Criterion,
    matrices: Sequence[Matrix],
    inside: Sequence[int],
    outside: int,
    steps: Sequence[int],
) -> Memory:
    """The memory of an encoder-decoder, all of which runs at once, in copies where it runs in another type."""
    itemsize, running = plan.base.dtype.itemsize, _running(plan.base)
    weights = sum(matrix.view().numel() for matrix in matrices)
    longest = _longest(plan.corpora.values())
    # Backwards: a gradient, sums and the weights of each matrix, and what flows through all blocks for an example.
    back = (2 + _told_apart(plan, criterion)) * WIDE * weights + int(
        BACKWARD * running * longest * _flow(plan, matrices)
    )
    copies = (sum(inside) + outside) * running if running != itemsize else 0
    work = max(*steps, back if criterion.gradients else 0)
    return Memory(
        common=environment.resident_memory() + SLACK + outside * itemsize + copies + work,
        blocks=sum(inside) * itemsize,
        block=max(inside) * itemsize,
        activations=0,
        paired=True,
    )


def _numel(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _running(base: Opening) -> int:
    """Bytes of a number while a block runs: on a CPU, half precision runs in float32."""
    return WIDE if base.device == "cpu" else base.dtype.itemsize


def _needs(plan: Plan, criterion: Criterion) -> tuple[Need, ...]:
    return needs_of(criterion, scores=True, compensation=plan.config.repairs())


def _names(plan: Plan, *wanted: str | None) -> set[str]:
    """Corpora given that are meant, ``all`` standing for every one."""
    return {name for name in plan.corpora if name in wanted or "all" in wanted}


def boundaries(plan: Plan) -> dict[str, int]:
    """Bytes of what the sequences of each corpus look like at one block boundary, for the corpora that are run."""
    criterion = load_criterion(plan.config)
    observed = criterion.observed if isinstance(criterion, UnitCriterion) else ()
    run = _names(plan, criterion.gradients, *observed, *(name for _, name in _needs(plan, criterion)))
    width = int(plan.base.config.get_text_config().hidden_size)
    return {name: plan.corpora[name].facts.tokens * width * _running(plan.base) for name in run}


def _longest(corpora: Iterable[Corpus]) -> int:
    return max((corpus.facts.sequence_length for corpus in corpora), default=0)


def _evaluation(plan: Plan) -> int:
    """Bytes of the logits that exist at once, beside those before them, and of a part of them in float32."""
    vocabulary = int(plan.base.config.get_text_config().vocab_size)
    window = _longest(plan.evaluation.values()) * vocabulary
    logits = max(window, min(plan.config.batch_size * window, evaluation.MOST_LOGITS))
    if evaluation.keeps_some(plan.base.outline):
        logits = min(logits, max(evaluation.MOST_AT_ONCE, plan.config.batch_size * vocabulary))
    return 2 * logits * plan.base.dtype.itemsize + min(window, evaluation.MOST_WIDE_LOGITS) * SCORED_LOGIT


def _head(plan: Plan) -> int:
    """Bytes of the logits of a sequence, or as many as exist at once, and of their gradient."""
    vocabulary = int(plan.base.config.get_text_config().vocab_size)
    return min(_longest(plan.corpora.values()) * vocabulary, max(replay.MOST_LOGITS, vocabulary)) * LEARNT_LOGIT


def _largest_block(matrices: Sequence[Matrix]) -> list[Matrix]:
    """The matrices of the block that holds the most weights in them."""
    weights: Counter[int] = Counter()
    for matrix in matrices:
        weights[matrix.block] += matrix.view().numel()
    (largest, _), *_ = weights.most_common(1)
    return [matrix for matrix in matrices if matrix.block == largest]


def _work(plan: Plan, criterion: Criterion, block: Sequence[Matrix]) -> Iterator[int]:
    """Bytes that each step of the work on a block takes besides its weights.

    Args:
        plan: The run.
        criterion: Its criterion.
        block: The matrices of the block.
    """
    running = _running(plan.base)
    weights = sum(matrix.view().numel() for matrix in block)
    largest = max(matrix.view().numel() for matrix in block)
    widest = max(matrix.shape[1] for matrix in block)
    flow, pairs = running * _flow(plan, block), running * _pairs(plan)
    # Forwards: a sum for each Hessian, and a batch with what is being added to a sum.
    hessians = [name for statistic, name in _needs(plan, criterion) if statistic == "hessian" and _names(plan, name)]
    squares = WIDE * sum(width * width for width in _inputs(block)) if hessians else 0
    singly = _names(plan, criterion.gradients)
    for name in boundaries(plan):
        facts = plan.corpora[name].facts
        tokens = facts.sequence_length * (1 if name in singly else min(plan.config.batch_size, facts.num_sequences))
        here = max(FORWARD * flow + WIDE * widest, ATTENTION * pairs * facts.sequence_length)
        yield len(hessians) * squares + int(tokens * here)
    # Factors beside the sums, one of them being made; then scores.
    yield (len(hessians) + 1) * squares + max(3 * WIDE * widest * widest if hessians else 0, CHOOSING * largest)
    if isinstance(criterion, UnitCriterion):
        yield criterion.working_memory(widest)
        if criterion.reads_attention and "attention_dim" in plan.config.resolved_unit():
            heads = int(plan.base.config.get_text_config().num_attention_heads)
            yield WATCHED * WIDE * heads * _longest(plan.corpora.values()) ** 2
    if singly:  # sums over gradients, the weights in float32; gradients with what they come from, or scores
        sums = weights * (WIDE if running == WIDE else 2 * WIDE)
        sums += weights * WIDE * (_told_apart(plan, criterion) - 1)
        length = max(plan.corpora[name].facts.sequence_length for name in singly)
        kept = int(length * (BACKWARD * flow + 2 * ATTENTION * pairs * length))
        yield sums + max(weights * running + max(kept, 3 * WIDE * largest), CHOOSING * largest)


def _told_apart(plan: Plan, criterion: Criterion) -> int:
    """Sums over gradients of each matrix: one, or one for each corpus where units are chosen."""
    structured = isinstance(plan.config.resolved_pattern(), Structured)
    return max(len(plan.corpora), 1) if structured and takes_alike(criterion) else 1


def _inputs(block: Sequence[Matrix]) -> Iterator[int]:
    """The widths of the inputs that differ: of projections side by side, the last reads what the others make."""
    beside: Counter[tuple[str, int]] = Counter()
    for matrix in block:
        where = matrix.name if matrix.expert is not None else matrix.name.rpartition(".")[0]
        beside[where, matrix.shape[1]] += 1
    for (_, width), count in beside.items():
        yield from [width] * min(count, 2)


def _flow(plan: Plan, block: Sequence[Matrix]) -> float:
    """Numbers that flow into the matrices of a block and out of them for a token. Few experts see a token."""
    met = getattr(plan.base.config.get_text_config(), "num_experts_per_tok", None) or len(block)
    experts = len({matrix.expert for matrix in block if matrix.expert is not None})
    return sum(sum(matrix.shape) * (1 if matrix.expert is None else min(met / experts, 1)) for matrix in block)


def _pairs(plan: Plan) -> int:
    """Heads of a model that computes attention step by step, a number for each pair of positions; 0 for others."""
    heads: int = plan.base.config.get_text_config().num_attention_heads
    return heads if plan.base.outline.config._attn_implementation == "eager" else 0
