"""Keras's `ops.image.resize` in graphs whose sizes are free."""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras

from keras_deepseek.backend.keras_private.lent_attributes import lent_attributes


@contextlib.contextmanager
def mended_resize() -> Iterator[None]:
    """Has `ops.image.resize` take a size that is computed, as bilinear `UpSampling2D` gives it.

    Keras asks whether it is positive, which no symbol of a graph answers.
    """
    resize, operations = keras.ops.image.resize, keras.src.ops.image

    def resize_to_any(images: Any, size: Any, *arguments: Any, **options: Any) -> Any:
        if arguments or all(isinstance(each, int) for each in size):
            return resize(images, size, *arguments, **options)
        return operations.Resize(size, **options).call(images)

    with (
        lent_attributes(keras.ops.image, resize=resize_to_any),
        lent_attributes(operations, resize=resize_to_any),
    ):
        yield
