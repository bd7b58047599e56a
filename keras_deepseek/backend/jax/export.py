"""JAX's own ways out of Keras: none yet, so `deploy` goes through a TensorFlow process."""

from keras_deepseek.artifacts.errors import NotSupportedError
from keras_deepseek.backend.named_model import NamedModel


def write_saved_model(model: NamedModel, path: str) -> None:
    """Writes the model as a SavedModel into a folder, or raises `NotSupportedError`."""
    raise NotSupportedError("A SavedModel is not written from JAX itself.")


def write_onnx(model: NamedModel, path: str, opset: int) -> None:
    """Writes the model as an ONNX file, or raises `NotSupportedError`."""
    raise NotSupportedError("ONNX is not written from JAX itself.")
