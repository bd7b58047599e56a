"""A check for operators that ONNX does not define for bfloat16."""

import math
from typing import Any

from keras_deepseek.deploy.onnx_passes.import_package import import_package
from keras_deepseek.deploy.onnx_passes.inner_graphs import inner_graphs
from keras_deepseek.errors import InvalidInputError

_BFLOAT16 = "tensor(bfloat16)"
_MAX_SIZE_ELEMENTS = 64
"""The largest number of elements of a tensor that may hold sizes."""


def check_bfloat16(model: Any, latest: int) -> None:
    """Raises an `InvalidInputError` if ONNX does not define a graph's operators for bfloat16.

    The message names them and the first opset, up to `latest`, that has them all.
    """
    opset = next(entry.version for entry in model.opset_import if not entry.domain)
    inference = import_package("onnx.shape_inference")
    typed = inference.infer_shapes(_without_weights(model))
    found = _inputs_in_bfloat16(typed.graph, frozenset())
    lacking = sorted({name for name, place in found if not _has_bfloat16(name, place, opset)})
    if not lacking:
        return
    further = range(opset + 1, latest + 1)
    enough = next((v for v in further if all(_has_bfloat16(*one, v) for one in found)), None)
    advice = f"opset={enough}, which has them, or " if enough else ""
    raise InvalidInputError(
        f"ONNX has no {', '.join(lacking)} in bfloat16 at opset {opset}. Pass "
        f"{advice}precision='float16'."
    )


def _without_weights(model: Any) -> Any:
    """Returns a copy of a model in which large weights are graph inputs, to save memory.

    Small ones stay, since ranks are inferred from stored sizes.
    """
    onnx = import_package("onnx")
    graph = model.graph
    light = onnx.ModelProto(
        ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions
    )
    light.graph.name = graph.name
    light.graph.node.extend(graph.node)
    light.graph.input.extend(graph.input)
    light.graph.output.extend(graph.output)
    light.graph.value_info.extend(graph.value_info)
    given = {value.name for value in graph.input}
    for tensor in graph.initializer:
        if math.prod(tensor.dims) <= _MAX_SIZE_ELEMENTS:
            light.graph.initializer.append(tensor)
        elif tensor.name not in given:
            light.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    return light


def _inputs_in_bfloat16(graph: Any, outer: frozenset[str]) -> set[tuple[str, int]]:
    """Returns the operators with a bfloat16 input, each with the index of that input."""
    brief = import_package("onnx").TensorProto.BFLOAT16
    values = [*graph.input, *graph.output, *graph.value_info]
    names = outer.union(
        (value.name for value in values if value.type.tensor_type.elem_type == brief),
        (tensor.name for tensor in graph.initializer if tensor.data_type == brief),
    )
    found: set[tuple[str, int]] = set()
    for node in graph.node:
        places = [place for place, name in enumerate(node.input) if name in names]
        if not node.domain:
            found |= {(node.op_type, place) for place in places}
        for inner in inner_graphs(node):
            found |= _inputs_in_bfloat16(inner, names)
    return found


def _has_bfloat16(operator: str, place: int, opset: int) -> bool:
    inputs = import_package("onnx").defs.get_schema(operator, opset, "").inputs
    # The last input of a schema may be variadic.
    return _BFLOAT16 in inputs[min(place, len(inputs) - 1)].types
