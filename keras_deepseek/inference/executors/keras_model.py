"""Live Keras models and `.keras` files.

Beside `text_model`, this is the only module of `inference` that needs Keras.
"""

import functools
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from keras_deepseek import backend
from keras_deepseek.artifacts.bundle import Bundle
from keras_deepseek.artifacts.signature import Array, Signature
from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.backend.keras_private.keras_file import load_keras_file
from keras_deepseek.graph.known_code import find_unrecordable_layer
from keras_deepseek.inference.executors.executor import Executor
from keras_deepseek.models.config_model import ConfigModel


class KerasModel(Executor):
    """Runs a built Keras model in this process: compiled by TensorFlow or JAX, or in PyTorch."""

    def __init__(self, model: Any, threads: int | None = None) -> None:
        if threads is not None:
            backend.current().devices.limit_threads(threads)
        if isinstance(model, ConfigModel):
            model.mapped_weights.copy_all()  # A recorded call would not check the files.
        named_model = NamedModel(model)
        self._signature = named_model.signature
        find_reason = functools.partial(find_unrecordable_layer, named_model.model)
        self._infer = backend.current().inference.compile_inference(named_model, find_reason)

    @classmethod
    def from_bundle(
        cls,
        bundle: Bundle,
        custom_objects_from: Sequence[str | PathLike[str]] = (),
        threads: int | None = None,
    ) -> "KerasModel":
        return cls.from_path(bundle.entry, custom_objects_from, threads)

    @classmethod
    def from_path(
        cls,
        path: Path,
        custom_objects_from: Sequence[str | PathLike[str]] = (),
        threads: int | None = None,
    ) -> "KerasModel":
        """Loads a `.keras` file."""
        if threads is not None:  # TensorFlow's can't be changed once it has variables.
            backend.current().devices.limit_threads(threads)
        return cls(load_keras_file(path, custom_objects_from))

    @property
    def signature(self) -> Signature:
        return self._signature

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        return self._infer(inputs)
