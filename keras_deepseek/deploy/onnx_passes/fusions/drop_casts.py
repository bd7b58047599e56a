"""A pass that removes casts undone by a later cast, and reductions of axes of size 1."""

from typing import Any

from keras_deepseek.deploy.onnx_passes.graph_view import GraphView, attribute

_REDUCTIONS = ("ReduceMax", "ReduceMin", "ReduceSum", "ReduceMean", "ReduceProd")
_HELD_BY = {
    "BOOL": ("UINT8", "INT8", "INT32", "INT64", "FLOAT16", "BFLOAT16", "FLOAT", "DOUBLE"),
    "INT8": ("INT16", "INT32", "INT64", "FLOAT16", "FLOAT", "DOUBLE"),
    "UINT8": ("INT16", "UINT16", "INT32", "UINT32", "INT64", "FLOAT16", "FLOAT", "DOUBLE"),
    "INT16": ("INT32", "INT64", "FLOAT", "DOUBLE"),
    "INT32": ("INT64", "DOUBLE"),
    "FLOAT16": ("FLOAT", "DOUBLE"),
    "BFLOAT16": ("FLOAT", "DOUBLE"),
    "FLOAT": ("DOUBLE",),
}
"""For each type the types that can represent all of its numbers."""


def drop_casts(view: GraphView) -> int:
    """Replaces `Cast(Cast(x))` by `x` if the types are equal and the first cast is lossless.

    Returns the number of replacements. Reductions of axes of size 1 are removed first, since they
    may stand between the casts.
    """
    return view.rewrite(_skip_reduction, *_REDUCTIONS) + view.rewrite(_skip_casts, "Cast")


def _skip_reduction(view: GraphView, node: Any) -> list[Any] | None:
    shape = view.shape(node.input[0])
    axes = attribute(node, "axes")
    if len(node.input) > 1:
        axes = view.constant(node.input[1])
    if shape is None or axes is None or not len(axes) or not attribute(node, "keepdims", 1):
        return None
    if any(shape[int(axis)] != 1 for axis in axes):
        return None
    return view.replace_uses(node.output[0], node.input[0])


def _skip_casts(view: GraphView, node: Any) -> list[Any] | None:
    inner = view.producer(node.input[0], "Cast")
    if inner is None:
        return None
    name_of = view.onnx.TensorProto.DataType.Name
    source_dtype = view.dtype(inner.input[0])
    is_back = source_dtype and attribute(node, "to") == source_dtype
    if not is_back or name_of(attribute(inner, "to")) not in _HELD_BY.get(
        name_of(source_dtype), ()
    ):
        return None
    return view.replace_uses(node.output[0], inner.input[0])
