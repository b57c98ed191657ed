"""A model traced into one graph that reads a cache and returns it longer; the prompt and later tokens go through it.

The tracing is done by the exporters of transformers. What is ours: one graph instead of one for the prompt and one for
the tokens after it, so that the weights lie on the disk once; names that other programs know (those of optimum and
transformers.js for ONNX, those of optimum-intel and OpenVINO GenAI for OpenVINO); and nothing of this machine in the
file.

A prompt is run with an empty cache. A graph takes ``input_ids`` and ``position_ids``, ``(batch, new)``,
``attention_mask``, ``(batch, past + new)``, 0 where a row is padded, and the cache: for ONNX as
``past_key_values.{layer}.key`` and ``.value``, ``(batch, heads, past, head)``, returned as ``present.{layer}.key`` and
``.value``, ``(batch, heads, past + new, head)``; for OpenVINO as state of the graph itself, whose rows ``beam_idx``,
``(batch,)``, reorders. It returns ``logits``, ``(batch, new, vocabulary)``.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import warnings
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel
from transformers.utils import logging as transformers_logging

from hubprune.architecture import evaluation_mode
from hubprune.errors import UnsupportedModelError

# Sizes of the inputs to trace with. No two are equal, and none is 1, which would be taken for a constant.
BATCH, PAST, NEW = 3, 7, 5
SHORTEST = PAST + NEW


def trace(model: PreTrainedModel, format: str) -> Any:
    """Trace a model.

    Args:
        model: A decoder language model in float32, on the CPU.
        format: ``"onnx"`` or ``"openvino"``.

    Returns:
        The graph: an ``onnx_ir.Model`` or an ``openvino.Model``.

    Raises:
        UnsupportedModelError: The exporter of transformers cannot follow the model.
    """
    from transformers.exporters import OnnxConfig, OnnxExporter, OpenVINOConfig, OpenVINOExporter
    from transformers.exporters.exporter_dynamo import register_cache_pytrees_for_model

    with evaluation_mode(model), quiet():
        inputs, shapes = _example(model)
        register_cache_pytrees_for_model(model)
        try:
            if format == "onnx":
                exported = OnnxExporter().export(model, inputs, OnnxConfig(dynamic=True, dynamic_shapes=shapes))
                return _named(exported.program)
            settings = OpenVINOConfig(dynamic=True, dynamic_shapes=shapes, stateful=True)
            with _unreported():
                return OpenVINOExporter().export(model, inputs, settings).program
        except Exception as error:  # anything may come from five libraries deep
            said = " ".join(str(error).split())
            raise UnsupportedModelError(
                f"the exporter of transformers cannot turn {type(model).__name__} into {format} "
                f"({type(error).__name__}: {said:.300}): try the other format, or publish the weights alone"
            ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what the exporting libraries say about themselves from the user's screen."""
    disabled, verbosity = logging.root.manager.disable, transformers_logging.get_verbosity()
    logging.disable(logging.WARNING)
    transformers_logging.set_verbosity_error()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        transformers_logging.set_verbosity(verbosity)


@contextlib.contextmanager
def _unreported() -> Iterator[None]:
    """Keep OpenVINO's converter from telling its makers what is converted, which it does without asking.

    Where tests run it does not, and that is what it is told; it knows no other switch but a file in the user's home.
    """
    before = os.environ.get("CI")
    os.environ["CI"] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ["CI"]
        else:
            os.environ["CI"] = before


def _example(model: PreTrainedModel) -> tuple[dict[str, Any], dict[str, Any]]:
    """Inputs to trace with, and which of their axes vary."""
    vocabulary = cast(nn.Embedding, model.get_input_embeddings()).num_embeddings
    ids = torch.arange(BATCH * SHORTEST).reshape(BATCH, SHORTEST) % vocabulary
    # Not the cache that the config asks for: where attention looks at a window, that one throws away what is before
    # it, at a length that the graph would take for a constant. The mask keeps to the window just as well.
    cache = DynamicCache()
    with torch.no_grad():
        model(input_ids=ids[:, :PAST], past_key_values=cache, use_cache=True)
    mask = torch.ones_like(ids)
    mask[0, 0] = 0  # without a padded row the mask would be taken for a constant
    inputs = {
        "input_ids": ids[:, PAST:].contiguous(),
        "attention_mask": mask,
        "position_ids": torch.arange(PAST, SHORTEST).repeat(BATCH, 1),
        "past_key_values": cache,
    }
    auto = torch.export.Dim.AUTO
    plane = {0: auto, 1: auto}
    shapes = {name: plane for name in inputs} | {"past_key_values": [{0: auto, 2: auto}] * (2 * len(cache.layers))}
    return inputs, shapes


def _named(program: Any) -> Any:
    """Give an ONNX graph the names that other programs know, and drop where on this machine each node came from."""
    for values, name in ((program.graph.inputs, "past_key_values"), (program.graph.outputs, "present")):
        for value in values:
            match = re.fullmatch(r".*past_key_values\.layers\.(\d+)\.(key|value)s", value.name)
            if match:
                value.name = f"{name}.{match[1]}.{match[2]}"
    for graph in program.graphs():
        graph.metadata_props.clear()
        for node in graph:
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
    program.metadata_props.clear()
    return program
