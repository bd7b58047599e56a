"""Passes that fold a batch normalization into a kernel, and fuse attention into one operation."""

import math
from collections.abc import Callable
from typing import Any

import keras

from keras_deepseek import backend
from keras_deepseek.graph.ir import WEIGHT, Changes, Graph, Node, Rewrite, Spec, Value
from keras_deepseek.graph.passes.axes import operation_axes
from keras_deepseek.graph.passes.contraction import as_product, is_contraction
from keras_deepseek.graph.trace import record

_FOLDED_INTO = ("Conv", "DepthwiseConv", "Matmul")


def fuse_attention(graph: Graph, training: bool) -> Changes:
    """Replaces `softmax(Q K) V` by one operation, if the framework is faster with it.

    PyTorch is, where the scores are larger than queries and keys. The scores are then not kept in
    memory either. Works in inference and training.
    """
    if not backend.current().compute.has_attention_kernel():
        return
    users = graph.users()
    for node in graph.nodes():
        fused = _fuse_attention(node, users) if is_contraction(node) else None
        if fused is not None:
            text = "computes scores, softmax and weighted sum in one operation"
            yield node, [fused], Rewrite((node.layer,), text)


def _fuse_attention(node: Node, users: dict[Value, list[Node | None]]) -> Value | None:
    """Returns one attention in place of the weighted sum `node`; `None` if that can't pay."""
    weighted = as_product(node)
    if weighted is None or len(weighted.operands) != 2:
        return None
    weights, value = weighted.operands
    softmax = weights.node
    if softmax.kind != "Softmax" or len(weights.shape) != 4 or operation_axes(softmax) != [3]:
        return None
    scores = softmax.args[0]
    if len(users[weights]) != 1 or len(users[scores]) != 1:
        return None
    product = as_product(scores.node)
    factors: list[Any] = []
    # The scores may be a product times scalar factors.
    if product is not None and product.factors:
        (scores,), factors = product.operands, product.factors
        product = as_product(scores.node) if len(users[scores]) == 1 else None
    if product is None or len(product.operands) != 2 or product.factors:
        return None

    # b: batch, h: heads, t: queries, s: keys, by the labels of the scores.
    b, h, t, s = list(product.out)
    pairs = list(zip(product.operands, product.labels, strict=True))
    pairs.sort(key=lambda pair: s in pair[1])  # The query has no label for keys: it comes first.
    (query, query_labels), (key, key_labels) = pairs
    inner = [label for label in query_labels if label not in product.out]
    if len(inner) != 1 or set(query_labels) != {b, h, t, *inner}:
        return None
    if set(key_labels) != {b, h, s, *inner}:
        return None
    sizes = product.sizes()
    if sizes[t] * sizes[s] <= (sizes[t] + sizes[s]) * sizes[inner[0]]:
        return None  # The scores are small. Keeping them costs no more than the one operation.
    # The labels of the weighted sum, renamed to those of the scores.
    names = dict(zip(weighted.labels[0], product.out, strict=True))
    value_labels = [names.get(label, "value") for label in weighted.labels[1]]
    out = [names.get(label, "value") for label in weighted.out]
    if sorted(value_labels) != sorted([b, h, s, "value"]):
        return None
    if sorted(out) != sorted([b, h, t, "value"]):
        return None

    def arrange(tensor: Value, labels: list[str], target_labels: list[str]) -> Value:
        if labels == target_labels:
            return tensor
        axes = [labels.index(label) for label in target_labels]
        return record(keras.ops.transpose, tensor, axes, layer=node.layer)

    query = arrange(query, list(query_labels), [b, t, h, *inner])
    for factor in factors:
        query = record(keras.ops.multiply, query, factor, layer=node.layer)
    heads = record(
        keras.ops.dot_product_attention,
        query,
        arrange(key, list(key_labels), [b, s, h, *inner]),
        arrange(value, value_labels, [b, s, h, "value"]),
        mask=softmax.kwargs.get("mask", softmax.args[1] if len(softmax.args) > 1 else None),
        scale=1.0,
        layer=node.layer,
    )
    # Keras gives the output the last size of the query.
    heads.node.outputs[0] = Spec(
        (*query.shape[:3], value.shape[value_labels.index("value")]), node.spec.dtype
    )
    return arrange(heads, [b, t, h, "value"], out)


def fold_batch_norms(graph: Graph, training: bool) -> Changes:
    """Folds batch normalizations: scales the kernel, at each call, instead of the outputs.

    The last axis must be that of the channels. Nothing is done in training, where the statistics
    depend on the outputs.
    """
    if training:
        return
    users = graph.users()
    for node in graph.nodes():
        folded = _fold_batch_norm(node, users)
        if folded is not None:
            layers = (_producer_before_bias(node.args[0]).layer, node.layer)
            rewrite = Rewrite(layers, "folded BatchNormalization into the kernel")
            yield node, [folded], rewrite


def _producer_before_bias(value: Value) -> Node:
    return value.node.args[0].node if value.node.kind == "Add" else value.node


def _fold_batch_norm(node: Node, users: dict[Value, list[Node | None]]) -> Value | None:
    """Returns the value of `x (K scale) + shift` in place of the normalization of `x K + bias`.

    `scale` is `gamma / sqrt(variance + epsilon)`, and `shift` is `beta - (mean - bias) scale`. The
    result is `None` if `node` is no such normalization, or if its outputs are smaller than `K`.
    """
    if node.kind != "BatchNorm" or node.kwargs:
        return None
    x, mean, variance, beta, gamma = (*node.args, None, None)[:5]
    rank = len(x.shape)
    if node.operation.axis % rank != rank - 1 or len(users[x]) != 1:
        return None
    product, bias = x, None
    if x.node.kind == "Add":
        product, added = x.node.args[:2]
        if not (isinstance(product, Value) and isinstance(added, Value)):
            return None
        bias = added.node.args[0] if added.node.kind == "Reshape" else added
        if bias.node.kind != WEIGHT or bias.shape != mean.shape or len(users[product]) != 1:
            return None
    producer = product.node
    if producer.kind not in _FOLDED_INTO or not isinstance(producer.args[1], Value):
        return None
    kernel = producer.args[1]
    # At each call the kernel is scaled in place of the outputs.
    if kernel.node.kind != WEIGHT or math.prod(kernel.shape) > math.prod(x.shape):
        return None

    def make(function: Callable[..., Any], *args: Any) -> Value:
        return record(function, *args, layer=node.layer)

    ops = keras.ops
    scale = make(ops.rsqrt, make(ops.add, variance, node.operation.epsilon))
    if gamma is not None:
        scale = make(ops.multiply, scale, gamma)
    kernel_scale = scale
    if producer.kind == "DepthwiseConv":
        kernel_scale = make(ops.reshape, scale, kernel.shape[-2:])
    centre = mean if bias is None else make(ops.subtract, mean, bias)
    shift = make(ops.multiply, centre, scale)
    shift = make(ops.negative, shift) if beta is None else make(ops.subtract, beta, shift)
    args = (producer.args[0], make(ops.multiply, kernel, kernel_scale), *producer.args[2:])
    scaled = Node(
        producer.kind, producer.outputs, producer.operation, args, producer.kwargs, producer.layer
    )
    return make(ops.add, Value(scaled), shift)
