"""TensorFlow's own ways out of Keras."""

from typing import Any

import numpy as np
import tensorflow as tf

from keras_deepseek.artifacts.errors import MissingExtraError
from keras_deepseek.backend.named_model import NamedModel
from keras_deepseek.backend.saved_model_writer import save_as_saved_model
from keras_deepseek.backend.serving_signatures import ServingSignatures


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
        outputs = model(dict(zip(specs, tensors, strict=True)))
        return [outputs[spec.name] for spec in model.signature.outputs]

    tf2onnx.convert.from_function(
        tf.function(run, autograph=False),
        list(specs.values()),
        opset=opset,
        custom_op_handlers={"Erfc": (_convert_erfc, [])},
        output_path=path,
    )


def _convert_erfc(context: Any, node: Any, name: str, _: list[Any]) -> Any:
    """Puts `1 - Erf(x)` for TensorFlow's `Erfc`, which ONNX and tf2onnx know nothing of."""
    from tf2onnx.utils import map_onnx_to_numpy_type

    (given,) = node.input
    dtype = map_onnx_to_numpy_type(context.get_dtype(given))
    one = context.make_const(f"{name}/one", np.ones((), dtype))
    erf = context.make_node("Erf", [given])
    outputs, shapes, dtypes = node.output, node.output_shapes, node.output_dtypes
    context.remove_node(node.name)
    return context.make_node(
        "Sub",
        [one.output[0], erf.output[0]],
        name=name,
        outputs=outputs,
        shapes=shapes,
        dtypes=dtypes,
    )
