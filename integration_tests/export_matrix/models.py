"""All models of the export matrix by name."""

from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np

from integration_tests.export_matrix import (
    deepseek_models,
    family_models,
    general_models,
    kerashub_models,
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
EXPORTED = {**MODELS, **kerashub_models.MODELS}
"""The models of the matrix, and KerasHub's, which graphs are not tested with."""
RANGES = {"segment_ids": 2, "padding_mask": 2, "index": 3, "places": 7}
"""What the integers of an input are below, where that is not the size of a vocabulary."""
_SPREAD = 0.1


def build(name: str, weights: Path | None = None) -> keras.Model:
    """Returns a model of the matrix with random weights, or with those of another backend.

    The backends draw other numbers. The first one to build a model keeps them in the folder
    `weights`, for the next one, whose files can then be compared with its own.
    """
    model = build_randomly(EXPORTED[name])
    if weights is None:
        return model
    path = weights / f"{name}.npz"
    drawn = [weight for weight in model.weights if "seed_generator" not in weight.path]
    drawn.sort(key=lambda weight: weight.path)  # Their order may be another one by backend.
    if not path.exists():
        arrays = [keras.ops.convert_to_numpy(weight.value) for weight in drawn]
        np.savez(path, *arrays)
        return model
    with np.load(path) as kept:
        for weight, array in zip(drawn, kept.values(), strict=True):
            weight.assign(array)
    return model


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
