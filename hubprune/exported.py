"""An exported graph as a model of transformers: ``generate`` with all it can do, on ONNX Runtime or OpenVINO.

The weights lie in the runtime. What transformers sees is a model without parameters whose forward pass runs the graph,
so that sampling, beams, stopping criteria, streamers and pipelines are its own.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, GenerationConfig, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from hubprune.errors import UsageError
from hubprune.exporthub import find_export
from hubprune.session import Session, State, open_session


class GraphCache:
    """The cache of one generation, held by the runtime."""

    is_compileable = False

    def __init__(self, state: State) -> None:
        self.state = state

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens in the cache."""
        return self.state.length

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Take other rows of the batch, as beam search does."""
        self.state.reorder(beam_idx.cpu().numpy())


class ExportedModelForCausalLM(PreTrainedModel, GenerationMixin):
    """A decoder language model exported by ``hubprune.export``, run by ONNX Runtime or OpenVINO on the CPU.

    ``generate`` is that of transformers, and ``hubprune.perplexity`` measures it like any model.

    Args:
        config: The model's config.
        session: The loaded graph.
        generation_config: How it generates by default; None for what the config says.
    """

    config_class = PreTrainedConfig
    main_input_name = "input_ids"
    _supports_sdpa = True  # asked for by configs that say nothing, and decided when the graph was traced

    def __init__(
        self, config: PreTrainedConfig, session: Session, generation_config: GenerationConfig | None = None
    ) -> None:
        super().__init__(config)
        self.session = session
        self.generation_config = generation_config or GenerationConfig.from_model_config(config)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        place: str | os.PathLike[str],
        *,
        format: str | None = None,
        int8: bool | None = None,
        threads: int | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        trust_remote_code: bool = False,
    ) -> ExportedModelForCausalLM:
        """Load an exported model.

        Args:
            place: Folder that ``hubprune.export`` wrote, that of the model it lies in, or a repository on the Hub.
            format: ``"onnx"`` or ``"openvino"``; None for the one that is there, the former where both are.
            int8: The graph with 8-bit weights or the one in float32; None for the one that is there, the latter
                where both are.
            threads: Threads it runs on; None for as many as torch has.
            revision: Branch, tag or commit of the repository.
            token: Token of the Hub.
            trust_remote_code: Let the config's own code run, where there is some.

        Raises:
            NotFoundError: There is no such graph.
            ConfigError: There is no such format.
            UsageError: The format's runtime is not installed.
            AccessError: The repository is private or gated.
        """
        file = find_export(place, format=format, int8=int8, revision=revision, token=token)
        folder = file.parent
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        stored = folder / "generation_config.json"
        settings = GenerationConfig.from_pretrained(folder) if stored.is_file() else None
        return cls(config, open_session(file, threads), settings)

    @property
    def device(self) -> torch.device:
        """Where tokens and logits are: the CPU."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """The type of the logits."""
        return torch.float32

    def get_input_embeddings(self) -> nn.Module:
        """Return an embedding without weights, for what asks a model for the size of its vocabulary."""
        return nn.Embedding(self.config.get_text_config().vocab_size, 1, device="meta")

    def can_generate(self) -> bool:  # type: ignore[override]
        """Whether ``generate`` works: it does."""
        return True

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """Leave the cache to the forward pass."""
        return False

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the graph.

        Args:
            input_ids: New tokens, ``(batch, new)``.
            attention_mask: 0 where a row is padded, ``(batch, past + new)``; None for no padding.
            position_ids: ``(batch, new)``; None to count the tokens that are not padding.
            past_key_values: What the call before returned; None to start.
            use_cache: Whether to return the cache; None for yes.
            return_dict: False for a tuple.

        Returns:
            ``logits``, ``(batch, new, vocabulary)``, and ``past_key_values``.
        """
        batch, new = input_ids.shape
        cache = GraphCache(self.session.start(batch)) if past_key_values is None else past_key_values
        if not isinstance(cache, GraphCache):
            raise UsageError(
                f"an exported graph goes on with the cache it returned, and was given a {type(cache).__name__}: "
                "leave past_key_values and cache_implementation out"
            )
        if attention_mask is None:
            attention_mask = torch.ones(batch, cache.get_seq_length() + new, dtype=torch.int64)
        if position_ids is None:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp_min(0)[:, -new:]
        arrays = [tensor.cpu().to(torch.int64).numpy() for tensor in (input_ids, attention_mask, position_ids)]
        logits = torch.from_numpy(np.asarray(self.session.run(cache.state, *arrays)))
        kept: Any = cache if use_cache is not False else None
        output = CausalLMOutputWithPast(logits=logits, past_key_values=kept)
        return output if return_dict is not False else output.to_tuple()
