"""Runs LiteRT models without Keras: `deploy` verifies with it, `inference` serves with it."""

import contextlib
import threading
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.runtimes.saved_model import import_tensorflow
from keras_deepseek.errors import InvalidInputError, MissingExtraError


class LiteRTModel:
    """A LiteRT model on the CPU, from a `.tflite` file with one signature.

    The interpreter allocates its tensors anew where a batch has other shapes than the last one.
    Several threads may call it: one after the other computes. It computes with `threads` threads,
    or with one, LiteRT's default.
    """

    def __init__(self, path: Path, purpose: str, threads: int | None = None) -> None:
        interpreter = import_interpreter(purpose)
        self._lock = threading.Lock()
        try:
            with interpreter_of_tensorflow():
                self._interpreter = interpreter(str(path), num_threads=threads)
            (names,) = self._interpreter.get_signature_list().values()
            self._run = self._interpreter.get_signature_runner()
            details = self._run.get_input_details()
        except (RuntimeError, ValueError) as error:
            words = " ".join(str(error).split())
            raise InvalidInputError(
                f"LiteRT can't load {str(path)!r}: {words} Export it again."
            ) from error
        self.input_names: list[str] = names["inputs"]
        self.output_names: list[str] = names["outputs"]
        # A free size is -1.
        self._shapes = {name: details[name]["shape_signature"] for name in self.input_names}

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Runs the LiteRT model on a batch; returns arrays by output name."""
        shapes = {name: array.shape for name, array in inputs.items()}
        if not self._takes(shapes):
            raise InvalidInputError(
                f"LiteRT refuses a batch of {shapes}; the file takes "
                f"{ {name: tuple(shape.tolist()) for name, shape in self._shapes.items()} }, where "
                "-1 is any size."
            )
        try:
            with self._lock:
                outputs: dict[str, Array] = self._run(**inputs)
        except (RuntimeError, ValueError) as error:
            words = " ".join(str(error).split())
            raise InvalidInputError(f"LiteRT refuses a batch of {shapes}: {words}") from error
        return outputs

    def _takes(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Returns whether fixed sizes fit: LiteRT itself would compute something with others."""
        return shapes.keys() == self._shapes.keys() and all(
            len(shape) == len(self._shapes[name])
            and all(
                size in (expected, -1)
                for size, expected in zip(self._shapes[name], shape, strict=True)
            )
            for name, shape in shapes.items()
        )


@contextlib.contextmanager
def interpreter_of_tensorflow() -> Iterator[None]:
    """Context manager in which TensorFlow does not warn that its interpreter is deprecated.

    It goes to the package `ai-edge-litert`.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"\s*Warning: tf.lite.Interpreter is deprecated")
        yield


def import_interpreter(purpose: str) -> Any:
    """Returns the class of LiteRT's interpreter, from its own package or from TensorFlow.

    `purpose` is for the error message, such as "to serve LiteRT".
    """
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        try:
            return import_tensorflow(purpose).lite.Interpreter
        except MissingExtraError as error:
            raise MissingExtraError("ai-edge-litert", "litert", purpose) from error
    return Interpreter
