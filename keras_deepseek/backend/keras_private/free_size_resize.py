"""A fix of Keras's `ops.image.resize` for graphs with axes of any size."""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras

from keras_deepseek.backend.keras_private.temporary_attributes import temporary_attributes


@contextlib.contextmanager
def fixed_resize() -> Iterator[None]:
    """Context manager in which `ops.image.resize` accepts a computed size.

    Keras checks that it is positive, which a symbol of a graph can't answer.
    """
    resize, operations = keras.ops.image.resize, keras.src.ops.image

    def resize_to_any(images: Any, size: Any, *arguments: Any, **options: Any) -> Any:
        if arguments or all(isinstance(side, int) for side in size):
            return resize(images, size, *arguments, **options)
        return operations.Resize(size, **options).call(images)

    with (
        temporary_attributes(keras.ops.image, resize=resize_to_any),
        temporary_attributes(operations, resize=resize_to_any),
    ):
        yield
