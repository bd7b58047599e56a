"""Access to the tensor inside a variable, its layout, and the device that Keras uses."""

from typing import Any

import keras


def raw_value(variable: keras.Variable) -> Any:
    """Returns the tensor inside a variable, or `None` while Keras on JAX holds it elsewhere.

    Unlike `variable.value` it ignores stateless scopes and casts nothing.
    """
    return variable._value


def stored_dtype(variable: keras.Variable) -> str:
    """Returns the dtype in which a variable is stored, whatever it is cast to when it is read."""
    return str(keras.backend.standardize_dtype(variable._dtype))


def set_raw_value(variable: keras.Variable, value: Any) -> None:
    """Replaces the tensor inside a variable, which an assignment would copy."""
    variable._value = value


def place_by_layout(variable: keras.Variable) -> None:
    """Moves a variable to the devices of the active distribution, unless it has a layout."""
    if variable._layout is None:
        variable._initialize_layout()
        variable._direct_assign(variable.value)


def keras_torch_device() -> str:
    """Returns Keras's current PyTorch device, which is `"meta"` while Keras infers shapes."""
    return str(keras.src.backend.torch.core.get_device())
