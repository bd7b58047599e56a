"""The largest numbers of many."""

from typing import Any

import jax
import jax.numpy as jnp


def top_k(values: Any, k: int) -> tuple[Any, Any]:
    """Returns the largest of the last axis and int32 indices; of the least, the first ones."""
    # JAX takes a negative zero for less than a zero.
    indices = jax.lax.top_k(jnp.where(values == 0, 0, values), k)[1]
    return jnp.take_along_axis(values, indices, axis=-1), indices


def fuses_attention(query: Any) -> bool:
    """Whether `ops.dot_product_attention` is faster than scores, softmax and sums apart."""
    return False  # XLA has none on a CPU, and what Keras calls there is slower.


def query_block_size(query: Any) -> int:
    """Returns how many queries of a long causal sequence are computed together."""
    return 256
