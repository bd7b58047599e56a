"""Writing of Keras models to files for other runtimes."""

import abc

from keras_deepseek.backend import framework_name
from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.backend.export.serving_signatures import ServingSignatures
from keras_deepseek.errors import NotSupportedError


class Export(abc.ABC):
    """The interface for writing a model in file formats of other runtimes."""

    def write_saved_model(
        self, model: NamedModel, path: str, signatures: ServingSignatures
    ) -> None:
        """Writes a model as a SavedModel folder, or raises `NotSupportedError`."""
        raise NotSupportedError(f"{framework_name()} can't write a SavedModel itself.")

    @abc.abstractmethod
    def write_onnx(self, model: NamedModel, path: str, opset: int) -> None:
        """Writes a model as an ONNX file of at most operator set `opset`.

        Raises `NotSupportedError` if the framework can't write this model.
        """
