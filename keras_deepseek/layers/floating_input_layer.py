"""Base class of layers that take floating-point inputs."""

from typing import Any

import keras

from keras_deepseek.layers.input_check import check_floating


class FloatingInputLayer(keras.Layer):
    """A layer that raises an error if its inputs are not a floating-point tensor.

    The check runs before `build` and `input_spec`, for eager and symbolic inputs. Those know only
    shapes and would report a different error for `None` or for token ids.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if args or "inputs" in kwargs:  # Otherwise Keras reports that they are missing.
            check_floating(args[0] if args else kwargs["inputs"], self.name)
        return super().__call__(*args, **kwargs)
