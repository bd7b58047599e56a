import keras
import numpy as np

from keras_deepseek.layers.initializers import clone_initializer


def draw(initializer):
    return keras.ops.convert_to_numpy(initializer((4, 4)))


def test_a_clone_draws_other_numbers_of_the_same_kind():
    first = keras.initializers.RandomNormal(stddev=0.1)
    second = clone_initializer(first)
    assert type(second) is keras.initializers.RandomNormal
    assert second.stddev == 0.1
    assert np.abs(draw(first) - draw(second)).max() > 0.0


def test_a_seed_that_was_given_stays():
    first = keras.initializers.RandomNormal(seed=3)
    np.testing.assert_array_equal(draw(first), draw(clone_initializer(first)))


def test_a_function_is_returned_as_it_is():
    def ones(shape, dtype=None):
        return keras.ops.ones(shape, dtype)

    assert clone_initializer(ones) is ones
