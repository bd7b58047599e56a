"""TensorFlow's own ways out of Keras."""

import keras
import tensorflow as tf

from keras_deepseek.artifacts.errors import MissingExtraError
from keras_deepseek.backend.named_model import NamedModel


def write_saved_model(model: NamedModel, path: str) -> None:
    """Writes the model as a SavedModel into a folder, or raises `NotSupportedError`."""
    archive = keras.export.ExportArchive()
    archive.track(model.model)
    archive.add_endpoint("serving_default", model.__call__, [_specs(model)])
    archive.write_out(path, verbose=False)


def write_onnx(model: NamedModel, path: str, opset: int) -> None:
    """Writes the model as an ONNX file, or raises `NotSupportedError`."""
    try:
        import tf2onnx
    except ImportError as error:
        raise MissingExtraError("tf2onnx", "onnx", "to export ONNX from TensorFlow") from error

    names = [spec.name for spec in model.signature.outputs]

    def run(inputs: dict[str, tf.Tensor]) -> list[tf.Tensor]:
        outputs = model(inputs)
        return [outputs[name] for name in names]

    tf2onnx.convert.from_function(
        tf.function(run, autograph=False),
        [_specs(model)],
        opset=opset,
        output_path=path,
    )


def _specs(model: NamedModel) -> dict[str, tf.TensorSpec]:
    return {
        spec.name: tf.TensorSpec(spec.shape, spec.dtype, name=spec.name)
        for spec in model.signature.inputs
    }
