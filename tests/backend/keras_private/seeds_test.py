"""Canaries: they fail when a Keras release moves a private name."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_deepseek.backend.keras_private.seeds import drawn_seed, replaced_generators

pytestmark = pytest.mark.skipif(keras.backend.backend() != "torch", reason="Others have no such.")


def test_each_draw_of_keras_can_be_given_its_generator():
    import torch

    seeds = []

    def make(seed, by_keras):
        seeds.append(seed)
        number, device = drawn_seed(seed)
        return torch.Generator(device).manual_seed(int(number) & 0xFFFFFFFF)

    def draw():
        seed = keras.random.SeedGenerator(5)
        layer = keras.layers.Dropout(0.5, seed=6)
        return [
            *(ops.convert_to_numpy(keras.random.normal((3,), seed=seed)) for _ in range(2)),
            ops.convert_to_numpy(keras.random.randint((3,), 0, 100, seed=7)),
            ops.convert_to_numpy(layer(np.ones((2, 4)), training=True)),
        ]

    expected = draw()
    with replaced_generators(make):
        numbers = draw()
    assert len(seeds) == 4
    for array, reference in zip(numbers, expected, strict=True):
        np.testing.assert_array_equal(array, reference)
    draw()
    assert len(seeds) == 4
