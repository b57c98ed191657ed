"""Tiny random models of every decoder family the engine is held to; 2:4 fits all their widths."""

from __future__ import annotations

import torch
import transformers as tf
from transformers import PreTrainedModel

VOCABULARY = 61
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
NO_GROUPS = {name: value for name, value in SIZES.items() if name != "num_key_value_heads"}


def _gpt2() -> tf.PretrainedConfig:
    return tf.GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=3, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2
    )


def _opt() -> tf.PretrainedConfig:
    sizes = {name: value for name, value in NO_GROUPS.items() if name != "intermediate_size"}
    return tf.OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=32)


FAMILIES = {
    "llama": lambda: tf.LlamaConfig(**SIZES),
    "qwen2": lambda: tf.Qwen2Config(**SIZES),
    "qwen3": lambda: tf.Qwen3Config(**SIZES, head_dim=8),
    "mistral": lambda: tf.MistralConfig(**SIZES, sliding_window=8),
    "gemma2": lambda: tf.Gemma2Config(**SIZES, head_dim=8, sliding_window=8),
    "gemma3": lambda: tf.Gemma3TextConfig(**SIZES, head_dim=8, sliding_window=8, sliding_window_pattern=2),
    "phi3": lambda: tf.Phi3Config(**SIZES),
    "olmo2": lambda: tf.Olmo2Config(**SIZES),
    "opt": _opt,
    "gpt2": _gpt2,
    "gpt_neox": lambda: tf.GPTNeoXConfig(**NO_GROUPS),
    "mixtral": lambda: tf.MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2),
    "qwen3_moe": lambda: tf.Qwen3MoeConfig(
        **SIZES, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, decoder_sparse_step=1
    ),
}


def build(family: str, dtype: torch.dtype = torch.float32, **changes: int) -> PreTrainedModel:
    """Build a family's tiny model with seeded weights, large enough for the loss gradient to be far from rounding.

    Args:
        family: A key of ``FAMILIES``.
        dtype: Type of the weights.
        changes: Fields of the config to set.
    """
    torch.manual_seed(0)
    config = FAMILIES[family]()
    for name, value in changes.items():
        setattr(config, name, value)
    model = tf.AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2, generator=generator)
    return model.to(dtype).eval()


def token_ids(sequences: int = 4, length: int = 12, seed: int = 0) -> torch.Tensor:
    """Random token ids ``(sequences, length)``."""
    return torch.randint(3, VOCABULARY, (sequences, length), generator=torch.Generator().manual_seed(seed))
