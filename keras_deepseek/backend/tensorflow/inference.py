"""A Keras model as one traced TensorFlow function."""

import keras
import tensorflow as tf

from keras_deepseek.artifacts.signature import Array, InferenceFunction
from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.backend.gradient_free import without_gradients
from keras_deepseek.backend.keras_private.keras_internals import leaving_no_nodes

_OF_NEGATIVE_SIZES = ("Negative dimension size", "size would be zero or negative")


def compile_inference(model: NamedModel) -> InferenceFunction:
    """Returns the model as a compiled function of NumPy arrays, from and to dicts by name."""
    specs = {
        spec.name: tf.TensorSpec(spec.shape, spec.dtype, name=spec.name)
        for spec in model.signature.inputs
    }

    @tf.function(input_signature=[specs], autograph=False)
    def run(inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        with without_gradients():
            return model.trace(inputs)

    traced = run.get_concrete_function()  # Once, for every batch size and free axis.

    def infer(inputs: dict[str, Array]) -> dict[str, Array]:
        tensors = {name: tf.convert_to_tensor(array) for name, array in inputs.items()}
        return {name: tensor.numpy() for name, tensor in traced(tensors).items()}

    return infer


def plain_inference(model: NamedModel) -> InferenceFunction:
    """Returns the model as a function of NumPy arrays, computed at each batch's own sizes."""

    def infer(inputs: dict[str, Array]) -> dict[str, Array]:
        _refuse_negative_sizes(model, inputs)
        # Not by a graph of free sizes, which some layers compute otherwise: `TimeDistributed`.
        tensors = {name: tf.convert_to_tensor(array) for name, array in inputs.items()}
        return {name: tensor.numpy() for name, tensor in model(tensors).items()}

    return infer


def _refuse_negative_sizes(model: NamedModel, inputs: dict[str, Array]) -> None:
    """Raises an error where a convolution or pooling is wider than what it is to go over.

    TensorFlow computes something there, another thing each time.
    """
    symbols = {name: keras.KerasTensor(each.shape, each.dtype) for name, each in inputs.items()}
    try:
        with leaving_no_nodes(model.model):
            model(symbols)
    except Exception as error:
        if any(words in str(error) for words in _OF_NEGATIVE_SIZES):
            raise
