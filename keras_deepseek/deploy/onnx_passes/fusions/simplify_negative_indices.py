"""A pass that removes Keras's handling of negative indices before a `Gather`.

Keras's `take`, which an `Embedding` uses, adds the number of rows to negative indices first.
"""

from typing import Any

from keras_deepseek.deploy.onnx_passes.graph_view import GraphView, attribute, in_both_orders


def simplify_negative_indices(view: GraphView) -> int:
    """Replaces `Gather(x, Where(indices < 0, indices + n, indices))` if `x` has `n` rows.

    Returns the number of replacements. Indices from `-n` to `n - 1` give the same. Others are
    errors in the backends, and in onnxruntime as well. Those from `-2 n` to `-n - 1` were no error
    in onnxruntime before, and are one afterwards.
    """
    return view.rewrite(_gather, "Gather")


def _gather(view: GraphView, node: Any) -> list[Any] | None:
    data, indices = node.input
    choice = view.producer(indices, "Where")
    shape = view.shape(data)
    axis = attribute(node, "axis", 0)
    if choice is None or shape is None or not -len(shape) <= axis < len(shape):
        return None
    condition, added, plain = choice.input
    if not _is_negative(view, condition, plain) or not _is_added(view, added, plain, shape[axis]):
        return None
    return [view.node("Gather", [data, plain], node.output[0], axis=axis)]


def _is_negative(view: GraphView, condition: str, indices: str) -> bool:
    """Returns True if a tensor is `indices < 0`, possibly with casts that keep the sign."""
    less = view.producer(condition, "Less")
    if less is None or view.scalar(less.input[1]) != 0.0:
        return False
    types = view.onnx.TensorProto
    cast = view.producer(less.input[0], "Cast")
    if cast is None or less.input[0] == indices:
        return bool(less.input[0] == indices)
    is_wide = attribute(cast, "to") in (types.FLOAT, types.DOUBLE, types.INT64)
    return is_wide and cast.input[0] == indices


def _is_added(view: GraphView, name: str, indices: str, size: int | str | None) -> bool:
    """Returns True if a tensor is the indices plus a given size."""
    node = view.producer(name, "Add")
    if node is None or not isinstance(size, int):
        return False
    return any(
        tensor == indices and view.scalar(number) == size for tensor, number in in_both_orders(node)
    )
