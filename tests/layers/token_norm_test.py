import keras
import numpy as np

from keras_deepseek.layers.inner_layers import make_token_norm
from keras_deepseek.testing import assert_close


class Normalizing(keras.Layer):
    epsilon = 0.5


def test_each_token_is_normalized_and_its_mask_passes():
    norm = make_token_norm(Normalizing(dtype="mixed_bfloat16"), "norm", 3)
    assert (norm.built, norm.name, norm.dtype_policy.name) == (True, "norm", "mixed_bfloat16")
    norm = make_token_norm(Normalizing(), "norm", 3)
    inputs = np.random.default_rng(0).normal(size=(2, 4, 3)).astype("float32")
    expected = inputs / np.sqrt((inputs**2).mean(-1, keepdims=True) + 0.5)
    assert_close(keras.ops.convert_to_numpy(norm(inputs)), expected)
    mask = np.array([[True, True, False, False], [True] * 4])
    assert norm.compute_mask(inputs, mask) is mask
