"""A model by its name, in steps: what it is, its tokenizer, its weights. A refusal of transformers is one line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from hubprune import flow, hub
from hubprune.errors import HubPruneError, UnsupportedModelError
from hubprune.huberrors import hub_errors


class Opening:
    """A model that is about to be loaded.

    Attributes:
        name: Repository or folder.
        repo: What it resolved to.
        keywords: Keywords of ``from_pretrained``.

    Raises:
        AccessError, NotFoundError, OfflineError: The repository cannot be read.
    """

    def __init__(self, name: str, revision: str | None, keywords: Mapping[str, Any]) -> None:
        self.name = name
        self.repo = hub.resolve_model(name, revision=revision, token=keywords.get("token"))
        # Said in so many words, as transformers would otherwise ask, and wait for an answer.
        self.keywords = {"trust_remote_code": False, **keywords}

    @cached_property
    def config(self) -> PretrainedConfig:
        """The model's config."""
        with self._refusals():
            return flow.load_config(self.name, self.repo, self.keywords)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        with self._refusals():
            return flow.load_tokenizer(self.name, self.repo, self.keywords)

    def outline(self) -> PreTrainedModel:
        """The model without its weights: modules and shapes, on the meta device."""
        with self._refusals(), torch.device("meta"):
            trusted = bool(self.keywords["trust_remote_code"])
            return AutoModelForCausalLM.from_config(self.config, trust_remote_code=trusted)

    def weights(self) -> PreTrainedModel:
        """Download and load the model."""
        with self._refusals(), hub_errors("download", self.name):
            return AutoModelForCausalLM.from_pretrained(
                self.name, revision=self.repo.commit or "main", **self.keywords
            )

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except HubPruneError:
            raise
        except ValueError as error:
            raise UnsupportedModelError(f"transformers does not load {self.name}: {error}") from error
