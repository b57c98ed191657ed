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
    "ExportedModelForCausalLM": "exported",
    "HubPruneError": "errors",
    "NM": "sparsity",
    "PruneOnLoadConfig": "quantizer",
    "PrunerMixin": "modeling",
    "PruningConfig": "config",
    "PruningReport": "report",
    "SourceConfig": "corpora",
    "Unstructured": "sparsity",
    "export": "exporting",
    "load_corpus": "calibration",
    "perplexity": "evaluation",
    "plan": "runs",
    "prune": "runs",
    "publish": "publisher",
    "publish_export": "exporthub",
    "verify": "verifier",
}

__all__ = [
    "NM",
    "AutoPrunedModelForCausalLM",
    "Corpus",
    "CorpusConfig",
    "ExportedModelForCausalLM",
    "HubPruneError",
    "PruneOnLoadConfig",
    "PrunerMixin",
    "PruningConfig",
    "PruningReport",
    "SourceConfig",
    "Unstructured",
    "__version__",
    "export",
    "load_corpus",
    "perplexity",
    "plan",
    "prune",
    "publish",
    "publish_export",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'hubprune' has no attribute {name!r}")
    return getattr(importlib.import_module(f"hubprune.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
