"""Attention of one operation as ONNX nodes."""

import math

from keras_deepseek.deploy.onnx_writer.table.shapes import positions, repeat_axis
from keras_deepseek.deploy.onnx_writer.writer import NoEntryError, Writer, handles
from keras_deepseek.graph.ir import Node, Value

_LOWEST = {"float16": -65500.0}
"""The number, times 0.7, that Keras puts in place of hidden scores, where it is another."""


@handles("DotProductAttention", follows="JAX and TensorFlow, for NaN and a bias that hides all")
def attention(
    writer: Writer,
    node: Node,
    query: Value,
    key: Value,
    value: Value,
    bias: Value | None = None,
    mask: Value | None = None,
    scale: Value | float | None = None,
) -> str:
    """Writes `keras.ops.dot_product_attention`, of tensors `(batch, length, heads, size)`."""
    operation, dtype = node.operation, node.spec.dtype
    if operation.attn_logits_soft_cap is not None:
        raise NoEntryError("attention with a soft cap, which Keras computes on TPUs alone")
    heads, key_heads = query.shape[2], key.shape[2]
    if any(map(writer.is_free, (heads, key_heads, query.shape[3]))) or int(heads) % key_heads:
        raise NoEntryError("attention of a free number of heads")
    groups = int(heads) // int(key_heads)

    def by_head(x: Value, perm: list[int]) -> str:
        name = writer.tensor(x, dtype)
        if groups > 1 and key_heads > 1:  # One head is broadcast.
            name = repeat_axis(writer, name, 2, 4, groups, writer.sizes_of(x))
        return writer.add("Transpose", name, perm=perm)

    factor = 1 / math.sqrt(query.shape[3]) if scale is None else scale
    # The query is shorter than the scores, and its product takes in the factor.
    scaled = writer.add("Mul", writer.tensor(query, dtype), writer.tensor(factor, dtype))
    scaled = writer.add("Transpose", scaled, perm=[0, 2, 1, 3])
    scores = writer.add("MatMul", scaled, by_head(key, [0, 2, 3, 1]))
    if bias is not None:
        scores = writer.add("Add", scores, writer.tensor(bias, dtype))
    is_visible = _visible(writer, query, key, mask, is_causal=operation.is_causal)
    if is_visible is not None:
        low = writer.tensor(_LOWEST.get(dtype, -3.38953e38) * 0.7, dtype)
        scores = writer.add("Where", is_visible, scores, low)
    weights = writer.add("Softmax", scores, axis=-1)
    result = writer.add("MatMul", weights, by_head(value, [0, 2, 1, 3]))
    return writer.add("Transpose", result, perm=[0, 2, 1, 3])


def _visible(
    writer: Writer, query: Value, key: Value, mask: Value | None, *, is_causal: bool
) -> str | None:
    """Returns the name of a tensor that is true where a query sees a key, or `None`."""
    is_visible = None if mask is None else writer.tensor(mask, "bool")
    if not is_causal:
        return is_visible

    queries, keys = (positions(writer, writer.axis_size(x, 1)) for x in (query, key))
    rows = writer.add("Unsqueeze", queries, writer.integers(1))
    is_past = writer.add("GreaterOrEqual", rows, keys)
    if is_visible is not None:
        is_past = writer.add("And", is_visible, is_past)
    return is_past
