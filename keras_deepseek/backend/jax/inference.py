"""A Keras model as one jitted JAX function."""

import jax
import keras
import numpy as np

from keras_deepseek.artifacts.signature import Array, InferenceFunction
from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.backend.gradient_free import without_gradients


def compile_inference(model: NamedModel) -> InferenceFunction:
    """Returns the model as a compiled function of NumPy arrays, from and to dicts by name."""
    variables = model.model.variables

    @jax.jit
    def run(values: list[jax.Array], inputs: dict[str, jax.Array]) -> dict[str, jax.Array]:
        scope = keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True)))
        with without_gradients(), scope:
            return model(inputs)

    def infer(inputs: dict[str, Array]) -> dict[str, Array]:
        # The weights are arguments, not constants: a change of them is seen by the next call.
        outputs = run([variable.value for variable in variables], inputs)
        return {name: np.asarray(array) for name, array in outputs.items()}

    return infer


def plain_inference(model: NamedModel) -> InferenceFunction:
    """Returns the model as a function of NumPy arrays, computed at each batch's own sizes."""
    return compile_inference(model)
