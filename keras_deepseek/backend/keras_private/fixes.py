"""Fixes of Keras's operations and layers, for symbols and free axes."""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
from keras import ops
from keras.src.layers import layer as layer_module
from keras.src.ops.nn import BatchNorm
from keras.src.ops.node import Node
from keras.src.ops.numpy import GetItem

from keras_deepseek.backend.keras_private.temporary_attributes import temporary_attributes


@contextlib.contextmanager
def fixed_batch_norm() -> Iterator[None]:
    """Context manager in which `ops.batch_normalization` takes symbols without a scale.

    Keras 3.15 fails on those with an offset. A scale of ones computes the same bits.
    """
    with temporary_attributes(BatchNorm, symbolic_call=_symbolic_call):
        yield


def _symbolic_call(
    self: BatchNorm, x: Any, mean: Any, variance: Any, offset: Any = None, scale: Any = None
) -> Any:
    if scale is None:
        scale = ops.ones(mean.shape, mean.dtype)
    return keras.Operation.symbolic_call(self, x, mean, variance, offset, scale)


@contextlib.contextmanager
def fixed_layer_outputs() -> Iterator[None]:
    """Context manager in which a layer that is called on symbols may have `None` among its outputs.

    Keras 3.15 takes them from tensors only.
    """
    with temporary_attributes(layer_module, Node=_node_of_layer):
        yield


def _node_of_layer(outputs: Any, **kwargs: Any) -> Node:
    tensors = [tensor for tensor in keras.tree.flatten(outputs) if tensor is not None]
    return Node(outputs=tensors, **kwargs)


@contextlib.contextmanager
def fixed_get_item() -> Iterator[None]:
    """Context manager in which a symbol takes `None` or a slice alone in brackets.

    Keras 3.15 takes them in a tuple only.
    """
    with temporary_attributes(GetItem, symbolic_call=_get_item):
        yield


def _get_item(self: GetItem, x: Any, key: Any) -> Any:
    is_alone = key is None or key is Ellipsis or isinstance(key, slice)
    return keras.Operation.symbolic_call(self, x, (key,) if is_alone else key)


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


@contextlib.contextmanager
def fixed_time_distributed() -> Iterator[None]:
    """Context manager in which `TimeDistributed` applies its layer to all steps at once.

    For a free length, Keras applies it to as many steps as there are rows on TensorFlow, and fails
    on JAX. Steps don't depend on each other, so the result is the same.
    """
    with temporary_attributes(keras.layers.TimeDistributed, call=_call):
        yield


def _call(
    self: keras.layers.TimeDistributed, inputs: Any, training: bool | None = None, mask: Any = None
) -> Any:
    """Applies `TimeDistributed`'s inner layer to all time steps as rows of one batch."""
    arguments: dict[str, Any] = {}
    if self.layer._call_has_mask_arg and mask is not None:
        arguments["mask"] = _join(mask)
    if self.layer._call_has_training_arg:
        arguments["training"] = training
    outputs = self.layer.call(_join(inputs), **arguments)
    num_rows, length, *_ = ops.shape(inputs)
    return ops.reshape(outputs, (num_rows, length, *ops.shape(outputs)[1:]))


def _join(x: Any) -> Any:
    """Merges the batch axis and the time axis of a tensor."""
    num_rows, length, *sizes = ops.shape(x)
    return ops.reshape(x, (num_rows * length, *sizes))
