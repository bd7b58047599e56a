"""From arrays in a file to variables, on PyTorch."""

from typing import Any

import keras
import numpy as np
import torch

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.data.array_pieces import cut_pieces


def assign_array(variable: keras.Variable, source: Any) -> None:
    """Copies an array, or what is read like one by its indices, into a variable by pieces."""
    target = variable.value
    with torch.no_grad():
        for index in cut_pieces(tuple(target.shape), target.element_size()):
            target[index].copy_(_to_tensor(np.asarray(source[index])))


def unset_initializer() -> Any:
    """Returns the initializer of a variable that is filled before it is read."""
    return "zeros"


def _to_tensor(piece: Array) -> torch.Tensor:
    """Returns a tensor on the memory of an array, if PyTorch can read it as it lies."""
    if not (piece.flags.writeable and piece.flags.aligned and min(piece.strides, default=0) >= 0):
        piece = piece.copy()
    if piece.dtype.name == "bfloat16":  # PyTorch knows no other package's dtypes.
        return torch.from_numpy(piece.view("int16")).view(torch.bfloat16)
    return torch.from_numpy(piece)
