"""A model by its name, in steps: what it is, its shapes, its tokenizer, its weights. A refusal is one line."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file, get_checkpoint_shard_files

from hubprune import hub
from hubprune.architecture import auto_class
from hubprune.errors import HubPruneError, NotFoundError, UnsupportedModelError
from hubprune.huberrors import hub_errors
from hubprune.weights import blocks_on_disk

# What ``device_map`` says where it leaves the choice to accelerate.
SOME_GPU = ("auto", "balanced", "sequential")
CONVERSION = "DISABLE_SAFETENSORS_CONVERSION"
# Keywords of from_pretrained that a config and a tokenizer are read with as well.
HUB_KEYWORDS = (
    "cache_dir",
    "force_download",
    "local_files_only",
    "token",
    "trust_remote_code",
    "proxies",
    "subfolder",
)


@contextmanager
def no_conversion() -> Iterator[None]:
    """Keep transformers from asking a third party to convert weights: name and token would leave with it."""
    before = os.environ.get(CONVERSION)
    os.environ[CONVERSION] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[CONVERSION]
        else:
            os.environ[CONVERSION] = before


@contextmanager
def _without_remark() -> Iterator[None]:
    """Keep accelerate from remarking that weights are on disk, where that was asked for."""
    logger = logging.getLogger("accelerate.big_modeling")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


class Opening:
    """A model that is about to be loaded; each part is fetched when it is first asked for, at the resolved commit.

    Attributes:
        name: Repository or folder.
        repo: What it resolved to.
        keywords: Keywords of ``from_pretrained``.

    Raises:
        AccessError, NotFoundError, OfflineError: The repository cannot be read.
    """

    def __init__(self, name: str, revision: str | None, keywords: Mapping[str, Any]) -> None:
        self.name = name
        self.cache = {name: keywords[name] for name in ("cache_dir", "local_files_only") if keywords.get(name)}
        self.repo = hub.resolve_model(name, revision=revision, token=keywords.get("token"), **self.cache)
        # Said in so many words, as transformers would otherwise ask, and wait for an answer.
        self.keywords = {"trust_remote_code": False, **keywords}

    @property
    def _small(self) -> dict[str, Any]:
        """Keywords for what is small."""
        passed = {name: self.keywords[name] for name in HUB_KEYWORDS if name in self.keywords}
        return {"revision": self.repo.commit or "main", **passed}

    @cached_property
    def config(self) -> PretrainedConfig:
        """The model's config.

        Raises:
            UnsupportedModelError: transformers does not know the model, or will not run its code.
        """
        with self._refusals("read the config of"):
            return AutoConfig.from_pretrained(self.name, **self._small)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer.

        Raises:
            NotFoundError, UnsupportedModelError: There is none, or transformers does not know it.
        """
        with self._refusals("read the tokenizer of"):
            return AutoTokenizer.from_pretrained(self.name, **self._small)

    def find_tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The model's tokenizer, None where it has none."""
        try:
            return self.tokenizer
        except (NotFoundError, UnsupportedModelError):
            return None

    @cached_property
    def outline(self) -> PreTrainedModel:
        """The model without its weights: modules and shapes, on the meta device."""
        with self._refusals("build"), torch.device("meta"):
            trusted = bool(self.keywords["trust_remote_code"])
            return auto_class(self.config).from_config(self.config, trust_remote_code=trusted)

    @property
    def dtype(self) -> torch.dtype:
        """The type that the weights will have, as far as the config says it."""
        wanted = self.keywords.get("dtype", "auto")
        named = getattr(torch, wanted, None) if isinstance(wanted, str) else wanted
        return named or next(self.outline.parameters()).dtype

    def weights(self, load: Callable[..., Any] | None = None, *args: Any) -> Any:
        """Download and load the model.

        Args:
            load: A ``from_pretrained``; None for that of transformers.
            args: Its further positional arguments.
        """
        load = load or auto_class(self.config).from_pretrained
        with self._refusals("download"), no_conversion():
            return load(self.name, *args, revision=self.repo.commit or "main", **self.keywords)

    def weight_files(self) -> list[Path]:
        """Download the safetensors files that the weights lie in, and nothing else.

        Raises:
            NotFoundError: There are none.
        """
        asked = {name: value for name, value in self._small.items() if name != "trust_remote_code"}
        with self._refusals("download"):
            for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME):
                found = cached_file(self.name, name, _raise_exceptions_for_missing_entries=False, **asked)
                if found is not None:
                    break
            else:
                raise NotFoundError(
                    f"{self.name} must hold its weights as safetensors, and there is no {SAFE_WEIGHTS_NAME}: save it "
                    "again with save_pretrained"
                )
            if name == SAFE_WEIGHTS_NAME:
                return [Path(found)]
            return [Path(file) for file in get_checkpoint_shard_files(self.name, found, **asked)[0]]

    def weights_on_disk(self, folder: str | os.PathLike[str]) -> Any:
        """Download the model and load all but its decoder blocks, which are brought in whenever they are run.

        Args:
            folder: Where blocks go whose files hold them in another form than the model does.
        """
        os.makedirs(folder, exist_ok=True)
        keywords = {**self.keywords, "device_map": blocks_on_disk(self.outline, self.device)}
        with self._refusals("download"), no_conversion(), _without_remark():
            return auto_class(self.config).from_pretrained(
                self.name, revision=self.repo.commit or "main", offload_folder=os.fspath(folder), **keywords
            )

    @property
    def device(self) -> str | int:
        """Where a model runs whose blocks stay on disk: on the GPU that ``device_map`` names, otherwise on the CPU."""
        wanted = self.keywords.get("device_map")
        if isinstance(wanted, Mapping):
            wanted = next((place for place in wanted.values() if place not in ("cpu", "disk")), "cpu")
        if isinstance(wanted, str) and wanted.startswith(SOME_GPU) or str(wanted) == "cuda":
            return torch.cuda.current_device() if torch.cuda.is_available() else "cpu"
        return wanted if isinstance(wanted, int) else str(wanted or "cpu")

    @property
    def gpus(self) -> tuple[int, ...]:
        """The GPUs that the whole model would go to; none where it runs on the CPU."""
        device = torch.device(self.device)
        if device.type != "cuda":
            return ()
        spread = str(self.keywords.get("device_map")).startswith(SOME_GPU)
        return tuple(range(torch.cuda.device_count())) if spread else (device.index or 0,)

    @contextmanager
    def _refusals(self, what: str) -> Iterator[None]:
        try:
            with hub_errors(what, self.name):
                yield
        except HubPruneError:
            raise
        except SafetensorError as error:
            raise UnsupportedModelError(
                f"the weight files of {self.name} are damaged ({error}): download them again (force_download=True)"
            ) from error
        except ValueError as error:
            said = " ".join(str(error).split())
            raise UnsupportedModelError(f"transformers does not load {self.name}: {said}") from error
