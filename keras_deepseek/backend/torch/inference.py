"""A Keras model run by PyTorch in inference mode."""

import keras
import torch

from keras_deepseek.artifacts.signature import Array, InferenceFunction
from keras_deepseek.backend.export.named_model import NamedModel


def compile_inference(model: NamedModel) -> InferenceFunction:
    """Returns the model as a compiled function of NumPy arrays, from and to dicts by name."""
    model.model.eval()

    def infer(inputs: dict[str, Array]) -> dict[str, Array]:
        with torch.inference_mode():
            tensors = {name: keras.ops.convert_to_tensor(array) for name, array in inputs.items()}
            return {
                name: keras.ops.convert_to_numpy(tensor) for name, tensor in model(tensors).items()
            }

    return infer


def plain_inference(model: NamedModel) -> InferenceFunction:
    """Returns the model as a function of NumPy arrays, computed at each batch's own sizes."""
    return compile_inference(model)
