"""Passes that remove nodes without effect on the outputs: casts, repeated axes, index checks."""

from typing import Any

from keras_deepseek.deploy.onnx_passes.fusions.sizes import read_repeated, read_shape
from keras_deepseek.deploy.onnx_passes.graph_view import GraphView, attribute, in_both_orders

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

_REDUCTIONS_OF_JAX = ("ReduceSum", "ReduceMean", "ReduceSumSquare", "ReduceMax", "ReduceMin")


def drop_casts(view: GraphView) -> int:
    """Replaces `Cast(Cast(x))` by `x` if the types are equal and the first cast is lossless.

    Reductions of axes of size 1 are removed first, since they may stand between the casts.
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


def simplify_negative_indices(view: GraphView) -> int:
    """Replaces `Gather(x, Where(indices < 0, indices + n, indices))` if `x` has `n` rows.

    An `Embedding` writes it. Indices from `-n` to `n - 1` give the same. Others are errors in the
    backends, and in onnxruntime as well. Those from `-2 n` to `-n - 1` were no error in onnxruntime
    before, and are one afterwards.
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
    node = view.producer(name, "Add")
    if node is None or not isinstance(size, int):
        return False
    return any(
        tensor == indices and view.scalar(number) == size for tensor, number in in_both_orders(node)
    )


def keep_reduced_axes(view: GraphView) -> int:
    """Replaces `Expand(Reshape(Reduce(x, keepdims=0)))` by a `Reduce` with `keepdims=1`.

    JAX reduces without keeping axes, for which jax2onnx writes six nodes. A `Where` with a constant
    condition is removed, too, if its branches have one shape.
    """
    return view.rewrite(_reduce, "Expand") + view.rewrite(_choose, "Where")


def _reduce(view: GraphView, node: Any) -> list[Any] | None:
    reduction = _find_reduction(view, node)
    if reduction is None:
        return None
    new = view.node(reduction.op_type, list(reduction.input), node.output[0])
    new.attribute.extend(entry for entry in reduction.attribute if entry.name != "keepdims")
    return [new]


def _choose(view: GraphView, node: Any) -> list[Any] | None:
    chosen = _find_chosen(view, node)
    return view.replace_uses(node.output[0], chosen) if chosen else None


def _find_reduction(view: GraphView, expand: Any) -> Any:
    """Returns the reduction whose removed axes a `Reshape` and an `Expand` add again."""
    reshape = view.producer(expand.input[0], "Reshape")
    reduction = reshape and view.producer(reshape.input[0], *_REDUCTIONS_OF_JAX)
    if not reduction or attribute(reduction, "keepdims", 1) or len(reduction.input) < 2:  # noqa: PLR2004
        return None
    shape, axes = view.shape(reduction.input[0]), view.constant(reduction.input[1])
    if shape is None or axes is None or not axes.size:
        return None
    reduced = {int(axis) % len(shape) for axis in axes}
    remaining_axes = [axis for axis in range(len(shape)) if axis not in reduced]
    sizes = read_shape(view, reshape.input[1])
    put_back = read_shape(view, expand.input[1])
    if sizes is None or put_back is None or len(sizes) != len(shape) or len(put_back) != len(shape):
        return None
    for axis, size in enumerate(shape):
        output_size = (
            (reduction.output[0], remaining_axes.index(axis)) if axis not in reduced else 1
        )
        allowed_sizes = (1,) if axis in reduced else (size, output_size)
        num_unknown = sizes.count(-1)
        if put_back[axis] not in allowed_sizes:
            return None
        if sizes[axis] not in allowed_sizes and (sizes[axis] != -1 or num_unknown > 1):
            return None
    return reduction


def _find_chosen(view: GraphView, where: Any) -> str:
    """Returns the branch of a `Where` with a constant condition; `""` if shapes may differ."""
    condition, *branches = where.input
    chosen = view.constant(condition)
    if chosen is None or chosen.size != 1 or chosen.ndim:
        return ""
    name, other = branches if bool(chosen) else reversed(branches)
    return name if read_repeated(view, other, name) is not None else ""
