"""A pass that makes reductions keep their axes, instead of adding them again later.

JAX reduces without keeping axes and broadcasts the result, for which jax2onnx writes six nodes.
"""

from typing import Any

from keras_deepseek.deploy.onnx_passes.graph_view import GraphView, attribute
from keras_deepseek.deploy.onnx_passes.shape_values import read_repeated, read_shape

_REDUCTIONS = ("ReduceSum", "ReduceMean", "ReduceSumSquare", "ReduceMax", "ReduceMin")


def keep_reduced_axes(view: GraphView) -> int:
    """Replaces `Expand(Reshape(Reduce(x, keepdims=0)))` by a `Reduce` with `keepdims=1`.

    Returns the number of replacements. A `Where` with a constant condition is removed, too, if its
    branches have one shape.
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
    reduction = reshape and view.producer(reshape.input[0], *_REDUCTIONS)
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
