"""Keras layers that attach a mask to a tensor, or record the mask of a tensor."""

from typing import Any

import keras

from keras_deepseek.artifacts.signature import Array


class AttachMask(keras.Layer):
    """A layer that returns its input with a given mask attached, like `Masking`.

    Args:
        mask: Boolean array.
    """

    def __init__(self, mask: Array) -> None:
        super().__init__()
        self.given_mask = mask

    def call(self, inputs: Any) -> Any:
        return inputs

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        return keras.ops.convert_to_tensor(self.given_mask)


class RecordMask(keras.Layer):
    """A layer that returns its input, and stores the input's mask in `mask`."""

    def __init__(self) -> None:
        super().__init__()
        self.supports_masking = True
        self.mask: Array | None = None

    def call(self, inputs: Any, mask: Any = None) -> Any:
        self.mask = None if mask is None else keras.ops.convert_to_numpy(mask)
        return inputs
