"""The user's door: prune in ``from_pretrained``, publish in ``push_to_hub``."""

from __future__ import annotations

import difflib
import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, cast

from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from hubprune import flow, hub, publisher, ranks, recoverer, recovery_plan, saving, sidebyside
from hubprune.architecture import auto_class
from hubprune.config import PruningConfig
from hubprune.corpora import CORPUS_KEYWORDS, CORPUS_NAMES
from hubprune.errors import ConfigError, UsageError
from hubprune.fields import ALIASES
from hubprune.opening import Opening
from hubprune.outcomes import Evaluation
from hubprune.presets import METHODS
from hubprune.recovery_config import RecoveryConfig
from hubprune.report import PruningReport

logger = logging.get_logger(__name__)

PRUNING_KEYWORDS = tuple(PruningConfig.__dataclass_fields__)
# Options of methods, given as keywords; transformers has a ``variant`` of its own.
OPTION_KEYWORDS = frozenset(name for method in METHODS.values() for name in method.options) - {"variant"}


class PrunerMixin:
    """Adds pruning to a model class: ``class MyLlama(PrunerMixin, LlamaForCausalLM)``.

    Attributes:
        tokenizer: The base's tokenizer; saved and pushed with the model.
        hubprune_report: The record of the run; None for a model that was not pruned by hubprune.
    """

    tokenizer: PreTrainedTokenizerBase | None = None
    hubprune_report: PruningReport | None = None

    @classmethod
    def _load(cls, base: str, *args: Any, **kwargs: Any) -> Any:
        """Load the weights with plain transformers."""
        return super().from_pretrained(base, *args, **kwargs)  # type: ignore[misc]

    @classmethod
    def _check_door(cls, opening: Opening) -> None:
        """Refuse a model that this class is not for; a class of one's own takes what transformers lets it load."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *model_args: Any,
        pruning_config: PruningConfig | Mapping[str, Any] | None = None,
        general: Any = None,
        domain: Any = None,
        language: Any = None,
        task: Any = None,
        evaluation: str | Mapping[str, Any] | None = "auto",
        recovery: RecoveryConfig | Mapping[str, Any] | str | bool | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        progress: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Fetch a base model and calibration text from the Hub, prune, evaluate, and return the pruned model.

        A repository that hubprune already pruned is just loaded.

        Args:
            pretrained_model_name_or_path: Repository on the Hub, or a local folder.
            model_args: Passed on to transformers.
            pruning_config: What to prune and how; or give its fields as keywords (``method="d-pruner"``,
                ``sparsity=0.5``, ``pattern="2:4"``, ...).
            general: General text: a preset (``"general"``), a data set ``"repo[@revision][:config[:split]]"`` with
                ``"?column=value"`` to pick rows, several joined with ``+``, a local file, a ``CorpusConfig``, a list
                of strings, or token ids ``(n, T)``.
            domain: Text of the domain, likewise (``"medical"``, ``"legal"``, ``"code"``, ``"math"``, ...).
            language: Text in the language, likewise (``"org/texts:default:train?lang=de"``).
            task: Text of the task, likewise; where its sources say what the answer is, as presets do, a sequence is
                one example, whose answer tokens are known.
            evaluation: ``"auto"`` measures perplexity on the held-out splits of the calibration sets; or text by
                label, or None.
            recovery: How to recover what pruning cost: a config, its fields, one word (``lora``, ``shira``, ``hira``,
                ``reconstruct``), or True for the defaults. None: not at all.
            tokenizer: Tokenizer, where it is not the base's.
            progress: Whether to show progress bars.
            kwargs: ``num_samples``, ``sequence_length`` (tokens), ``packing`` and ``streaming`` of the corpora;
                fields of the pruning config; options of the method (``labels="pseudo"``); everything else goes to
                transformers (``dtype``, ``device_map``, ``revision``, ``token``, ``trust_remote_code``,
                ``cache_dir``, ...).

        Returns:
            The model, with ``tokenizer`` and ``hubprune_report``.

        Raises:
            ConfigError: The request breaks a rule; nothing was downloaded.
            CorpusError: A corpus cannot be read or is too short.
            UnsupportedModelError: The model is quantised, or no language model.
            UsageError: The model is for another of these classes.
            AccessError: The repository is private or gated.
        """
        base = os.fspath(pretrained_model_name_or_path)
        asked, settings, kwargs = _sort_keywords(kwargs)
        config = _merge_config(pruning_config, asked)
        corpora = {
            name: value
            for name, value in zip(CORPUS_NAMES, (general, domain, language, task), strict=True)
            if value is not None
        }
        opening = Opening(base, kwargs.pop("revision", None), kwargs)
        cls._check_door(opening)
        done = getattr(opening.config, "hubprune", None)
        if done:
            if pruning_config or asked or corpora:
                logger.warning("%s was already pruned (%s); it is loaded as it is.", base, done["pattern"])
            model = opening.weights(cls._load, *model_args)
            model.tokenizer = tokenizer or opening.find_tokenizer()
            model.hubprune_report = hub.read_report(opening.repo, token=kwargs.get("token"), **opening.cache)
            return model
        plan = flow.prepare(
            opening,
            config,
            corpora,
            settings=settings,
            evaluation=evaluation,
            tokenizer=tokenizer,
            progress=progress,
        )
        how = None if recovery is None or recovery is False else RecoveryConfig.of(recovery)
        if how is not None:
            recovery_plan.check_early(opening.outline, config, how)
        base_model = opening.weights(cls._load, *model_args)
        model, report = flow.execute(base_model, plan, progress=progress)
        holder: Any = model  # through Any: a module declares its attributes as tensors and modules
        holder.__class__ = type(base_model)  # a smaller model is built new, of the plain class
        holder.hubprune_report, holder.tokenizer = report, plan.tokenizer
        if how is not None:
            loading = {name: value for name, value in kwargs.items() if name != "subfolder"}
            recoverer.recover_planned(model, how, plan, corpora, loading, progress=progress)
        return model

    def evaluate(self, texts: Mapping[str, Any] | None = None, **kwargs: Any) -> Evaluation:
        """Measure this model beside its base, and take the result over into ``hubprune_report``.

        Args:
            texts: Text by label; None: the texts that the report names, where nothing else is asked for.
            kwargs: ``tasks``, ``answers``, ``size``, ``speed``, ``base``, ``protocol``, ``stride``, ... as for
                ``hubprune.evaluate``.

        Returns:
            What was measured; the card of the next push shows it.

        Raises:
            UsageError, ConfigError, CorpusError, AccessError, NotFoundError, OfflineError, NumericalError: As for
                ``hubprune.evaluate``.
        """
        found = sidebyside.evaluate(self, texts, **{"tokenizer": self.tokenizer, **kwargs})
        if self.hubprune_report is not None:
            self.hubprune_report.record(found)
        return found

    def recover(self, config: RecoveryConfig | Mapping[str, Any] | str | None = None, **kwargs: Any) -> PruningReport:
        """Recover what pruning cost, in place: see ``hubprune.recover``.

        Args:
            config: How; or its fields, or one word: ``lora``, ``shira``, ``hira``, ``reconstruct``.
            kwargs: ``general``, ``domain``, ``evaluation``, ``base``, ``adapter_out``, ``checkpoints``,
                ``max_memory``, ``fresh``, ``progress``; or fields of the config (``adapter="shira"``, ...).

        Returns:
            The report, which holds the recovery now.
        """
        fields = {name: kwargs.pop(name) for name in list(kwargs) if name in RecoveryConfig.__dataclass_fields__}
        if config is not None and fields:
            raise ConfigError(f"give a recovery config or its fields, got both: {', '.join(fields)}")
        return recoverer.recover(cast(PreTrainedModel, self), config if not fields else fields, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Save the weights, and beside them the tokenizer, the report and the model card.

        Args:
            save_directory: Folder; created when missing.
            kwargs: Passed on to transformers (``max_shard_size``, ...); ``model_card`` fills in the card;
                ``push_to_hub=True`` publishes as well, with ``repo_id`` and the other keywords of ``push_to_hub``.
        """
        push, filled = kwargs.pop("push_to_hub", False), kwargs.pop("model_card", None)
        if self.hubprune_report is not None and filled is not None:
            self.hubprune_report.model_card = filled
        names = "repo_id private token commit_message commit_description revision create_pr space".split()
        publishing = {name: kwargs.pop(name) for name in names if push and name in kwargs}
        save: Any = super().save_pretrained  # type: ignore[misc]

        def write() -> None:
            with saving.disk_errors(Path(save_directory)):
                save(save_directory, **kwargs)
            if self.hubprune_report is not None:
                saving.write_record(
                    save_directory, self.hubprune_report, self.tokenizer, model=cast(PreTrainedModel, self)
                )

        ranks.in_first(write)
        if push:
            self.push_to_hub(
                publishing.pop("repo_id", os.path.basename(os.path.normpath(save_directory))), **publishing
            )

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> Any:
        """Verify the model and publish it with its tokenizer, report and card, as one commit.

        In a run of several processes the first one publishes while the others wait; they get None.

        Args:
            repo_id: Repository to create or update.
            kwargs: ``private``, ``token``, ``commit_message``, ``commit_description``, ``revision``, ``create_pr``,
                ``space`` (True or a name: a Space that shows the model), ``max_shard_size``, ``dry_run``,
                ``model_card`` (a ``PrunedModelCardData``); see ``hubprune.publish``.

        Raises:
            UsageError: The model was not pruned by hubprune.
            VerificationError: What was saved is not what the report says; nothing was published.
            AccessError: No permission to write.
        """
        if self.hubprune_report is None:
            raise UsageError(
                f"{type(self).__name__} carries no pruning report: prune it with from_pretrained, or hand the report "
                "of hubprune.prune to hubprune.publish(model, repo_id, report=...)"
            )
        tokenizer, report = kwargs.pop("tokenizer", self.tokenizer), self.hubprune_report
        model = cast(PreTrainedModel, self)
        return ranks.in_first(lambda: publisher.publish(model, repo_id, tokenizer=tokenizer, report=report, **kwargs))


class _AutoPruned(PrunerMixin):
    """What the doors have in common that find a model's own class by its config."""

    auto: ClassVar[Any]

    def __init__(self) -> None:
        name = type(self).__name__
        raise UsageError(f"{name} is not built by itself: use {name}.from_pretrained(...)")

    @classmethod
    def _check_door(cls, opening: Opening) -> None:
        fits = auto_class(opening.config)
        if fits is not cls.auto:
            raise UsageError(
                f"{opening.name} ({opening.config.model_type}) is loaded by {fits.__name__}: use "
                f"{fits.__name__.replace('Auto', 'AutoPruned')}.from_pretrained(...)"
            )

    @classmethod
    def _load(cls, base: str, *args: Any, **kwargs: Any) -> Any:
        model: Any = cls.auto.from_pretrained(base, *args, **kwargs)
        model.__class__ = with_pruner(cast(type, type(model)))
        return model


class AutoPrunedModelForCausalLM(_AutoPruned):
    """Prunes any decoder language model that ``AutoModelForCausalLM`` loads.

    What it returns is an instance of the model's own class. It is also a ``PrunerMixin``,
    and its config still names the plain class, so that it loads anywhere.
    """

    auto = AutoModelForCausalLM


class AutoPrunedModelForSeq2SeqLM(_AutoPruned):
    """Prunes an encoder-decoder such as T5, which is calibrated on questions with their answers.

    Everything else is as for ``AutoPrunedModelForCausalLM``; the model stays in memory whole, and is not recovered.
    """

    auto = AutoModelForSeq2SeqLM


@functools.cache
def with_pruner(kind: type[PreTrainedModel]) -> type:
    """Put ``PrunerMixin`` in front of a model class, under the same name: saved configs name the plain class."""
    if issubclass(kind, PrunerMixin):
        return kind
    return type(kind.__name__, (PrunerMixin, kind), {"__module__": kind.__module__, "__doc__": kind.__doc__})


def _sort_keywords(kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Split keywords into those of the pruning config, those of the corpora and those for transformers."""
    pruning: dict[str, Any] = {}
    corpora: dict[str, Any] = {}
    others: dict[str, Any] = {}
    options: dict[str, Any] = {}
    for name, value in kwargs.items():
        name = ALIASES.get(name, name)
        if name in OPTION_KEYWORDS:
            options[name] = value
            continue
        chosen = pruning if name in PRUNING_KEYWORDS else corpora if name in CORPUS_KEYWORDS else others
        chosen[name] = value
    if options:
        pruning["options"] = {**pruning.get("options", {}), **options}
    ours = {*PRUNING_KEYWORDS, *CORPUS_KEYWORDS, *ALIASES, *OPTION_KEYWORDS}
    for name in others:
        near = difflib.get_close_matches(name, ours, n=1, cutoff=0.85)
        if near:
            raise ConfigError(f"there is no keyword {name!r}: did you mean {near[0]!r}?")
    if others.pop("output_loading_info", False):
        raise ConfigError("output_loading_info is not available while pruning: load the pushed model to inspect it")
    return pruning, corpora, others


def _merge_config(config: PruningConfig | Mapping[str, Any] | None, asked: Mapping[str, Any]) -> PruningConfig:
    if config is not None and asked:
        raise ConfigError(f"give pruning_config or its fields, got both: pruning_config and {', '.join(asked)}")
    if isinstance(config, PruningConfig):
        return config
    return PruningConfig.from_dict(config if config is not None else asked)
