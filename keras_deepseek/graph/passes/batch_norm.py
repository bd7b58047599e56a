"""Folds batch normalization into the convolution or product before it, in inference."""

import math
from collections.abc import Callable
from typing import Any

import keras

from keras_deepseek.graph.ir import WEIGHT, Changes, Graph, Node, Rewrite, Value
from keras_deepseek.graph.trace import record

_FOLDED_INTO = ("Conv", "DepthwiseConv", "Matmul")


def fold_batch_norms(graph: Graph, training: bool) -> Changes:
    """Scales the kernel instead of the outputs, at each call from the current weights.

    The last axis must be that of the channels. Nothing is done in training, where the statistics
    depend on the outputs.
    """
    if training:
        return
    users = graph.users()
    for node in graph.nodes():
        folded = _fold(node, users)
        if folded is not None:
            layers = (_producer(node.args[0]).layer, node.layer)
            rewrite = Rewrite(layers, "folded BatchNormalization into the kernel")
            yield node, [folded], rewrite


def _producer(value: Value) -> Node:
    return value.node.args[0].node if value.node.kind == "Add" else value.node


def _fold(node: Node, users: dict[Value, list[Node | None]]) -> Value | None:
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
    by_kernel = scale
    if producer.kind == "DepthwiseConv":
        by_kernel = make(ops.reshape, scale, kernel.shape[-2:])
    centre = mean if bias is None else make(ops.subtract, mean, bias)
    shift = make(ops.multiply, centre, scale)
    shift = make(ops.negative, shift) if beta is None else make(ops.subtract, beta, shift)
    args = (producer.args[0], make(ops.multiply, kernel, by_kernel), *producer.args[2:])
    scaled = Node(
        producer.kind, producer.outputs, producer.operation, args, producer.kwargs, producer.layer
    )
    return make(ops.add, Value(scaled), shift)
