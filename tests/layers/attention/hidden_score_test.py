import numpy as np
import pytest
from keras import ops

from keras_deepseek.layers.masks import HIDDEN


@pytest.mark.parametrize("score", [-1e9, 0.0, 1e9])
def test_it_has_no_weight_beside_what_is_shown_and_all_hidden_stays_finite(score):
    scores = ops.convert_to_tensor([[score, HIDDEN], [HIDDEN, HIDDEN]], "float32")
    weights = ops.convert_to_numpy(ops.softmax(scores))
    np.testing.assert_array_equal(weights, [[1, 0], [0.5, 0.5]])
