"""Batches that the Exporter did not verify on."""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from integration_tests.export_matrix.models import RANGES
from integration_tests.second_look import Batch, draw_batches
from keras_deepseek.artifacts.signature import Signature, TensorSpec

SIZES = ((2, (7,)), (7, (21,)), (6, (10,)), (2, (8, 21, 12, 17)))
"""Batch sizes, and lengths for the free axes in turn: none of them does the Exporter use."""


def fresh_batches(model: keras.Model, signature: Signature) -> Iterator[Batch]:
    """Yields batches by input name. Rows end in zeros, as padding does, and are of any length."""
    generator = np.random.default_rng(2026)
    layers = model._flatten_layers(include_self=False)
    sizes = [layer.input_dim for layer in layers if isinstance(layer, keras.layers.Embedding)]
    vocabulary = max(sizes, default=10)

    def draw(spec: TensorSpec, shape: list[int]) -> Any:
        dtype = np.dtype(spec.dtype)
        below = RANGES.get(spec.name, vocabulary)
        if dtype.kind == "f":
            array = generator.normal(size=shape)
        elif dtype.kind == "b":
            array = generator.integers(0, 2, size=shape)
        else:
            array = generator.integers(min(1, below - 1), below, size=shape)
        is_padded = dtype.kind in "iu" or None in spec.shape[1:2]
        if is_padded and len(shape) > 1 and spec.name not in ("segment_ids", "places"):
            for row in range(1, shape[0]):
                array[row, generator.integers(1, shape[1] + 1) :] = 0
        return array.astype(dtype)

    return draw_batches(signature, SIZES, draw)
