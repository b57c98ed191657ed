"""hubprune: turn a general language model from the Hugging Face Hub into a smaller domain expert, and publish it.

Names are loaded on first use (PEP 562), so that ``import hubprune`` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "AutoPrunedModelForCausalLM": "modeling",
    "Corpus": "calibration",
    "CorpusConfig": "corpora",
    "HubPruneError": "errors",
    "NM": "sparsity",
    "PruneOnLoadConfig": "quantizer",
    "PrunerMixin": "modeling",
    "PruningConfig": "config",
    "PruningReport": "report",
    "SourceConfig": "corpora",
    "Structured": "sparsity",
    "Unstructured": "sparsity",
    "compare": "comparison",
    "load_corpus": "calibration",
    "perplexity": "evaluation",
    "plan": "runs",
    "prune": "runs",
    "publish": "publisher",
    "shrink": "runs",
    "verify": "verifier",
}

__all__ = [
    "NM",
    "AutoPrunedModelForCausalLM",
    "Corpus",
    "CorpusConfig",
    "HubPruneError",
    "PruneOnLoadConfig",
    "PrunerMixin",
    "PruningConfig",
    "PruningReport",
    "SourceConfig",
    "Structured",
    "Unstructured",
    "__version__",
    "compare",
    "load_corpus",
    "perplexity",
    "plan",
    "prune",
    "publish",
    "shrink",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'hubprune' has no attribute {name!r}")
    return getattr(importlib.import_module(f"hubprune.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
