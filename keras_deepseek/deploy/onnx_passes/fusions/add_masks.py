"""A fusion pass that adds attention masks to the scores, instead of `Where` on the scores.

A mask seldom has an axis for heads or queries; scores have both. Keras chooses between the score
and a large negative number. After the softmax it chooses between the probability and 0, which
matters only for rows without a key. There, this pass sets the outputs to 0, which are smaller
again.
"""

from typing import Any

import numpy as np

from keras_deepseek.deploy.onnx_passes.graph_view import GraphView, attribute
from keras_deepseek.deploy.onnx_passes.shape_values import read_repeated

_NO_SCORE = 1e9
"""The least magnitude of a mask value next to which a score vanishes.

In rows where all keys have it, differences of scores may remain."""

_NOTHING_LEFT = 1e30
"""The magnitude from which on no differences remain in such rows either."""


def add_masks(view: GraphView) -> int:
    """Replaces `Where` nodes around an attention softmax by adding the mask to the scores.

    Returns the number of changed attentions.
    """
    mask_tensors: dict[tuple[str, float], str] = {}
    return view.rewrite(lambda view, product: _add_mask(view, product, mask_tensors), "MatMul")


def _add_mask(
    view: GraphView, product: Any, mask_tensors: dict[tuple[str, float], str]
) -> list[Any] | None:
    zeroing = view.producer(product.input[0], "Where")
    softmax = view.producer(
        zeroing.input[1] if zeroing is not None else product.input[0], "Softmax"
    )
    choice = view.producer(softmax.input[0], "Where") if softmax is not None else None
    if choice is None or not _gives_the_same(view, zeroing, softmax, choice):
        return None
    inner = [node for node in (zeroing, softmax, choice) if node is not None]
    mask, scores, least = choice.input
    mask = _without_ones(view, mask, scores)
    shape = view.shape(mask)
    if not view.are_only_used_within(inner, product) or shape is None:
        return None
    if len(shape) > len(view.shape(scores) or ()):
        return None
    output = product.output[0]
    zero = view.add_weight(np.array(0.0, "float32"), "no_mask")
    names = [f"{output}__{name}" for name in ("bias", "masked", "softmax", "attended", "any")]
    bias, masked, probabilities, attended, any_name = names
    nodes = []
    number = view.scalar(least) or 0.0
    if (mask, number) not in mask_tensors:
        mask_tensors[mask, number] = bias
        nodes.append(view.node("Where", [mask, zero, least], bias))
    nodes.append(view.node("Add", [scores, mask_tensors[mask, number]], masked))
    nodes.append(view.node("Softmax", [masked], probabilities))
    nodes[-1].attribute.extend(softmax.attribute)
    if zeroing is None:
        return [*nodes, view.node("MatMul", [probabilities, product.input[1]], output)]
    nodes.append(view.node("MatMul", [probabilities, product.input[1]], attended))
    if (mask, 0.0) not in mask_tensors:
        mask_tensors[mask, 0.0] = any_name
        nodes += _find_any(view, mask, any_name)
    return [*nodes, view.node("Where", [mask_tensors[mask, 0.0], attended, zero], output)]


def _gives_the_same(view: GraphView, zeroing: Any, softmax: Any, choice: Any) -> bool:
    """Returns True if masked scores get no weight in both forms, `Where` and addition."""
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
    """Returns a mask without the operand of `And` that is true everywhere."""
    both = view.producer(mask, "And")
    for other, expanded in (both.input, reversed(both.input)) if both is not None else ():
        value = read_repeated(view, expanded, scores)
        if value is not None and value.all():
            return str(other)
    return mask


def _find_any(view: GraphView, mask: str, output: str) -> list[Any]:
    """Returns the nodes that compute for each row of scores if the mask leaves any key visible."""
    numbers, most = f"{output}_numbers", f"{output}_most"
    axes = view.add_weight(np.array([-1], "int64"), "last_axis")
    is_input = view.opset >= 18  # noqa: PLR2004 - since then, the axes are an input
    options = {} if is_input else {"axes": [-1]}
    return [
        view.node("Cast", [mask], numbers, to=view.onnx.TensorProto.FLOAT),
        view.node("ReduceMax", [numbers, axes] if is_input else [numbers], most, **options),
        view.node("Cast", [most], output, to=view.onnx.TensorProto.BOOL),
    ]
