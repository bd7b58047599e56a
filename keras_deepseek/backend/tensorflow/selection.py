"""The largest numbers of many."""

from typing import Any

import keras


def top_k(values: Any, k: int) -> tuple[Any, Any]:
    """Returns the largest of the last axis and int32 indices; of the least, the first ones."""
    largest, indices = keras.ops.top_k(values, k)
    return largest, keras.ops.cast(indices, "int32")


def fuses_attention(query: Any) -> bool:
    """Whether `ops.dot_product_attention` is faster than scores, softmax and sums apart."""
    return False  # What Keras calls here are the same three.


def query_block_size(query: Any) -> int:
    """Returns how many queries of a long causal sequence are computed together."""
    return 256
