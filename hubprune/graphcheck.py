"""What must hold before an exported graph is handed over, measured on its files.

Its logits are those of transformers, for a prompt, for one token more and for several, with a padded row. Each weight
matrix of the decoder blocks is in it bit for bit, so every zero is there; with 8-bit weights, every zero is the
integer that stands for 0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from hubprune.architecture import evaluation_mode, find_matrices, max_length
from hubprune.errors import VerificationError
from hubprune.rounding import PRODUCT, is_float_matrix
from hubprune.session import Session

TOLERANCE = 1e-4  # of the largest logit: float32 summed in another order
INT8_TOLERANCE = 0.2  # of the largest logit: beyond it something is wrong; random weights come to 0.1
PROBE_TOKENS = 32
LONGEST_PROBE = 512  # where attention looks at a window, the probe is longer than that, up to this many tokens
STEPS = (1, 1, 3)  # tokens in each call after the prompt
PADDING = 3  # tokens of the first row
ZERO = 128  # the integer that stands for 0 in MatMulNBits
STRIDE = 7919  # a prime, so that successive ids spread over any vocabulary


def compare_logits(model: PreTrainedModel, session: Session) -> tuple[float, float, int]:
    """Compare a graph with the model it was made from.

    Args:
        model: The model, in float32.
        session: The graph.

    Returns:
        The largest difference as a fraction of the largest logit, the fraction of tokens after which both put the same
        token first, and the number of tokens.
    """
    ids, mask = _probe(model)
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    with evaluation_mode(model), torch.no_grad():
        wanted = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    state, start, parts = session.start(len(ids)), 0, []
    for new in (ids.shape[1] - sum(STEPS), *STEPS):
        stop = start + new
        step = slice(start, stop)
        parts.append(
            np.array(session.run(state, ids[:, step].numpy(), mask[:, :stop].numpy(), positions[:, step].numpy()))
        )
        start = stop
    real = mask.bool()
    got, wanted = torch.from_numpy(np.concatenate(parts, 1))[real], wanted[real]
    difference = float((got - wanted).abs().max() / wanted.abs().max())
    return difference, float((got.argmax(-1) == wanted.argmax(-1)).double().mean()), len(got)


def _probe(model: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Two rows of token ids from a fixed pattern, the first one padded, and their mask."""
    vocabulary = cast(nn.Embedding, model.get_input_embeddings()).num_embeddings
    window = getattr(model.config, "sliding_window", None) or 0
    length = max(PROBE_TOKENS, min(window + PROBE_TOKENS, LONGEST_PROBE))
    length = min(length, max_length(model.config) or length)
    ids = (STRIDE * (torch.arange(2 * length) + 1)).reshape(2, length) % vocabulary
    mask = torch.ones_like(ids)
    mask[0, :PADDING] = 0
    return ids, mask


def judge(name: str, difference: float, tolerance: float) -> None:
    """Refuse a graph whose logits are too far from those of transformers, or no numbers.

    Raises:
        VerificationError: They are.
    """
    if not difference <= tolerance:
        raise VerificationError(
            f"{name} must give the logits of transformers up to {tolerance:g} of the largest, and differs by "
            f"{difference:.2g}: nothing was written; try the other format"
            + (", or export without 8-bit weights" if tolerance == INT8_TOLERANCE else "")
        )


def find_weights(model: PreTrainedModel, file: Path) -> tuple[int, int]:
    """Find every weight matrix of the decoder blocks in a graph in float32, bit for bit.

    Args:
        model: The model.
        file: The graph.

    Returns:
        The number of matrices, and of zeros in them.

    Raises:
        VerificationError: One is not there.
    """
    held = {_digest(array) for _, array in _matrices(file)}
    parameters = {id(m.parameter): (m.parameter_name, m.parameter.detach()) for m in find_matrices(model)}
    lost = []
    for name, tensor in parameters.values():
        if not {_digest(tensor.numpy()), _digest(tensor.transpose(-1, -2).numpy())} & held:
            lost.append(name)
    if lost:
        shown = ", ".join(lost[:3]) + (f" and {len(lost) - 3} more" if len(lost) > 3 else "")
        raise VerificationError(
            f"every weight matrix must be in the graph bit for bit, and {shown} are not: nothing was written; "
            "try the other format"
        )
    return len(parameters), sum(int((tensor == 0).sum()) for _, tensor in parameters.values())


def _digest(array: np.ndarray) -> bytes:
    return hashlib.sha256(repr(array.shape).encode() + np.ascontiguousarray(array).tobytes()).digest()


def _matrices(file: Path) -> Iterator[tuple[str, np.ndarray]]:
    """The constant float32 arrays of two or three axes in a graph, by name, one in memory at a time."""
    if file.suffix == ".onnx":
        import onnx_ir

        for name, value in onnx_ir.load(file).graph.initializers.items():
            tensor = value.const_value
            if tensor is not None and tensor.dtype == onnx_ir.DataType.FLOAT and len(tensor.shape) in (2, 3):
                yield name, tensor.numpy()
        return
    import openvino

    for operation in openvino.Core().read_model(str(file)).get_ordered_ops():
        shape = operation.get_output_shape(0) if operation.get_type_name() == "Constant" else ()
        if len(shape) in (2, 3) and operation.get_element_type().get_type_name() == "f32":
            yield operation.get_friendly_name(), np.asarray(operation.data)


def compare_zeros(full: Path, small: Path) -> int:
    """Hold the zeros of a graph in float32 against the same graph with 8-bit weights.

    Args:
        full: The graph in float32.
        small: The graph with 8-bit weights.

    Returns:
        Weights that are zero in the second one alone.

    Raises:
        VerificationError: A zero of the first one is none in the second, or no matrix has 8-bit weights.
    """
    pairs = _onnx_pairs(full, small) if full.suffix == ".onnx" else _openvino_pairs(full, small)
    matrices = lost = added = 0
    for exact, rounded in pairs:
        matrices += 1
        lost += int((exact & ~rounded).sum())
        added += int((rounded & ~exact).sum())
    if lost or not matrices:
        raise VerificationError(
            f"every zero must stay one with 8-bit weights, and {lost:,} of {matrices:,} matrices did not: nothing was "
            "written; export without 8-bit weights"
        )
    return added


def _onnx_pairs(full: Path, small: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Where each matrix is zero in both graphs, ``(d_out, d_in)``; products are paired by what they feed."""
    import onnx_ir

    exact: Any = onnx_ir.load(full).graph
    rounded: Any = onnx_ir.load(small).graph
    sources = {
        node.outputs[0].name: node.inputs[1].const_value for node in exact if node.op_type in ("MatMul", "Gemm")
    }
    for node in rounded:
        if node.op_type == "MatMulNBits":
            weights = sources[node.outputs[0].name.removesuffix(PRODUCT)].numpy().T
            stored = node.inputs[1].const_value.numpy().reshape(len(weights), -1)
            yield weights == 0, stored[:, : weights.shape[1]] == ZERO


def _openvino_pairs(full: Path, small: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Where each matrix is zero in both graphs; constants are paired by name."""
    import openvino

    model = openvino.Core().read_model(str(full))
    sources = {op.get_friendly_name(): op for op in model.get_ordered_ops() if is_float_matrix(op)}
    for operation in openvino.Core().read_model(str(small)).get_ordered_ops():
        if operation.get_type_name() == "Constant" and operation.get_element_type().get_type_name() == "i8":
            source = sources[operation.get_friendly_name()]
            yield np.asarray(source.data) == 0, np.asarray(operation.data) == 0
