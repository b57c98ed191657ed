"""How long a run will take on this machine, measured on one block.

The same method prunes one block with random weights and random text, with one sequence and with more, and the line
through both is drawn out to all blocks and all text. A large block is measured at a fraction of its widths: what goes
with the text grows with the number of weights, and what does not grows with a power of the width that two fractions
tell, from 2 (choosing among weights) to 3 (factorising a Hessian).
"""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.utils import logging

from hubprune import environment
from hubprune.architecture import find_blocks, find_matrices
from hubprune.config import PruningConfig
from hubprune.criterion import load_criterion
from hubprune.flow import Plan
from hubprune.footprint import boundaries
from hubprune.opening import Opening
from hubprune.pruner import prune
from hubprune.sparsity import NM, Structured

# The longest sequence that is measured, and the vocabulary it is drawn from.
LONGEST, VOCABULARY = 256, 512
# More sequences are measured until they take this share of what one takes, or there are as many.
SHARE, MOST_SEQUENCES = 0.5, 64
# Parameters of a block that is measured as it is; beyond it the widths are halved until it has no more.
MOST_PARAMETERS = 2**22
# Fields of configs that are widths. The number of heads stays.
WIDTHS = (
    "hidden_size",
    "intermediate_size",
    "head_dim",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
    "ffn_dim",
    "n_inner",
    "word_embed_proj_dim",
)
# Seconds of a probe that is worth repeating.
QUICK = 1.0
# Of the time that a block takes for a text with its gradients and the repair, what one pass forwards is.
FORWARD = 1 / 6
# Rows and columns that the head is timed on.
HEAD_TOKENS, HEAD_WORDS = 128, 2048


def seconds(plan: Plan) -> float:
    """Estimate the time of the pruning itself. Downloads nothing; the state of torch's generators stays as it was."""
    environment.return_large_memory_at_once()  # as in a run
    base, config = plan.base, plan.config
    if config.pseudo_labels:  # random weights are not sure of anything
        config = dataclasses.replace(config, options={**config.options, "labels": "given"})
    config = _cutting_nothing(config)
    kinds = {matrix.kind for matrix in find_matrices(base.outline, config.targets, config.ignore)}
    texts = {name: corpus.facts for name, corpus in plan.corpora.items()}
    length = min([LONGEST, *(facts.sequence_length for facts in texts.values())])
    if not isinstance(config.resolved_pattern(), Structured):
        config = dataclasses.replace(config, targets=tuple(sorted(kinds)), ignore=())
    probe = _Probe(base, config, tuple(texts), length)
    blocks = find_blocks(base.outline)[1]
    size = _size(blocks[0])
    halvings = probe.halvings(size)
    run = boundaries(plan)
    units = sum(texts[name].tokens for name in run) / length / max(len(run), 1)
    one, unit = probe.measure(halvings, units)
    fixed = max(one - unit, 0.0)
    if halvings:
        smaller = max(probe(halvings + 1, 1) - unit / 4, 1e-9)
        power = min(max(math.log2(max(fixed, 1e-9) / smaller), 2.0), 3.0)
        fixed *= 2.0 ** (power * halvings)
        unit *= size / probe.sizes[halvings]
    found = len(blocks) * (fixed + unit * units)
    if plan.config.pseudo_labels:
        found += len(blocks) * unit * units * FORWARD * float(plan.config.resolved_options()["answer_tokens"])
    wanted = load_criterion(config).gradients
    if wanted is not None:
        found += _head(base) * sum(facts.tokens for name, facts in texts.items() if wanted in ("all", name))
    return found


def _cutting_nothing(config: PruningConfig) -> PruningConfig:
    """The same work on a block, without a smaller model at the end; layers are only looked at."""
    pattern = config.resolved_pattern()
    if not isinstance(pattern, Structured):
        return config
    if "layer" in pattern.units:
        return PruningConfig("wanda", batch_size=config.batch_size, seed=config.seed)
    application = "compensate" if config.repairs() else "zero"
    return dataclasses.replace(config, application=application, repair=None, multiple=1, share_of="units")


def _size(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


class _Probe:
    """Prunes one block and takes the time.

    Args:
        base: The model; only its config is looked at.
        config: What to prune and how.
        corpora: Names of the texts.
        length: Tokens in a sequence.

    Attributes:
        sizes: Parameters of the blocks that were measured, by the number of times that their widths were halved.
    """

    def __init__(self, base: Opening, config: PruningConfig, corpora: tuple[str, ...], length: int) -> None:
        self.base, self.config, self.corpora, self.length = base, config, corpora, length
        self.sizes: dict[int, int] = {}

    def measure(self, halvings: int, most: float) -> tuple[float, float]:
        """Seconds with one sequence of each text, and what another one adds.

        Args:
            halvings: How often the widths are halved.
            most: Sequences of each text in the run; 0 where the method reads none.
        """
        one = self(halvings, 1)
        if one < QUICK:  # the first one did what is done once in a process
            one = min(one, self(halvings, 1))
        count, added = 1, 0.0
        while added < SHARE * one and count < min(most, MOST_SEQUENCES):
            count *= 4
            added = max(self(halvings, count) - one, 0.0)
        return one, added / max(count - 1, 1)

    def halvings(self, size: int) -> int:
        """How often the widths are halved for a block of some size; not at all where it cannot be done once more."""
        wanted = max(0, math.ceil(math.log(size / MOST_PARAMETERS, 4)))
        return next((count for count in range(wanted, 0, -1) if self._shrinks(count + 1)), 0)

    def _shrinks(self, halvings: int) -> bool:
        """Whether every matrix gets smaller both ways with the widths of the config, and the pattern still fits."""
        config = _one_block(self.base.config, halvings)
        if config is None:
            return False
        with torch.device("meta"):
            model = self._build(config)
        whole = [m.shape for m in find_matrices(self.base.outline) if m.block == 0]
        pattern = self.config.resolved_pattern()
        group = pattern.group if isinstance(pattern, NM) else 1
        narrow = [m.shape for m in find_matrices(model)]
        shrunk = [(rows << halvings, columns << halvings) for rows, columns in narrow] == whole
        return shrunk and all(columns % group == 0 for _, columns in narrow)

    def _build(self, config: PretrainedConfig) -> PreTrainedModel:
        trusted = bool(self.base.keywords["trust_remote_code"])
        return AutoModelForCausalLM.from_config(config, dtype=self.base.dtype, trust_remote_code=trusted)

    def __call__(self, halvings: int, sequences: int) -> float:
        """Seconds for one block of the model and some sequences of each text."""
        config = _one_block(self.base.config, halvings)
        assert config is not None  # asked before
        with _quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            model: Any = self._build(config)
            model = model.to(self.base.device)
            self.sizes[halvings] = _size(find_blocks(model)[1][0])
            texts = {name: torch.randint(VOCABULARY, (sequences, self.length)) for name in self.corpora}
            started = time.perf_counter()
            prune(model, None, self.config, texts, progress=False, meter=False)
            return time.perf_counter() - started


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from remarking on a model that nobody asked for."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _one_block(config: PretrainedConfig, halvings: int = 0) -> PretrainedConfig | None:
    """The same model with one block, few words and smaller widths; None where these cannot be halved so often."""
    small = copy.deepcopy(config)
    text = small.get_text_config()
    for name in WIDTHS if halvings else ():
        value = getattr(text, name, None)
        if isinstance(value, int):
            if value % 2**halvings:
                return None
            setattr(text, name, value >> halvings)
    if halvings and (text.hidden_size // text.num_attention_heads) % 2:
        return None
    text.num_hidden_layers, text.vocab_size = 1, VOCABULARY
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:1]
    for each in (small, text):
        each.bos_token_id = each.eos_token_id = each.pad_token_id = None
    return small


def _head(base: Opening) -> float:
    """Seconds for the loss of one token and its gradient, from a slice of the head."""
    text = base.config.get_text_config()
    running = torch.float32 if base.device == "cpu" else base.dtype
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (
        torch.randn(rows, text.hidden_size, generator=generator).to(base.device, running)
        for rows in (HEAD_TOKENS, HEAD_WORDS)
    )
    spent = []
    for _ in range(2):
        leaf = hidden.requires_grad_(True)
        started = time.perf_counter()
        targets = torch.zeros(HEAD_TOKENS, dtype=torch.long, device=leaf.device)
        loss = F.cross_entropy(F.linear(leaf, weight).float(), targets)
        torch.autograd.grad(loss, leaf)[0].sum().item()  # waits for a GPU
        spent.append(time.perf_counter() - started)
    return min(spent) / HEAD_TOKENS * text.vocab_size / HEAD_WORDS
