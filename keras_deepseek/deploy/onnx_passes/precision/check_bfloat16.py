"""A check for operators that ONNX does not define for bfloat16."""

from typing import Any

from keras_deepseek.deploy.onnx_passes.graph_view import infer_graph
from keras_deepseek.deploy.onnx_passes.import_package import import_package
from keras_deepseek.deploy.onnx_passes.inner_graphs import inner_graphs
from keras_deepseek.errors import InvalidInputError

_BFLOAT16 = "tensor(bfloat16)"


def check_bfloat16(model: Any, latest: int) -> None:
    """Raises an `InvalidInputError` if ONNX does not define a graph's operators for bfloat16.

    The message names them and the first opset, up to `latest`, that has them all.
    """
    opset = next(entry.version for entry in model.opset_import if not entry.domain)
    operator_inputs = _inputs_in_bfloat16(infer_graph(import_package("onnx"), model), frozenset())
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
    """Returns the operators with a bfloat16 input, each with the index of that input."""
    brief = import_package("onnx").TensorProto.BFLOAT16
    values = [*graph.input, *graph.output, *graph.value_info]
    names = outer.union(
        (value.name for value in values if value.type.tensor_type.elem_type == brief),
        (tensor.name for tensor in graph.initializer if tensor.data_type == brief),
    )
    operator_inputs: set[tuple[str, int]] = set()
    for node in graph.node:
        indices = [index for index, name in enumerate(node.input) if name in names]
        if not node.domain:
            operator_inputs |= {(node.op_type, index) for index in indices}
        for inner in inner_graphs(node):
            operator_inputs |= _inputs_in_bfloat16(inner, names)
    return operator_inputs


def _has_bfloat16(operator: str, index: int, opset: int) -> bool:
    inputs = import_package("onnx").defs.get_schema(operator, opset, "").inputs
    # The last input of a schema may be variadic.
    return _BFLOAT16 in inputs[min(index, len(inputs) - 1)].types
