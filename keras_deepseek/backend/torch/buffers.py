"""What a model holds beside Keras's variables: the buffers of PyTorch's modules inside it."""

import keras
import torch

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.keras_private.keras_internals import flatten_layers


def read_buffers(model: keras.Model) -> dict[str, Array]:
    """Returns what a model holds beside Keras's variables, as copies by name."""
    return {
        name: keras.ops.convert_to_numpy(buffer).copy() for name, buffer in _buffers(model).items()
    }


def write_buffers(model: keras.Model, buffers: dict[str, Array]) -> None:
    """Puts what a model holds beside Keras's variables to what was read before."""
    with torch.no_grad():
        for name, buffer in _buffers(model).items():
            buffer.copy_(keras.ops.convert_to_tensor(buffers[name]))


def _buffers(model: keras.Model) -> dict[str, torch.Tensor]:
    """Returns the buffers by the place of their layer: Keras counts the names of layers up."""
    return {
        f"{index}/{name}": buffer
        for index, layer in enumerate(flatten_layers(model))
        for name, buffer in layer.named_buffers()
    }
