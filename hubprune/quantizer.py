"""The door inside transformers: ``AutoModelForCausalLM.from_pretrained(base, quantization_config=...)``.

transformers lets third parties act on a model at the end of ``from_pretrained`` through its quantizer interface.
Nothing is quantised here: the weights are pruned in place, and the config that asked for it is taken off again, so
that what is returned and saved is a plain dense model with zeros in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING
from transformers.utils.quantization_config import QuantizationConfigMixin

from hubprune import flow
from hubprune.config import PruningConfig
from hubprune.corpora import CORPUS_NAMES, CorpusConfig, parse_corpus
from hubprune.errors import ConfigError
from hubprune.opening import Opening

METHOD_NAME = "hubprune"


class PruneOnLoadConfig(QuantizationConfigMixin):
    """Asks transformers' own ``from_pretrained`` to prune the model once its weights are loaded.

    Args:
        general: General text, as ``AutoPrunedModelForCausalLM.from_pretrained`` takes it (token ids excepted).
        domain: Text of the domain, likewise.
        language: Text in the language, likewise.
        task: Text of the task, likewise.
        evaluation: ``"auto"`` for the held-out splits of the calibration sets, text by label, or None.
        num_samples: Sequences of each corpus; None for the default.
        sequence_length: Tokens in a sequence; None for the default.
        token: Token of the Hub for private data sets; kept out of ``to_dict``, so it is never written anywhere.
        pruning: Fields of ``PruningConfig`` (``method``, ``sparsity``, ``pattern``, ...).

    Raises:
        ConfigError: The request breaks a rule.
    """

    def __init__(
        self,
        general: Any = None,
        domain: Any = None,
        language: Any = None,
        task: Any = None,
        evaluation: str | Mapping[str, Any] | None = "auto",
        num_samples: int | None = None,
        sequence_length: int | None = None,
        token: str | None = None,
        **pruning: Any,
    ) -> None:
        _register()
        self.quant_method = METHOD_NAME  # type: ignore[assignment]
        self.pruning = PruningConfig.from_dict(pruning)
        self.settings = {"num_samples": num_samples, "sequence_length": sequence_length, "seed": self.pruning.seed}
        self.corpora: dict[str, CorpusConfig] = {
            name: parse_corpus(value, **self.settings)
            for name, value in zip(CORPUS_NAMES, (general, domain, language, task), strict=True)
            if value is not None
        }
        self.evaluation = evaluation
        self.token = token
        self.pruning.check_corpora(tuple(self.corpora))
        if self.pruning.resolved_application() == "remove":
            raise ConfigError(
                "a smaller model is a new one, and transformers hands out the one it has loaded, got application "
                "'remove': use AutoPrunedModelForCausalLM.from_pretrained, or application='compensate'"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; the token is left out."""
        return {
            "quant_method": METHOD_NAME,
            "pruning": self.pruning.to_dict(),
            "corpora": {name: corpus.to_dict() for name, corpus in self.corpora.items()},
        }


class PruneOnLoad(HfQuantizer):
    """Prunes a model that transformers has just loaded."""

    quantization_config: PruneOnLoadConfig
    requires_calibration = False

    def is_serializable(self, *_: Any, **__: Any) -> bool:
        """Tell transformers that the result can be saved: it is a plain model."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Tell transformers that the result can be trained: it is a plain model."""
        return True

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **_: Any) -> None:
        """Check the request and read its text while the model has no weights yet."""
        if self.pre_quantized:
            raise ConfigError(
                "a saved model asks to be pruned on loading: remove quantization_config from its config.json"
            )
        done = getattr(model.config, "hubprune", None)
        if done:
            raise ConfigError(
                f"{model.config.name_or_path} was already pruned ({done['method']}, {done['pattern']}): load it "
                f"without PruneOnLoadConfig, or prune {done['base_model']}"
            )
        request = self.quantization_config
        trusted = type(model).__module__.startswith("transformers_modules")
        commit = getattr(model.config, "_commit_hash", None)
        base = Opening(str(model.config.name_or_path), commit, {"token": request.token, "trust_remote_code": trusted})
        base.outline = model  # it is here already; its config speaks of a quantisation, which the base's does not
        with torch.device("cpu"):  # transformers builds the model under the meta device
            self._plan = flow.prepare(
                base, request.pruning, request.corpora, settings=request.settings, evaluation=request.evaluation
            )

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **_: Any) -> PreTrainedModel:
        self.remove_quantization_config(model)
        report = flow.execute(model, self._plan)[1]
        # Through Any: a module declares its attributes as tensors and modules.
        holder: Any = model
        holder.hubprune_report, holder.tokenizer = report, self._plan.tokenizer
        return model


def _register() -> None:
    """Make the method known to transformers; called when a config is built, not when hubprune is imported."""
    if METHOD_NAME in AUTO_QUANTIZATION_CONFIG_MAPPING:
        return
    register_quantization_config(METHOD_NAME)(PruneOnLoadConfig)
    register_quantizer(METHOD_NAME)(PruneOnLoad)
