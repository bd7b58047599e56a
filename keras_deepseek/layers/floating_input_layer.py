"""What all layers of hidden states are: they compute with floating-point numbers alone."""

from typing import Any

import keras

from keras_deepseek.layers.input_check import check_floating


class FloatingInputLayer(keras.Layer):
    """A layer that refuses inputs which are no floating-point tensor, eager and symbolic ones.

    The check is ahead of `build` and of the `input_spec`, which know shapes alone: they would say
    of `None`, or of a token id too many, something else.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if args or "inputs" in kwargs:  # Else Keras says that they are missing.
            check_floating(args[0] if args else kwargs["inputs"], self.name)
        return super().__call__(*args, **kwargs)
