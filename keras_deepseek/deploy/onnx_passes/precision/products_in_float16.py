"""A pass that computes products and convolutions in float16 instead of float32.

TensorRT-RTX has no such products in float32 for GPUs of compute capability 7.5 (Turing). An export
in float16 leaves an output layer that ends in softmax in float32. This pass computes its product in
float16, and leaves its softmax in float32.
"""

from typing import Any

from keras_deepseek.deploy.onnx_passes.import_package import import_package
from keras_deepseek.deploy.onnx_passes.inner_graphs import inner_graphs

_OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum")


def products_in_float16(model: Any) -> Any:
    """Returns a graph whose float32 products compute in float16, between `Cast` nodes."""
    onnx = import_package("onnx")
    inferred = onnx.shape_inference.infer_shapes(model)
    _change(onnx, inferred.graph, set())
    return inferred


def _change(onnx: Any, graph: Any, outer: set[str]) -> None:
    """Converts the float32 products of a graph to float16, in place.

    `outer` are the float32 tensors of the graphs around it.
    """
    full = onnx.TensorProto.FLOAT
    values = (*graph.input, *graph.output, *graph.value_info)
    floats = outer | {value.name for value in values if value.type.tensor_type.elem_type == full}
    floats |= {tensor.name for tensor in graph.initializer if tensor.data_type == full}
    nodes = list(graph.node)
    del graph.node[:]
    for index, node in enumerate(nodes):
        for inner in inner_graphs(node):
            _change(onnx, inner, floats)
        if node.op_type in _OPERATORS and node.output[0] in floats:
            graph.node.extend(_between_casts(onnx, node, f"{node.output[0]}__half_{index}"))
        else:
            graph.node.append(node)


def _between_casts(onnx: Any, node: Any, name: str) -> list[Any]:
    """Returns a product node in float16, with the `Cast` nodes before and after it."""
    half, full = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    casts = []
    for index, tensor in enumerate(node.input):
        if tensor:  # An absent bias has no name.
            node.input[index] = f"{name}_{index}"
            casts.append(onnx.helper.make_node("Cast", [tensor], [node.input[index]], to=half))
    after = onnx.helper.make_node("Cast", [name], [node.output[0]], to=full)
    node.output[0] = name
    return [*casts, node, after]
