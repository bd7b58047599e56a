"""Reading numbers off arrays, where JAX has them already."""

from typing import Any

import jax
import numpy as np

from keras_deepseek.artifacts.signature import Array


def read_integer(value: Any) -> int | None:
    """Returns an integer or integer scalar tensor as a number; `None` while it is traced."""
    return None if isinstance(value, jax.core.Tracer) else int(value)


def read_array(value: Any) -> Array | None:
    """Returns a tensor's numbers where the host holds them; `None` where it must wait.

    A number that is only traced, or that an accelerator has yet to compute, is waited for.
    """
    if not isinstance(value, jax.Array) or isinstance(value, jax.core.Tracer):
        return None
    is_here = all(device.platform == "cpu" for device in value.devices())
    return np.asarray(value) if is_here and value.is_fully_addressable else None


def can_read_shapes(value: Any) -> bool:
    """Whether a tensor's numbers can be read, and shapes may follow from them at no cost."""
    return False  # JAX compiles each operation anew for each shape, also outside of jit.
