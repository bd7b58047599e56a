"""All models of the export matrix by name."""

from collections.abc import Callable

import keras
import numpy as np

from integration_tests.export_matrix import (
    deepseek_models,
    family_models,
    general_models,
    library_models,
    sequence_models,
)

MODELS = {
    **general_models.MODELS,
    **sequence_models.MODELS,
    **deepseek_models.MODELS,
    **family_models.MODELS,
    **library_models.MODELS,
}
RANGES = {"segment_ids": 2, "padding_mask": 2, "index": 3, "places": 7}
"""What the integers of an input are below, where that is not the size of a vocabulary."""
_SPREAD = 0.1


def build(name: str) -> keras.Model:
    """Returns a model of the matrix with random weights."""
    return build_randomly(MODELS[name])


def build_randomly(builder: Callable[[], keras.Model]) -> keras.Model:
    """Returns a model of random weights, the same ones each time.

    None of them has its initial zero or one, as biases and the statistics of batches do: an export
    that loses such a weight is to compute something else.
    """
    keras.backend.clear_session()
    keras.utils.set_random_seed(0)
    model = builder()
    generator = np.random.default_rng(0)
    for weight in model.weights:
        value = keras.ops.convert_to_numpy(weight.value)
        if value.dtype.kind == "f" and np.ptp(value) == 0:
            noise = np.abs(generator.normal(scale=_SPREAD, size=value.shape))
            weight.assign((value + noise).astype(value.dtype))
    return model
