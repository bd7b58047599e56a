import keras
import numpy as np
import pytest

from keras_deepseek.layers.initializers import (
    clone_initializer,
    draws_random_numbers,
    stack_initializer,
)


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


def test_stacked_kernels_are_drawn_as_each_alone():
    initializer = stack_initializer(keras.initializers.HeNormal(seed=0), 50)
    kernels = keras.ops.convert_to_numpy(initializer((50, 20, 30), "float32"))
    assert np.std(kernels) == pytest.approx(np.sqrt(2 / 20), rel=0.05)


def test_what_knows_no_fan_is_not_scaled():
    constant = stack_initializer(keras.initializers.Constant(3.0), 50)
    assert keras.ops.convert_to_numpy(constant((2, 1, 1))).ravel().tolist() == [3.0, 3.0]


RANDOM_NAMES = ["glorot_uniform", "he_normal", "lecun_normal", "orthogonal", "random_normal"]


@pytest.mark.parametrize("name", [*RANDOM_NAMES, "random_uniform", "truncated_normal"])
def test_random_initializers_are_told_from_values(name):
    assert draws_random_numbers(name)
    initializer = keras.initializers.get(name)
    assert draws_random_numbers(initializer)
    assert draws_random_numbers(keras.initializers.serialize(initializer))
    assert draws_random_numbers(stack_initializer(initializer, 2))


def test_values_are_not_random_and_the_default_is():
    assert draws_random_numbers(None)
    for value in ("zeros", "ones", keras.initializers.Constant(2.0), "identity", keras.ops.ones):
        assert not draws_random_numbers(value)
