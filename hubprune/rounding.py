"""The weights of an exported graph as 8-bit integers: a zero is a zero still.

Rounding is symmetric, ``w ~ q * scale`` with ``q`` in -127..127 and no offset, so 0 is stored as the integer that
stands for 0, and N:M groups keep their pattern. The rest of the computation stays in float32.

For ONNX each 32 weights of a row share a scale, and the product is one operator of ONNX Runtime (``MatMulNBits``),
whose kernel rounds activations to 8 bits as well while it multiplies. For OpenVINO each row of a matrix has a scale,
embeddings included, in the form its CPU plugin multiplies with directly. The library that is often used there (NNCF)
tells its makers what it is used on, and is not needed for this.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hubprune.tracing import quiet

BITS = 8
GROUP = 32  # weights that share a scale in an ONNX graph
INT8_PRODUCTS = 4  # "accuracy_level" of MatMulNBits: activations are rounded to 8 bits in the product
LARGEST = 127
PRODUCT = "_product"  # what the name of a product ends with that was taken apart from its bias
EXTERNAL_BYTES = 1024  # what is smaller stays in the ONNX file itself


def round_onnx(source: Path, target: Path) -> None:
    """Write an ONNX graph with 8-bit weights.

    Args:
        source: The graph in float32.
        target: The new file; its weights go beside it, to ``NAME.onnx_data``.
    """
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    model = onnx.load(source)
    _split_gemms(model.graph)
    with quiet():
        quantizer = MatMulNBitsQuantizer(
            model, bits=BITS, block_size=GROUP, is_symmetric=True, accuracy_level=INT8_PRODUCTS
        )
        quantizer.process()
    onnx.save(
        quantizer.model.model,
        target,
        save_as_external_data=True,
        location=f"{target.name}_data",
        size_threshold=EXTERNAL_BYTES,
    )


def _split_gemms(graph: Any) -> None:
    """Write products with a bias as a product and a sum: only products are rounded."""
    from onnx import helper

    nodes = []
    for node in graph.node:
        settings = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        plain = all(settings.get(name, 1.0) == 1.0 for name in ("alpha", "beta"))
        if node.op_type != "Gemm" or not plain or settings.get("transA") or settings.get("transB"):
            nodes.append(node)
            continue
        bias = node.input[2:]
        name = f"{node.output[0]}{PRODUCT}" if bias else node.output[0]
        nodes.append(helper.make_node("MatMul", node.input[:2], [name], name=f"{node.name}{PRODUCT}"))
        if bias:
            nodes.append(helper.make_node("Add", [name, *bias], node.output, name=f"{node.name}_sum"))
    del graph.node[:]
    graph.node.extend(nodes)


def round_openvino(source: Path, target: Path) -> None:
    """Write an OpenVINO graph with 8-bit weights.

    Args:
        source: The graph in float32, an ``.xml`` file.
        target: The new file; its weights go beside it, to ``NAME.bin``.
    """
    import openvino
    from openvino import opset13

    model = openvino.Core().read_model(str(source))
    for constant in model.get_ordered_ops():
        if not is_float_matrix(constant):
            continue
        users = constant.output(0).get_target_inputs()
        kinds = {user.get_node().get_type_name() for user in users}
        if not kinds or not kinds <= {"MatMul", "Gather"}:
            continue
        weights = np.asarray(constant.data)
        along = 0 if any(_is_read_by_columns(user) for user in users) else 1
        scales = np.abs(weights).max(axis=along, keepdims=True) / np.float32(LARGEST)
        scales = np.where(scales > 0, scales, np.float32(1)).astype(np.float32)
        rounded = opset13.constant(np.rint(weights / scales).astype(np.int8))
        rounded.set_friendly_name(constant.get_friendly_name())
        product = opset13.multiply(opset13.convert(rounded, "f32"), opset13.constant(scales))
        for user in users:
            user.replace_source_output(product.output(0))
    openvino.save_model(model, str(target), compress_to_fp16=False)


def is_float_matrix(operation: Any) -> bool:
    """Whether an operation of an OpenVINO graph is a constant matrix in float32."""
    if operation.get_type_name() != "Constant" or len(operation.get_output_shape(0)) != 2:
        return False
    return operation.get_element_type().get_type_name() == "f32"


def _is_read_by_columns(user: Any) -> bool:
    """Whether a product takes the matrix as ``(d_in, d_out)``, so that a column belongs to one output."""
    node = user.get_node()
    return node.get_type_name() == "MatMul" and not node.get_attributes()["transpose_b"]
