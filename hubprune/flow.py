"""One run from request to record, shared by every door: prepare, then execute.

Everything that can be refused is refused in ``prepare`` (small downloads, all checks), before the weights are
downloaded.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from hubprune import hub
from hubprune.architecture import check_supported, describe, max_length
from hubprune.calibration import Corpus, corpus_from_tokens, held_out, load_corpus, refuse_overlap
from hubprune.config import CORPUS_NAMES, CorpusConfig, PruningConfig, parse_corpus
from hubprune.errors import ConfigError, CorpusError
from hubprune.evaluation import perplexity
from hubprune.pruner import prune
from hubprune.report import PruningReport
from hubprune.verifier import make_probe

# Sequences of held-out text in a perplexity, and the fewest it is worth printing for.
EVALUATION_SAMPLES = 64

HUB_KEYWORDS = (
    "cache_dir",
    "force_download",
    "local_files_only",
    "token",
    "trust_remote_code",
    "proxies",
    "subfolder",
)


@dataclass
class Plan:
    """A run that passed all checks.

    Attributes:
        repo: The base model, resolved to a commit.
        config: What to prune and how.
        model_config: The base's config.
        tokenizer: The base's tokenizer.
        corpora: Calibration text by name.
        evaluation: Held-out text by label.
        warnings: What the user should know.
        trust_remote_code: Whether the user let the repository's own code run.
        seconds: Time that preparing took.
    """

    repo: hub.ResolvedRepo
    config: PruningConfig
    model_config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase | None
    corpora: dict[str, Corpus]
    evaluation: dict[str, Corpus]
    warnings: list[str] = field(default_factory=list)
    trust_remote_code: bool = False
    seconds: float = 0.0


def load_config(base: str, repo: hub.ResolvedRepo, keywords: Mapping[str, Any]) -> PretrainedConfig:
    """Read the base's config at the resolved commit.

    Args:
        base: Repository or local folder.
        repo: What it resolved to.
        keywords: Keywords of ``from_pretrained``; those about the Hub are used.
    """
    passed = {name: keywords[name] for name in HUB_KEYWORDS if name in keywords}
    with hub.hub_errors("read the config of", base):
        return AutoConfig.from_pretrained(base, revision=repo.commit or "main", **passed)


def load_tokenizer(base: str, repo: hub.ResolvedRepo, keywords: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """Load the base's tokenizer at the resolved commit; arguments as ``load_config``."""
    passed = {name: keywords[name] for name in HUB_KEYWORDS if name in keywords}
    with hub.hub_errors("read the tokenizer of", base):
        return AutoTokenizer.from_pretrained(base, revision=repo.commit or "main", **passed)


def prepare(
    base: str,
    repo: hub.ResolvedRepo,
    model_config: PretrainedConfig,
    config: PruningConfig,
    corpora: Mapping[str, Any],
    *,
    settings: Mapping[str, Any],
    evaluation: str | Mapping[str, Any] | None = "auto",
    tokenizer: PreTrainedTokenizerBase | None = None,
    keywords: Mapping[str, Any],
    progress: bool = True,
) -> Plan:
    """Check a request and read its text; downloads the tokenizer and rows of the data sets, no weights.

    Args:
        base: Repository or local folder of the base model.
        repo: What it resolved to.
        model_config: The base's config.
        config: What to prune and how.
        corpora: Calibration text by name, as ``parse_corpus`` reads it, or ``Corpus``, or token ids ``(n, T)``.
        settings: Fields of ``CorpusConfig`` for corpora that carry none.
        evaluation: ``auto`` for the held-out splits of the calibration sets, text by label, or None for none.
        tokenizer: The tokenizer, None to load the base's.
        keywords: Keywords of ``from_pretrained``.
        progress: Whether to show progress bars.

    Raises:
        ConfigError, CorpusError, UnsupportedModelError, AccessError, NotFoundError, OfflineError: The request is
        refused.
    """
    started = time.perf_counter()
    check_supported(model_config)
    unknown = [name for name in corpora if name not in CORPUS_NAMES]
    if unknown:
        raise ConfigError(f"corpora are called {' and '.join(CORPUS_NAMES)}, got {', '.join(unknown)}")
    config.check_corpora(tuple(corpora))
    if tokenizer is None and (corpora or isinstance(evaluation, Mapping)):
        tokenizer = load_tokenizer(base, repo, keywords)
    reader = _Reader(tokenizer, max_length(model_config), keywords.get("token"), progress)
    loaded, parsed = {}, {}
    for name, value in corpora.items():
        if isinstance(value, str | CorpusConfig | Mapping | list | tuple):
            parsed[name] = parse_corpus(value, **settings)
        loaded[name] = reader.calibration(name, parsed.get(name, value))
    used = frozenset(key for corpus in loaded.values() for key in corpus.keys)
    held, warnings = reader.evaluation(evaluation, parsed, settings, used)
    refuse_overlap(loaded.values(), held.values())
    trusted = bool(keywords.get("trust_remote_code"))
    seconds = time.perf_counter() - started
    return Plan(repo, config, model_config, tokenizer, loaded, held, warnings, trusted, seconds)


class _Reader:
    """Reads corpora with one tokenizer."""

    def __init__(self, tokenizer: Any, limit: int | None, token: Any, progress: bool) -> None:
        self.tokenizer, self.limit, self.token, self.progress = tokenizer, limit, token, progress

    def _load(self, value: Any, name: str, **more: Any) -> Corpus:
        return load_corpus(
            value, self.tokenizer, name=name, max_length=self.limit, token=self.token, progress=self.progress, **more
        )

    def calibration(self, name: str, value: Any) -> Corpus:
        if isinstance(value, Corpus):
            return value
        if hasattr(value, "dim"):
            return corpus_from_tokens(value, name)
        return self._load(value, name)

    def evaluation(
        self,
        wanted: str | Mapping[str, Any] | None,
        parsed: Mapping[str, CorpusConfig],
        settings: Mapping[str, Any],
        used: frozenset[str],
    ) -> tuple[dict[str, Corpus], list[str]]:
        """Read the held-out text: what was asked for, or the held-out splits of the calibration sets.

        Splits of public data sets share a document here and there; those that calibration used are passed over.
        """
        if wanted is None or wanted == "none":
            return {}, []
        if isinstance(wanted, Mapping):
            lengths = {"sequence_length": settings.get("sequence_length"), "num_samples": EVALUATION_SAMPLES}
            return {label: self._load(value, label, at_most=True, **lengths) for label, value in wanted.items()}, []
        if wanted != "auto":
            raise ConfigError(
                f"evaluation is 'auto', None, or text by label ({{'medical': 'repo:config:test'}}), got {wanted!r}"
            )
        found, warnings = {}, []
        for name, config in parsed.items():
            test = held_out(config, num_samples=EVALUATION_SAMPLES, token=self.token)
            if test is None:
                warnings.append(f"the {name} corpus has no held-out split, so no {name} perplexity was measured")
                continue
            try:
                found[name] = self._load(test, name, at_most=True, exclude=used)
            except CorpusError as error:
                warnings.append(f"no {name} perplexity was measured: {error}")
        return found, warnings


def execute(model: PreTrainedModel, plan: Plan, *, progress: bool = True) -> PruningReport:
    """Measure, prune, measure again, and record it all.

    Args:
        model: The base model; pruned in place.
        plan: The run.
        progress: Whether to show progress bars.

    Raises:
        NumericalError: NaN was met, or a Hessian cannot be factorised.
    """
    timings = {"prepare": plan.seconds}

    def measure(variant: str) -> list[Any]:
        started = time.perf_counter()
        rows = [perplexity(model, corpus, variant=variant, progress=progress) for corpus in plan.evaluation.values()]
        if rows:
            timings[f"evaluate {variant}"] = time.perf_counter() - started
        return rows

    before = measure("base")
    report = prune(model, plan.tokenizer, plan.config, plan.corpora, progress=progress)
    report.base = describe(
        model,
        model_id=plan.repo.repo_id,
        revision=plan.repo.revision,
        commit=plan.repo.commit,
        trust_remote_code=plan.trust_remote_code,
        gated=plan.repo.gated,
        card=plan.repo.card,
    )
    report.evaluation = before + measure("pruned")
    report.warnings = plan.warnings + report.warnings
    report.timings = {name: round(seconds, 3) for name, seconds in {**timings, **report.timings}.items()}
    report.probe = make_probe(model, plan.tokenizer)
    model.config.hubprune = report.summary()
    return report
