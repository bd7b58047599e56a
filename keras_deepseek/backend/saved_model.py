"""A SavedModel as a function of NumPy arrays: TensorFlow alone, without Keras."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from keras_deepseek.artifacts.errors import InvalidInputError, MissingExtraError
from keras_deepseek.artifacts.signature import Array


def load_saved_model(path: Path) -> Callable[[dict[str, Array]], dict[str, Array]]:
    """Returns the `serving_default` signature of a SavedModel, from and to dicts by name.

    Args:
        path: The folder that holds `saved_model.pb`.

    Raises:
        MissingExtraError: TensorFlow is not installed.
        InvalidInputError: The folder holds no SavedModel, or one without `serving_default`.
    """
    tf = import_tensorflow("to run a SavedModel")
    try:
        loaded = tf.saved_model.load(str(path))
        serve = loaded.signatures["serving_default"]
    except (OSError, KeyError) as error:
        raise InvalidInputError(
            f"No SavedModel with a `serving_default` signature at {str(path)!r}: {error}."
        ) from error

    def infer(inputs: dict[str, Array]) -> dict[str, Array]:
        tensors = {name: tf.convert_to_tensor(array) for name, array in inputs.items()}
        return {name: tensor.numpy() for name, tensor in serve(**tensors).items()}

    # The signature lives as long as the object that it was loaded with.
    infer.loaded = loaded  # type: ignore[attr-defined]
    return infer


def import_tensorflow(purpose: str) -> Any:
    """Returns TensorFlow.

    Args:
        purpose: string. What it is needed for, as in "to run a SavedModel".

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import tensorflow as tf
    except ImportError as error:
        raise MissingExtraError("tensorflow", "tensorflow", purpose) from error
    return tf
