"""ONNX and SavedModel files written from TensorFlow."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import (
    convert_variables_to_constants_v2,
)

from keras_deepseek.artifacts.signature import Batch
from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.backend.export.saved_model_writer import ServingSignatures, save_as_saved_model
from keras_deepseek.backend.protocols.inference import Export
from keras_deepseek.backend.tensorflow.litert_converter import convert_saved_model
from keras_deepseek.errors import NotSupportedError

_HIGHEST_OPSET = 18
"""The newest operator set that tf2onnx writes."""


class TensorFlowExport(Export):
    """Implements `Export` by TensorFlow."""

    def write_saved_model(
        self, model: NamedModel, path: str, signatures: ServingSignatures
    ) -> None:
        save_as_saved_model(model, path, signatures)

    def convert_to_litert(
        self, saved_model: Path, *, in_float16: bool, calibration: Sequence[Batch] | None
    ) -> bytes:
        return convert_saved_model(saved_model, in_float16=in_float16, calibration=calibration)

    def write_onnx(self, model: NamedModel, path: str, opset: int) -> None:
        import tf2onnx

        if opset > _HIGHEST_OPSET:
            raise NotSupportedError(
                f"tf2onnx writes opsets up to {_HIGHEST_OPSET}, and {opset} was requested"
            )
        specs = {
            spec.name: tf.TensorSpec(spec.shape, spec.dtype, name=spec.name)
            for spec in model.signature.inputs
        }

        # By position: TensorFlow would sort the keys of a dict.
        def run(*tensors: tf.Tensor) -> list[tf.Tensor]:
            outputs = model.trace(dict(zip(specs, tensors, strict=True)))
            return [outputs[spec.name] for spec in model.signature.outputs]

        signature = list(specs.values())
        traced = _Traced(tf.function(run, autograph=False).get_concrete_function(*signature))
        tf2onnx.convert.from_function(traced, signature, opset=opset, output_path=path)


class _Traced:
    """A traced TensorFlow function with the one method that tf2onnx calls.

    Captured values, such as an array in a model, become constants: tf2onnx would take them for
    inputs.
    """

    def __init__(self, function: Any) -> None:
        if any(tensor.dtype != tf.resource for tensor in function.captured_inputs):
            function = convert_variables_to_constants_v2(
                function, lower_control_flow=False, aggressive_inlining=True
            )
        self._function = function

    def get_concrete_function(self, *_: Any) -> Any:
        return self._function
