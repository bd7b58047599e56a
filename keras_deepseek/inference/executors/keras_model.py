"""A live Keras model, compiled by its backend. The only file of this room that reaches Keras."""

import os
from collections.abc import Sequence
from typing import Any

from keras_deepseek import backend
from keras_deepseek.artifacts.signature import Array, Signature
from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.backend.keras_private.keras_file import load_keras_file


class KerasModel:
    """Runs a Keras model in this process: compiled by TensorFlow or JAX, or in PyTorch.

    Args:
        model: `keras.Model` that is built.

    Raises:
        InvalidInputError: It is not a Keras model, or not built.
    """

    def __init__(self, model: Any) -> None:
        named_model = NamedModel(model)
        self._signature = named_model.signature
        self._infer = backend.current().inference.compile_inference(named_model)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        custom_objects_from: Sequence[str | os.PathLike[str]] = (),
    ) -> "KerasModel":
        """Returns an executor for the model in a `.keras` file.

        Args:
            path: The file.
            custom_objects_from: Modules, by name or by `.py` file, that define its custom classes.
                Defaults to `()`.

        Raises:
            InvalidInputError: Keras can't load it.
        """
        return cls(load_keras_file(path, custom_objects_from))

    @property
    def signature(self) -> Signature:
        """The names, shapes and dtypes of the inputs and the outputs."""
        return self._signature

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Returns arrays by output name."""
        return self._infer(inputs)
