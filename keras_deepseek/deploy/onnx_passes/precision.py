"""Passes that change the precision in which an ONNX graph computes.

All exporters write float16, but not all write bfloat16. The two graphs differ only by dtype.

int8 is for products and convolutions, calibrated on the user's data. Weights and activations are
rounded symmetrically about zero, as TensorRT requires, between QuantizeLinear and DequantizeLinear
nodes. Other operators stay in float32: with them, the products of an attention lose more than they
gain. Weights have 7 bits. A processor without VNNI adds pairs of products in 16 bits, which 8-bit
weights overflow, and an artifact verified on one processor must be right on others.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_deepseek.artifacts.signature import Batch
from keras_deepseek.artifacts.staging_folder import temporary_folder
from keras_deepseek.deploy.onnx_passes.graph_view import import_package, infer_graph, inner_graphs
from keras_deepseek.errors import InvalidInputError

_BFLOAT16 = "tensor(bfloat16)"
_FLOAT16_OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum")
_INT8_OPERATORS = ["Conv", "MatMul", "Gemm"]
_IS_SIMPLIFIED = ("onnx.quant.pre_process", "onnxruntime.quant")
"""Metadata without which onnxruntime advises to simplify the graph first."""


def to_bfloat16(graph: Any) -> None:
    """Replaces the dtype float16 by bfloat16 in a graph and its subgraphs, in place."""
    onnx = import_package("onnx")
    half, brief = onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16

    def change_tensor(tensor: Any) -> None:
        if tensor.data_type == half:
            array = onnx.numpy_helper.to_array(tensor).astype(np.float32)
            dtype = onnx.helper.tensor_dtype_to_np_dtype(brief)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array.astype(dtype), tensor.name))

    for tensor in graph.initializer:
        change_tensor(tensor)
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == half:
            value.type.tensor_type.elem_type = brief
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype") and attribute.i == half:
                attribute.i = brief
            if attribute.HasField("t"):
                change_tensor(attribute.t)
        for inner in inner_graphs(node):
            to_bfloat16(inner)


def check_bfloat16(model: Any, latest: int) -> None:
    """Raises an `InvalidInputError` if ONNX does not define a graph's operators for bfloat16.

    The message names them and the first opset, up to `latest`, that has them all.
    """
    opset = next(entry.version for entry in model.opset_import if not entry.domain)
    operator_inputs = _inputs_in_bfloat16(infer_graph(model), frozenset())
    lacking = sorted(
        {name for name, index in operator_inputs if not _has_bfloat16(name, index, opset)}
    )
    if not lacking:
        return
    further = range(opset + 1, latest + 1)
    enough = next(
        (v for v in further if all(_has_bfloat16(*pair, v) for pair in operator_inputs)), None
    )
    advice = f"opset={enough}, which has them, or " if enough else ""
    raise InvalidInputError(
        f"ONNX has no {', '.join(lacking)} in bfloat16 at opset {opset}. Pass "
        f"{advice}precision='float16'."
    )


def _inputs_in_bfloat16(graph: Any, outer: frozenset[str]) -> set[tuple[str, int]]:
    """Returns the bfloat16 inputs by operator and index; `outer` names outer bfloat16 tensors."""
    names = outer | _names_of_type(graph, import_package("onnx").TensorProto.BFLOAT16)
    operator_inputs: set[tuple[str, int]] = set()
    for node in graph.node:
        indices = [index for index, name in enumerate(node.input) if name in names]
        if not node.domain:
            operator_inputs |= {(node.op_type, index) for index in indices}
        for inner in inner_graphs(node):
            operator_inputs |= _inputs_in_bfloat16(inner, names)
    return operator_inputs


def _names_of_type(graph: Any, element_type: int) -> frozenset[str]:
    """Returns the names of a graph's tensors of an ONNX element type."""
    values = (*graph.input, *graph.output, *graph.value_info)
    names = {value.name for value in values if value.type.tensor_type.elem_type == element_type}
    weights = {tensor.name for tensor in graph.initializer if tensor.data_type == element_type}
    return frozenset(names | weights)


def _has_bfloat16(operator: str, index: int, opset: int) -> bool:
    inputs = import_package("onnx").defs.get_schema(operator, opset, "").inputs
    # The last input of a schema may be variadic.
    return _BFLOAT16 in inputs[min(index, len(inputs) - 1)].types


def products_in_float16(model: Any) -> Any:
    """Returns a graph whose float32 products compute in float16, between `Cast` nodes."""
    onnx = import_package("onnx")
    inferred = onnx.shape_inference.infer_shapes(model)
    _change(inferred.graph, frozenset())
    return inferred


def _change(graph: Any, outer: frozenset[str]) -> None:
    """Converts the float32 products of a graph to float16, in place.

    `outer` are the float32 tensors of the graphs around it.
    """
    floats = outer | _names_of_type(graph, import_package("onnx").TensorProto.FLOAT)
    nodes = list(graph.node)
    del graph.node[:]
    for index, node in enumerate(nodes):
        for inner in inner_graphs(node):
            _change(inner, floats)
        if node.op_type in _FLOAT16_OPERATORS and node.output[0] in floats:
            graph.node.extend(_between_casts(node, f"{node.output[0]}__half_{index}"))
        else:
            graph.node.append(node)


def _between_casts(node: Any, name: str) -> list[Any]:
    onnx = import_package("onnx")
    half, full = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    casts = []
    for index, tensor in enumerate(node.input):
        if tensor:  # An absent bias has no name.
            node.input[index] = f"{name}_{index}"
            casts.append(onnx.helper.make_node("Cast", [tensor], [node.input[index]], to=half))
    after = onnx.helper.make_node("Cast", [name], [node.output[0]], to=full)
    node.output[0] = name
    return [*casts, node, after]


def quantize(model: Any, batches: Sequence[Batch]) -> Any:
    """Returns a float32 graph with int8 products, calibrated on the user's batches."""
    onnx = import_package("onnx")
    quantization = import_package("onnxruntime.quantization")
    remaining = iter(batches)

    class Reader(quantization.CalibrationDataReader):  # type: ignore[name-defined]
        def get_next(self) -> Batch | None:
            return next(remaining, None)

    with temporary_folder("keras_deepseek_int8") as folder:
        source_path, quantized_path = folder / "given.onnx", folder / "made.onnx"
        # A copy with a mark, so that onnxruntime gives no advice. The result loses the mark again.
        marked = onnx.ModelProto()
        marked.CopyFrom(model)
        marked.metadata_props.add(key=_IS_SIMPLIFIED[0], value=_IS_SIMPLIFIED[1])
        onnx.save(marked, source_path)
        quantization.quantize_static(
            source_path,
            quantized_path,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=_INT8_OPERATORS,
            per_channel=True,
            reduce_range=True,
            activation_type=quantization.QuantType.QInt8,
            weight_type=quantization.QuantType.QInt8,
            extra_options={"ActivationSymmetric": True, "WeightSymmetric": True},
        )
        quantized = onnx.load(quantized_path)
    for index, entry in reversed(list(enumerate(quantized.metadata_props))):
        if entry.key == _IS_SIMPLIFIED[0]:
            del quantized.metadata_props[index]
    return quantized
