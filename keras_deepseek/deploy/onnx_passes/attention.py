"""Fusion passes for attention: masks as a sum, and ONNX's `Attention` operator of opset 23.

A mask seldom has an axis for heads or queries; scores have both. Keras chooses between the score
and a large negative number. After the softmax it chooses between the probability and 0, which
matters only for rows without a key. A pass sets the outputs of these rows to 0 instead: there are
fewer outputs than probabilities.

onnxruntime runs `Attention` as fast as the separate operators. Opset 25 has its own version of the
operator, for which onnxruntime 1.32 has no kernel: it runs fifty nodes instead, which take 1.4 to
2.6 times as long. At opset 25, attention is not fused.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from keras_deepseek.deploy.onnx_passes.graph_view import GraphView, attribute, in_both_orders

_NO_SCORE = 1e9
"""The least magnitude of a mask value next to which a score vanishes.

In rows where all keys have it, differences of scores may remain."""

_NOTHING_LEFT = 1e30
"""The magnitude from which on no differences remain in such rows either."""

_OPSETS = (23, 24)
_RANK = 4


def add_masks(view: GraphView) -> int:
    """Replaces `Where` nodes around an attention softmax by adding the mask to the scores."""
    mask_tensors: dict[tuple[str, float], str] = {}
    return view.rewrite(lambda view, product: _add_mask(view, product, mask_tensors), "MatMul")


def _add_mask(
    view: GraphView, product: Any, mask_tensors: dict[tuple[str, float], str]
) -> list[Any] | None:
    """Replaces the `Where` nodes around the softmax whose result `product` multiplies by values.

    `Where(mask, softmax(Where(mask, scores, hidden_score)), 0) @ values` becomes
    `Where(any, softmax(scores + bias) @ values, 0)`. The outer `Where` may be missing in both.
    `mask_tensors` has each `bias` by mask and hidden score, and each `any` by mask and 0.
    """
    zeroing = view.producer(product.input[0], "Where")
    probabilities = product.input[0] if zeroing is None else zeroing.input[1]
    softmax = view.producer(probabilities, "Softmax")
    choice = view.producer(softmax.input[0], "Where") if softmax is not None else None
    if choice is None or not _gives_the_same(view, zeroing, softmax, choice):
        return None
    replaced = [node for node in (zeroing, softmax, choice) if node is not None]
    mask, scores, hidden_score = choice.input
    shape = view.shape(mask)
    if not view.are_only_used_within(replaced, product) or shape is None:
        return None
    if len(shape) > len(view.shape(scores) or ()):
        return None
    output, values = product.output[0], product.input[1]
    zero = view.add_weight(np.array(0.0, "float32"), "no_mask")
    nodes: list[Any] = []

    def add(op_type: str, inputs: list[str], name: str) -> str:
        nodes.append(view.node(op_type, inputs, name))
        return name

    number = view.scalar(hidden_score) or 0.0
    if (mask, number) not in mask_tensors:
        mask_tensors[mask, number] = add("Where", [mask, zero, hidden_score], f"{output}__bias")
    masked = add("Add", [scores, mask_tensors[mask, number]], f"{output}__masked")
    probabilities = add("Softmax", [masked], f"{output}__softmax")
    nodes[-1].attribute.extend(softmax.attribute)
    if zeroing is None:
        add("MatMul", [probabilities, values], output)
        return nodes
    attended = add("MatMul", [probabilities, values], f"{output}__attended")
    if (mask, 0.0) not in mask_tensors:
        mask_tensors[mask, 0.0] = f"{output}__any"
        nodes += _find_any(view, mask, f"{output}__any")
    add("Where", [mask_tensors[mask, 0.0], attended, zero], output)
    return nodes


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


def _find_any(view: GraphView, mask: str, output: str) -> list[Any]:
    """Returns nodes that compute, for each row of scores, whether its mask leaves a key visible."""
    numbers, most = f"{output}_numbers", f"{output}_most"
    axes = view.add_weight(np.array([-1], "int64"), "last_axis")
    return [
        view.node("Cast", [mask], numbers, to=view.onnx.TensorProto.FLOAT),
        view.node("ReduceMax", [numbers, axes], most),
        view.node("Cast", [most], output, to=view.onnx.TensorProto.BOOL),
    ]


@dataclass
class _Scores:
    product: Any
    scale: float = 1.0
    mask: str = ""
    nodes: list[Any] = field(default_factory=list)


def fuse_attention(view: GraphView) -> int:
    """Replaces scaled dot-product attention by `Attention`."""
    if view.opset not in _OPSETS:
        return 0
    return view.rewrite(_fuse, "MatMul")


def _fuse(view: GraphView, last: Any) -> list[Any] | None:
    """Returns the nodes in place of an attention whose weighted sum of values is `last`."""
    softmax = view.producer(last.input[0], "Softmax")
    if softmax is None or attribute(softmax, "axis", -1) not in (-1, _RANK - 1):
        return None
    scores = _find_scores(view, softmax.input[0])
    if scores is None or not view.are_only_used_within([softmax, *scores.nodes], last):
        return None
    queries, keys = scores.product.input
    shapes = [view.shape(name) for name in (queries, keys, last.input[1])]
    float_types = (view.onnx.TensorProto.FLOAT, view.onnx.TensorProto.FLOAT16)
    if any(shape is None or len(shape) != _RANK for shape in shapes):
        return None
    if view.dtype(queries) not in float_types or not _is_same_batch(*shapes):
        return None
    prefix = last.output[0]
    keys, key_nodes = _turn_keys(view, keys, f"{prefix}__keys")
    inputs, mask_nodes = [queries, keys, last.input[1]], []
    if scores.mask:
        if view.dtype(scores.mask) != view.dtype(queries):
            return None
        mask_nodes = _expand_mask(view, scores.mask, queries, keys, prefix)
        inputs.append(mask_nodes[-1].output[0])
    fused = view.node("Attention", inputs, prefix, scale=scores.scale)
    return [*key_nodes, *mask_nodes, fused]


def _find_scores(view: GraphView, name: str) -> _Scores | None:
    """Returns how attention scores are computed: queries, keys, factor and mask.

    A factor of queries or keys alone stays where it is.
    """
    product = view.producer(name, "MatMul")
    if product is not None:
        return _Scores(product, nodes=[product])
    scaled = view.producer(name, "Mul", "Div")
    if scaled is not None:
        product = view.producer(scaled.input[0], "MatMul")
        factor = view.scalar(scaled.input[1])
        if product is None and scaled.op_type == "Mul":
            product, factor = view.producer(scaled.input[1], "MatMul"), view.scalar(scaled.input[0])
        if product is None or not factor or factor < 0:
            return None
        scale = factor if scaled.op_type == "Mul" else 1 / factor
        return _Scores(product, scale, nodes=[scaled, product])
    total = view.producer(name, "Add")
    for inner, mask in in_both_orders(total) if total is not None else ():
        scores = _find_scores(view, inner)
        shape = view.shape(mask)
        if scores is not None and not scores.mask and shape is not None and len(shape) <= _RANK:
            return _Scores(scores.product, scores.scale, mask, [total, *scores.nodes])
    return None


def _is_same_batch(queries: Any, keys: Any, values: Any) -> bool:
    heads = queries[1]
    if not isinstance(heads, int) or keys[1] != heads or values[1] != heads:
        return False
    return not any(isinstance(size, int) and size != queries[0] for size in (keys[0], values[0]))


def _turn_keys(view: GraphView, name: str, output: str) -> tuple[str, list[Any]]:
    """Returns transposed keys in the order of `Attention`, and the node for it if one is needed."""
    transpose = view.producer(name, "Transpose")
    order, source = [0, 1, 3, 2], name
    if transpose is not None:
        permutation = list(attribute(transpose, "perm", [3, 2, 1, 0]))
        source, order = transpose.input[0], [permutation[axis] for axis in order]
    if order == sorted(order):
        return source, []
    return output, [view.node("Transpose", [source], output, perm=order)]


def _expand_mask(view: GraphView, mask: str, queries: str, keys: str, prefix: str) -> list[Any]:
    """Returns the nodes that expand a mask to all queries and keys, as onnxruntime requires."""
    sizes: list[str] = []
    nodes = []
    for name in (queries, keys):
        sizes.append(f"{prefix}__length_{len(sizes)}")
        nodes.append(view.node("Shape", [name], sizes[-1], start=2, end=3))
    shape = f"{prefix}__mask_shape"
    nodes.append(view.node("Concat", sizes, shape, axis=0))
    nodes.append(view.node("Expand", [mask, shape], f"{prefix}__mask"))
    return nodes
