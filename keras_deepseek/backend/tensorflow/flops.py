"""What a computation costs, counted on TensorFlow."""

import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf


def count_flops(function: Callable[..., Any], *args: Any) -> int:
    """Returns the floating-point operations of `function(*args)`, a multiply-add as two."""
    # TensorFlow's own profiler leaves out `Einsum`, and so attention.
    return _count(tf.function(function).get_concrete_function(*args).graph)


def _count(graph: Any) -> int:
    return sum(_count_operation(operation, graph) for operation in graph.get_operations())


def _count_operation(operation: Any, graph: Any) -> int:
    kind = operation.type
    if kind in ("MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3"):
        transposed = operation.get_attr("transpose_a" if kind == "MatMul" else "adj_x")
        summed = _shape(operation.inputs[0])[-2 if transposed else -1]
        return 2 * math.prod(_shape(operation.outputs[0])) * summed
    if kind == "Einsum":
        return _count_einsum(operation)
    if kind in ("Conv2D", "Conv3D", "DepthwiseConv2dNative"):
        kernel = _shape(operation.inputs[1])
        weights = math.prod(kernel[:-2] if kind.startswith("Depthwise") else kernel[:-1])
        return 2 * math.prod(_shape(operation.outputs[0])) * weights
    # How often the body of a loop runs is not known, so it counts once.
    return sum(_count(inner) for inner in _inner(operation, graph))


def _count_einsum(operation: Any) -> int:
    equation = operation.get_attr("equation").decode()
    sizes: dict[str, int] = {}
    for labels, tensor in zip(equation.split("->")[0].split(","), operation.inputs, strict=True):
        before, ellipsis, after = labels.partition("...")
        shape = _shape(tensor)
        sizes.update(zip(before, shape, strict=False))
        if after:
            sizes.update(zip(after, shape[-len(after) :], strict=True))
        if ellipsis:
            kept = shape[len(before) : len(shape) - len(after)]
            sizes["..."] = max(math.prod(kept), sizes.get("...", 1))
    # With one input it moves numbers about, or sums them.
    return (2 if len(operation.inputs) > 1 else 0) * math.prod(sizes.values())


def _inner(operation: Any, graph: Any) -> list[Any]:
    attributes = [operation.get_attr(name) for name in operation.node_def.attr]
    names = [value.name for value in attributes if isinstance(value, tf.compat.v1.NameAttrList)]
    return [graph._get_function(name).graph for name in names]


def _shape(tensor: Any) -> list[int]:
    return [size or 0 for size in tensor.shape.as_list()]
