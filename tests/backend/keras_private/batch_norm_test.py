"""Batch normalization of symbols without a scale, which Keras refuses."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_deepseek.backend.keras_private.batch_norm import fixed_batch_norm


def test_a_scale_of_ones_stands_for_none():
    x, mean, offset = (keras.Input(batch_shape=shape) for shape in ((9, 4, 3), (3,), (3,)))
    with pytest.raises(AttributeError):  # A canary: the fix can go once Keras takes `None`.
        ops.batch_normalization(x, mean, mean, -1, offset=offset)
    with fixed_batch_norm():
        outputs = ops.batch_normalization(x, mean, mean, -1, offset=offset)
    model = keras.Model([x, mean, offset], outputs)
    random = np.random.default_rng(0)
    arrays = [random.uniform(0.1, 1, size).astype("float32") for size in ((9, 4, 3), 3, 3)]
    x, mean, offset = map(ops.convert_to_tensor, arrays)
    np.testing.assert_array_equal(
        ops.convert_to_numpy(model([x, mean, offset])),
        ops.convert_to_numpy(ops.batch_normalization(x, mean, mean, -1, offset=offset)),
    )
