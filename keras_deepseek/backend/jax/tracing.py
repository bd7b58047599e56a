"""Reading numbers off arrays, where JAX has them already."""

from typing import Any

import jax


def read_integer(value: Any) -> int | None:
    """Returns an integer or integer scalar tensor as a number; `None` while it is traced."""
    return None if isinstance(value, jax.core.Tracer) else int(value)
