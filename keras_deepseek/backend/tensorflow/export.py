"""TensorFlow's own ways out of Keras."""

import contextlib
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import (
    convert_variables_to_constants_v2,
)

from keras_deepseek.artifacts.errors import MissingExtraError
from keras_deepseek.backend.named_model import NamedModel
from keras_deepseek.backend.saved_model_writer import save_as_saved_model
from keras_deepseek.backend.serving_signatures import ServingSignatures
from keras_deepseek.backend.tf2onnx_operators import HANDLERS


def write_saved_model(model: NamedModel, path: str, signatures: ServingSignatures) -> None:
    """Writes the model as a SavedModel into a folder, or raises `NotSupportedError`."""
    save_as_saved_model(model, path, signatures)


def write_onnx(model: NamedModel, path: str, opset: int) -> None:
    """Writes the model as an ONNX file, or raises `NotSupportedError`."""
    try:
        import tf2onnx
    except ImportError as error:
        raise MissingExtraError("tf2onnx", "onnx", "to export ONNX from TensorFlow") from error

    specs = {
        spec.name: tf.TensorSpec(spec.shape, spec.dtype, name=spec.name)
        for spec in model.signature.inputs
    }

    # By position: of a dict, TensorFlow takes the keys in the order of the alphabet.
    def run(*tensors: tf.Tensor) -> list[tf.Tensor]:
        with _inlined_functions():
            outputs = model(dict(zip(specs, tensors, strict=True)))
        return [outputs[spec.name] for spec in model.signature.outputs]

    signature = list(specs.values())
    tf2onnx.convert.from_function(
        _Traced(tf.function(run, autograph=False).get_concrete_function(*signature)),
        signature,
        opset=opset,
        custom_op_handlers=HANDLERS,
        output_path=path,
    )


@contextlib.contextmanager
def _inlined_functions() -> Iterator[None]:
    """Traces compiled functions within, as Keras's grouped convolution is one, as plain nodes."""
    was_eager = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(run_eagerly=True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(run_eagerly=was_eager)


class _Traced:
    """A traced function as tf2onnx takes a function: it looks at no more.

    What a function has captured, as an array that stands in a model, tf2onnx takes for an input.
    """

    def __init__(self, function: Any) -> None:
        if any(tensor.dtype != tf.resource for tensor in function.captured_inputs):
            function = convert_variables_to_constants_v2(
                function, lower_control_flow=False, aggressive_inlining=True
            )
        self._function = function

    def get_concrete_function(self, *_: Any) -> Any:
        return self._function
