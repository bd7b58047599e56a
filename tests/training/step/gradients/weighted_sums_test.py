from dataclasses import replace

import numpy as np
from keras import ops

from keras_deepseek.training.step.gradients.batch_part import make_summed_part
from keras_deepseek.training.step.gradients.weighted_sums import WeightedSums


def part(weight, loss, log, gradient):
    scalars = [ops.convert_to_tensor(number, "float32") for number in (weight, loss, log)]
    sums = WeightedSums.of(scalars[1], scalars[0], {"log": scalars[2]})
    assert sums.gradients == []
    return replace(sums, gradients=[None, gradient])


def means(sums, *, is_sum):
    return make_summed_part(sums, num_rows=4).means(is_sum=is_sum)


def add(sums, other_sums):
    return sums.plus(other_sums, 1.0)


def test_means_of_parts_give_the_mean_of_the_batch():
    parts = [part(1.0, 4.0, 8.0, ops.ones(2)), part(3.0, 8.0, 0.0, ops.zeros(2))]
    loss, logs, gradients = means(add(*parts), is_sum=False)
    assert (float(loss), float(logs["log"])) == (7.0, 2.0)
    assert gradients[0] is None
    np.testing.assert_array_equal(ops.convert_to_numpy(gradients[1]), [0.25, 0.25])


def test_sums_stay_sums():
    parts = [part(1.0, 4.0, 8.0, ops.ones(2)), part(1.0, 8.0, 0.0, ops.ones(2))]
    loss, _, gradients = means(add(*parts), is_sum=True)
    assert float(loss) == 12.0
    np.testing.assert_array_equal(ops.convert_to_numpy(gradients[1]), [2.0, 2.0])


def test_parts_without_weight_make_zeros():
    loss, _, gradients = means(part(0.0, 4.0, 8.0, ops.zeros(2)), is_sum=False)
    assert float(loss) == 0.0
    np.testing.assert_array_equal(ops.convert_to_numpy(gradients[1]), [0.0, 0.0])


def test_nan_of_a_part_without_weight_is_ignored():
    nothing, weighted = (
        part(0.0, np.nan, np.nan, ops.zeros(2)),
        part(1.0, 4.0, 2.0, ops.ones(2)),
    )
    loss, logs, gradients = means(add(nothing, weighted), is_sum=False)
    assert (float(loss), float(logs["log"])) == (4.0, 2.0)
    np.testing.assert_array_equal(ops.convert_to_numpy(gradients[1]), [1.0, 1.0])


def test_plus_does_not_change_the_given_gradients():
    gradient = ops.ones(3)
    part = WeightedSums.of(ops.convert_to_tensor(2.0), ops.convert_to_tensor(4.0), {})
    # The terms of a sum have one gradient, and on PyTorch it is one tensor.
    part = replace(part, gradients=[gradient, None, gradient])
    sums = part.scale_gradients(4.0).plus(part, 0.5)
    assert [float(scalar) for scalar in sums.scalars()] == [8.0, 16.0]
    first, none, last = sums.gradients
    assert none is None
    for kept_gradient in (first, last):
        np.testing.assert_array_equal(ops.convert_to_numpy(kept_gradient), 4.5)
    np.testing.assert_array_equal(ops.convert_to_numpy(gradient), 1.0)
