"""Adds a mask to the scores of an attention, instead of choosing by it in tensors of their size.

A mask has seldom an axis for the heads or for the queries, scores have both. Keras chooses between
score and a large negative number, and after the softmax between probability and 0, which matters
for rows without a key alone: there the outputs are chosen to be 0, which are smaller again.
"""

from typing import Any

import numpy as np

from keras_deepseek.deploy.onnx_passes.graph_view import GraphView, attribute, drop_unused
from keras_deepseek.deploy.onnx_passes.shape_values import read_shape

_NO_SCORE = 1e9
"""Beside it no score counts, but in a row where all have it something may be left of them."""

_NOTHING_LEFT = 1e30


def add_masks(model: Any) -> int:
    """Replaces the choices around a softmax where the result is the same.

    Args:
        model: `onnx.ModelProto`, changed in place.

    Returns:
        How many attentions were changed.
    """
    view = GraphView(model)
    num_replaced = 0
    made: dict[tuple[str, float], str] = {}
    for product in view.nodes("MatMul"):
        num_replaced += _add_mask(view, product, made)
    drop_unused(model.graph)
    return num_replaced


def _add_mask(view: GraphView, product: Any, made: dict[tuple[str, float], str]) -> bool:
    zeroing = view.maker(product.input[0], "Where")
    softmax = view.maker(zeroing.input[1] if zeroing is not None else product.input[0], "Softmax")
    choice = view.maker(softmax.input[0], "Where") if softmax is not None else None
    if choice is None or not _gives_the_same(view, zeroing, softmax, choice):
        return False
    inner = [node for node in (zeroing, softmax, choice) if node is not None]
    mask, scores, least = choice.input
    small = _without_ones(view, mask, scores)
    shape = view.shape(small)
    if not view.are_inner(inner, product) or shape is None:
        return False
    if len(shape) > len(view.shape(scores) or ()):
        return False
    _write(view, product, zeroing, softmax, choice, small, view.scalar(least) or 0.0, made)
    return True


def _gives_the_same(view: GraphView, zeroing: Any, softmax: Any, choice: Any) -> bool:
    """Returns whether nothing is left of a score that the mask hides."""
    mask, scores, least = choice.input
    shape, number = view.shape(scores), view.scalar(least)
    if shape is None or number is None or view.dtype(scores) != view.onnx.TensorProto.FLOAT:
        return False
    if attribute(softmax, "axis", -1) not in (-1, len(shape) - 1):
        return False
    if zeroing is None:
        return number <= -_NOTHING_LEFT
    is_same_mask = zeroing.input[0] == mask and view.scalar(zeroing.input[2]) == 0.0
    return is_same_mask and number <= -_NO_SCORE


def _without_ones(view: GraphView, mask: str, scores: str) -> str:
    """Returns what of a mask is left without one that is true everywhere in the scores' shape."""
    both = view.maker(mask, "And")
    for other, expanded in (both.input, reversed(both.input)) if both is not None else ():
        expand = view.maker(expanded, "Expand")
        constant = view.constant(expand.input[0]) if expand is not None else None
        if constant is None or not np.all(constant) or constant.size != 1:
            continue
        sizes, shape = read_shape(view, expand.input[1]), view.shape(scores) or []
        if (
            sizes is not None
            and len(sizes) == len(shape)
            and all(
                given in (size, (scores, axis))
                for axis, (given, size) in enumerate(zip(sizes, shape, strict=True))
            )
        ):
            return str(other)
    return mask


def _write(
    view: GraphView,
    product: Any,
    zeroing: Any,
    softmax: Any,
    choice: Any,
    mask: str,
    number: float,
    made: dict[tuple[str, float], str],
) -> None:
    zero = view.add_weight(np.array(0.0, "float32"), "no_mask")
    bias = made.get((mask, number))
    before = []
    if bias is None:
        bias = made[mask, number] = f"{choice.output[0]}__bias"
        before.append(view.node("Where", [mask, zero, choice.input[2]], bias))
    masked = f"{choice.output[0]}__masked"
    before.append(view.node("Add", [choice.input[1], bias], masked))
    view.replace(choice, before)
    softmax.input[0] = masked
    if zeroing is None:
        return
    any_name = made.get((mask, 0.0))
    after = []
    if any_name is None:
        any_name = made[mask, 0.0] = f"{choice.output[0]}__any"
        numbers, most = f"{any_name}_numbers", f"{any_name}_most"
        axes = view.add_weight(np.array([-1], "int64"), "last_axis")
        is_input = view.opset >= 18  # noqa: PLR2004 - where the axes became an input
        options = {} if is_input else {"axes": [-1]}
        after = [
            view.node("Cast", [mask], numbers, to=view.onnx.TensorProto.FLOAT),
            view.node("ReduceMax", [numbers, axes] if is_input else [numbers], most, **options),
            view.node("Cast", [most], any_name, to=view.onnx.TensorProto.BOOL),
        ]
    attended = f"{product.output[0]}__attended"
    after.append(view.node("MatMul", [softmax.output[0], product.input[1]], attended))
    after.append(view.node("Where", [any_name, attended, zero], product.output[0]))
    view.replace(product, after)
