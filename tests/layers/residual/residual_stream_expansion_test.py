import keras
import numpy as np
import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.layers import ResidualStreamExpansion
from keras_deepseek.testing import LayerTestCase


@pytest.mark.parametrize(("num_streams", "shape"), [(4, (2, 3, 5)), (1, (3, 2))])
@pytest.mark.each_backend
def test_it_passes_the_layer_routine(num_streams, shape):
    LayerTestCase().run_layer_test(
        ResidualStreamExpansion,
        {"num_streams": num_streams},
        shape,
        oracle=lambda layer, inputs: np.stack([inputs] * num_streams, -2),
    )


@pytest.mark.parametrize("shape", [(0, 3, 5), (2, 0, 5), (1, 1, 5)])
def test_an_empty_batch_and_a_sequence_of_one_work(shape):
    outputs = ResidualStreamExpansion()(np.ones(shape, "float32"))
    assert tuple(outputs.shape) == (*shape[:2], 4, 5)


def test_what_makes_no_streams_is_refused():
    with pytest.raises(InvalidInputError, match="`num_streams` must be a positive integer"):
        ResidualStreamExpansion(0)
    with pytest.raises(ValueError, match="ndim"):
        ResidualStreamExpansion()(keras.ops.ones((3,)))
