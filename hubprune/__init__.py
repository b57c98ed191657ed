"""hubprune: turn a general language model from the Hugging Face Hub into a smaller domain expert, and publish it.

Names are loaded on first use (PEP 562), so that ``import hubprune`` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "AutoPrunedModelForCausalLM": "modeling",
    "AutoPrunedModelForSeq2SeqLM": "modeling",
    "Corpus": "calibration",
    "CorpusConfig": "corpora",
    "ExportedModelForCausalLM": "exported",
    "HubPruneError": "errors",
    "NM": "sparsity",
    "Protocol": "protocol",
    "PruneOnLoadConfig": "quantizer",
    "PrunedModelCardData": "carddata",
    "PrunerMixin": "modeling",
    "PruningConfig": "config",
    "PruningReport": "report",
    "RecoveryConfig": "recovery_config",
    "SourceConfig": "corpora",
    "Structured": "sparsity",
    "Unstructured": "sparsity",
    "compare": "comparison",
    "evaluate": "sidebyside",
    "export": "exporting",
    "load_corpus": "calibration",
    "perplexity": "evaluation",
    "plan": "runs",
    "prune": "runs",
    "publish": "publisher",
    "recover": "recoverer",
    "shrink": "runs",
    "publish_export": "exporthub",
    "verify": "verifier",
}

__all__ = [
    "NM",
    "AutoPrunedModelForCausalLM",
    "AutoPrunedModelForSeq2SeqLM",
    "Corpus",
    "CorpusConfig",
    "ExportedModelForCausalLM",
    "HubPruneError",
    "Protocol",
    "PruneOnLoadConfig",
    "PrunedModelCardData",
    "PrunerMixin",
    "PruningConfig",
    "PruningReport",
    "RecoveryConfig",
    "SourceConfig",
    "Structured",
    "Unstructured",
    "__version__",
    "compare",
    "evaluate",
    "export",
    "load_corpus",
    "perplexity",
    "plan",
    "prune",
    "publish",
    "publish_export",
    "recover",
    "shrink",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'hubprune' has no attribute {name!r}")
    return getattr(importlib.import_module(f"hubprune.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
