"""An exported graph in its runtime: token ids and a cache in, logits and a longer cache out.

The graph is as ``tracing`` describes it. Neither torch nor transformers is needed to run one.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from hubprune.errors import OutputError, UsageError

ONNX_INPUT, ONNX_OUTPUT = "past_key_values.", "present."
QUIET = 3  # onnxruntime's level for errors alone


class State(Protocol):
    """The cache of one generation."""

    length: int

    def reorder(self, rows: np.ndarray) -> None:
        """Take other rows of the batch, ``(batch,)``, as beam search does."""


class Session(Protocol):
    """A graph that is loaded."""

    def start(self, batch: int) -> Any:
        """Return an empty cache for a batch."""

    def run(self, state: Any, ids: np.ndarray, mask: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Run the graph and lengthen the cache.

        Args:
            state: What ``start`` returned.
            ids: New tokens, ``(batch, new)``, int64.
            mask: 0 where a row is padded, ``(batch, past + new)``, int64.
            positions: ``(batch, new)``, int64.

        Returns:
            Logits, ``(batch, new, vocabulary)``, float32.
        """


def open_session(file: str | os.PathLike[str], threads: int | None = None) -> Session:
    """Load an exported graph.

    Args:
        file: ``model.onnx`` or ``openvino_model.xml``, its weights beside it.
        threads: Threads it runs on; None for as many as torch has.

    Raises:
        OutputError: The file is none that the runtime reads.
        UsageError: It is no graph with a cache.
    """
    path = Path(file)
    if threads is None:
        import torch

        threads = torch.get_num_threads()
    return OnnxSession(path, threads) if path.suffix == ".onnx" else OpenVinoSession(path, threads)


class OnnxState:
    """The cache as values of ONNX Runtime, which go from the outputs of a step to the inputs of the next uncopied."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values
        self.length = 0

    def reorder(self, rows: np.ndarray) -> None:
        """Take other rows of the batch."""
        from onnxruntime import OrtValue

        self.values = {name: OrtValue.ortvalue_from_numpy(value.numpy()[rows]) for name, value in self.values.items()}


class OnnxSession:
    """A graph on ONNX Runtime, on the CPU."""

    def __init__(self, path: Path, threads: int) -> None:
        import onnxruntime
        from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidGraph, InvalidProtobuf, NoSuchFile

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = QUIET
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except (Fail, InvalidGraph, InvalidProtobuf, NoSuchFile) as error:
            raise _unreadable(path, error) from error
        self.inputs = [value.name for value in self.session.get_inputs()]
        self.outputs = [value.name for value in self.session.get_outputs()]
        self.cached = {
            value.name: (value.shape[1], value.shape[3])
            for value in self.session.get_inputs()
            if value.name.startswith(ONNX_INPUT)
        }
        if "input_ids" not in self.inputs or not self.cached:
            raise _not_ours(path)

    def start(self, batch: int) -> OnnxState:
        """Return an empty cache for a batch."""
        from onnxruntime import OrtValue

        return OnnxState(
            {
                name: OrtValue.ortvalue_from_numpy(np.zeros((batch, heads, 0, width), np.float32))
                for name, (heads, width) in self.cached.items()
            }
        )

    def run(self, state: OnnxState, ids: np.ndarray, mask: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Run the graph and lengthen the cache; see ``Session.run``."""
        from onnxruntime import OrtValue

        given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        feed = {n: OrtValue.ortvalue_from_numpy(np.ascontiguousarray(a)) for n, a in given.items() if n in self.inputs}
        results = dict(
            zip(self.outputs, self.session.run_with_ort_values(self.outputs, feed | state.values), strict=True)
        )
        state.values = {name: results[name.replace(ONNX_INPUT, ONNX_OUTPUT)] for name in self.cached}
        state.length += ids.shape[1]
        return results["logits"].numpy()


class OpenVinoState:
    """A request whose state is the cache, and the rows that the next step is to take of it."""

    def __init__(self, request: Any, batch: int) -> None:
        self.request = request
        self.rows = np.arange(batch, dtype=np.int32)
        self.length = 0

    def reorder(self, rows: np.ndarray) -> None:
        """Take other rows of the batch."""
        self.rows = self.rows[rows].astype(np.int32)


class OpenVinoSession:
    """A graph on OpenVINO, on the CPU, in the precision it was exported in."""

    def __init__(self, path: Path, threads: int) -> None:
        import openvino

        core = openvino.Core()
        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
        try:
            self.compiled = core.compile_model(core.read_model(str(path)), "CPU", settings)
        except RuntimeError as error:
            raise _unreadable(path, error) from error
        self.inputs = {value.get_any_name() for value in self.compiled.inputs}
        if not {"input_ids", "beam_idx"} <= self.inputs:
            raise _not_ours(path)

    def start(self, batch: int) -> OpenVinoState:
        """Return an empty cache for a batch."""
        return OpenVinoState(self.compiled.create_infer_request(), batch)

    def run(self, state: OpenVinoState, ids: np.ndarray, mask: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Run the graph and lengthen the cache; see ``Session.run``."""
        given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "beam_idx": state.rows}
        feed = {name: np.ascontiguousarray(array) for name, array in given.items() if name in self.inputs}
        logits = state.request.infer(feed)["logits"]
        state.rows = np.arange(len(ids), dtype=np.int32)
        state.length += ids.shape[1]
        return logits


def _unreadable(path: Path, error: Exception) -> OutputError:
    said = " ".join(str(error).split())
    return OutputError(f"{path} cannot be loaded ({said:.300}): export the model again")


def _not_ours(path: Path) -> UsageError:
    return UsageError(
        f"a graph takes input_ids and a cache, and {path} does not: give one that hubprune export has written"
    )
