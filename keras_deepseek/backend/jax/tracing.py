"""Reading numbers off arrays, where JAX has them already."""

from typing import Any

import jax


def read_integer(value: Any) -> int | None:
    """Returns an integer or integer scalar tensor as a number; `None` while it is traced."""
    return None if isinstance(value, jax.core.Tracer) else int(value)


def can_read_shapes(value: Any) -> bool:
    """Whether a tensor's numbers can be read, and shapes may follow from them at no cost."""
    return False  # JAX compiles each operation anew for each shape, also outside of jit.
